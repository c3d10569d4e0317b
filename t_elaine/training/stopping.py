"""Reasons to save and stop before the last step: preemption and the limit on device hours.

One process: a handler for SIGTERM sets a flag. Several: no Python handler (it would break JAX's own, which makes all
processes stop at the same step); each step asks `reached_preemption_sync_point`.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils


@contextmanager
def stopping(
    max_chip_hours: float | None, chip_hours: Callable[[], float], ask_every: int = 10
) -> Iterator[Callable[[int], str | None]]:
    """While inside, a function from the step just done to "preempted", "chip hours" or None; equal on all processes.

    Args:
        max_chip_hours: limit; None: none.
        chip_hours: hours × devices so far, of all starts of the run; process 0's count decides.
        ask_every: steps between agreements of several processes on the hours spent.
    """
    several = jax.process_count() > 1
    asked = threading.Event()

    def spent() -> bool:
        return max_chip_hours is not None and chip_hours() >= max_chip_hours

    def stop(step: int) -> str | None:
        if several:
            if multihost_utils.reached_preemption_sync_point(step):
                return "preempted"
            if max_chip_hours is None or step % ask_every:
                return None
            with jax.transfer_guard("allow"):
                return "chip hours" if bool(multihost_utils.broadcast_one_to_all(np.asarray(spent()))) else None
        return "preempted" if asked.is_set() else "chip hours" if spent() else None

    def handler(number: int, frame: FrameType | None) -> None:
        asked.set()

    handle = not several and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, handler) if handle else None
    try:
        yield stop
    finally:
        if handle:
            signal.signal(signal.SIGTERM, before)
