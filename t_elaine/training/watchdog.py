"""A watchdog over the loop: where nothing ends for far too long, it prints all stacks and ends the job.

A collective that waits for a dead network, a disk that never answers, a deadlock: none of them raises. It measures
nothing but time and knows no devices.
"""

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from t_elaine.errors import UserError

FIRST = 6.0  # times `seconds`: for a part that has hardly been seen yet, such as the first evaluation
FEW = 3
CODE = 1


@dataclass(frozen=True, kw_only=True)
class Watchdog:
    """When a run that does not move is ended.

    Args:
        factor: times the median of the latest steps (evaluations, checkpoints: of theirs); 0: never.
        seconds: but never before so many; the first three steps, evaluations and checkpoints have six times as long.
        start_seconds: for all that comes before the first step: checking stores, restoring, compiling.
    """

    factor: float = 20.0
    seconds: float = 600.0
    start_seconds: float = 14400.0

    def __post_init__(self) -> None:
        if self.factor < 0 or self.seconds <= 0 or self.start_seconds <= 0:
            what = f"factor {self.factor}, seconds {self.seconds}, start_seconds {self.start_seconds}"
            raise UserError(what, "Watchdog", "give a factor of at least 0, and seconds above 0")


class Watch:
    """Times the parts of the loop and ends the process when one takes too long."""

    def __init__(self, settings: Watchdog, end: Callable[[str], None]) -> None:
        """end: told the reason when the stacks are printed; `on_end`, which may be set later, is told after it."""
        self._settings, self._end = settings, end
        self.on_end: Callable[[str], None] = lambda reason: None
        self._known: dict[str, deque[float]] = {}
        self._part, self._since, self._limit = "the start", time.monotonic(), settings.start_seconds
        self._closed = threading.Event()

    def __enter__(self) -> "Watch":
        if self._settings.factor:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """The loop does this part; what follows it, until the next one, has as long again."""
        self._begin(part)
        start = time.monotonic()
        yield
        self._known.setdefault(part, deque(maxlen=20)).append(time.monotonic() - start)
        self._begin(part)

    def _begin(self, part: str) -> None:
        self._part, self._since, self._limit = part, time.monotonic(), self.limit(part)

    def limit(self, part: str) -> float:
        """Seconds that a part may take."""
        known = self._known.get(part)
        if not known or len(known) < FEW:
            return FIRST * self._settings.seconds
        return max(self._settings.seconds, self._settings.factor * statistics.median(known))

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._settings.seconds / 4)):
            part, since, limit = self._part, self._since, self._limit
            silent = time.monotonic() - since
            if silent > limit:
                usual = self._known.get(part)
                told = f"; it usually takes {statistics.median(usual):.1f} s" if usual else ""
                self._bark(f"no end of {part} in {silent:.0f} s{told}")
                return

    def _bark(self, reason: str) -> None:
        print(f"watchdog: {reason}; the stacks of all threads:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        told = UserError(
            reason,
            "watchdog",
            "look at the stacks above, of all hosts; the same command goes on from the last checkpoint. If nothing was "
            "wrong, raise Watchdog.seconds",
        )
        print(told.text(), file=sys.stderr, flush=True)
        # What hangs may be the disk that the status would be written to.
        telling = threading.Thread(target=lambda: (self._end(reason), self.on_end(reason)), daemon=True)
        telling.start()
        telling.join(10.0)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(CODE)
