"""Which host do the others wait for? Each sends its times over the line, process 0 compares them. No device is asked.

All hosts end a step together, so their step times are equal; what differs is each one's own part, in which the devices
do not keep it waiting: reading rows, dispatching, writing. A chip that computes slowly shows in no host's own part.
"""

import statistics
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from t_elaine.parallel.line import Line

LEAST = 0.05  # of a step: a host whose own part is shorter keeps nobody waiting


class Pace:
    """Collects a host's own seconds, and on process 0 names the slow ones."""

    def __init__(self, line: Line, every: int, factor: float, say: Callable[[str], None]) -> None:
        """every: steps between reports; factor: a host this many times slower than the median of the others is named.

        Takes the line's messages.
        """
        self._line, self._every, self._factor, self._say = line, every, factor, say
        self._own, self._whole = deque[float](maxlen=max(every, 1)), deque[float](maxlen=max(every, 1))
        self._told: dict[int, dict[int, list[float]]] = {}
        self._lock = threading.Lock()
        line.on_message = self._take

    def step(self, done: int, own: float, whole: float) -> None:
        """A step took `whole` seconds, of which `own` were not spent waiting for the devices."""
        if not self._every:
            return
        self._own.append(own)
        self._whole.append(whole)
        if done % self._every:
            return
        figures = [statistics.mean(self._own), statistics.mean(self._whole)]
        if self._line.process == 0:
            self._take(0, {"pace": done, "seconds": figures})
        else:
            self._line.send({"pace": done, "seconds": figures})

    def _take(self, process: int, message: Mapping[str, Any]) -> None:
        if "pace" not in message:
            return
        done = int(message["pace"])
        with self._lock:
            here = self._told.setdefault(done, {})
            here[process] = [float(value) for value in message["seconds"]]
            if len(here) < len(self._line.hosts):
                return
            del self._told[done]
        for slow in slow_ones(here, self._factor):
            own, whole = here[slow]
            others = statistics.median(figures[0] for process, figures in here.items() if process != slow)
            self._say(
                f"slow host at step {done}: {self._line.told(slow)} spends {own:.3f} s of {whole:.3f} s a step on its "
                f"own work (reading rows, dispatching), the others {others:.3f} s: all wait for it"
            )


def slow_ones(seconds: Mapping[int, list[float]], factor: float) -> list[int]:
    """Processes whose own part is `factor` times the others' median, and a part of the step worth the name.

    Args:
        seconds: [own, whole] a step, by process.
        factor: above 1.
    """
    found = []
    for process, (own, whole) in sorted(seconds.items()):
        others = [figures[0] for other, figures in seconds.items() if other != process]
        if others and own > factor * statistics.median(others) and own > LEAST * whole:
            found.append(process)
    return found
