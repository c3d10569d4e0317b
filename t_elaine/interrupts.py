"""What ends a command from outside, Ctrl-C and SIGTERM: an exception that cleans up on its way, one line, 130 or 143.

SIGKILL cannot be heard; what it leaves behind, the next start clears. Training has its own way to stop at SIGTERM
(`training.stopping`: it saves first); before and after its loop this one holds.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# Names the process that started this one and whose end is this one's SIGTERM: a sweep's runs must not outlive it.
ENDS_WITH = "T_ELAINE_ENDS_WITH"
KEPT = {
    "prepare": "finished shards are kept; the same command goes on",
    "import_hf": "files fetched so far are kept, nothing else was left; give the same command again",
    "export": "nothing was left behind, an older export is as it was; give the same command again",
    "evaluate": "scores and answers so far are kept; the same command goes on",
    "generate": "answers finished so far are in the file of --to, where one was given",
    "sweep": "finished runs are kept, the others were told to save; the same command goes on",
    "plan": "trials of a search that are finished are kept; the same command goes on",
    "train": "checkpoints written by then are kept; the same command goes on from the last, or begins anew without one",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread wherever it then is; whatever cleans up at Ctrl-C cleans up at this."""


@contextmanager
def heard() -> Iterator[None]:
    """While inside, the first SIGTERM raises `Terminated`; later ones do not disturb the cleaning up.

    A handler that stands there already stays, and so does an inherited wish to ignore the signal. Threads other than
    the main one cannot listen: there it changes nothing but the second point. An interrupt that falls into a finaliser
    or a callback of the garbage collector (JAX has one), where Python drops exceptions, is repeated.
    """
    told, over = threading.Event(), threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        if not told.is_set():
            told.set()
            raise Terminated

    def again(unraisable: "sys.UnraisableHookArgs") -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)
            return
        told.clear()
        number = signal.SIGTERM if issubclass(unraisable.exc_type, Terminated) else signal.SIGINT
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()  # in this very call it would be lost again

    main = threading.current_thread() is threading.main_thread()
    listens = main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    hook, sys.unraisablehook = sys.unraisablehook, again
    if listens:
        signal.signal(signal.SIGTERM, handler)
    try:
        _end_with_parent(over)
        yield
    finally:
        over.set()
        sys.unraisablehook = hook
        if listens:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is left: for what an exception in its midst would leave unusable.

    In a thread other than the main one, which no signal reaches, it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, lambda *given: waiting.append(given))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)
        for heard_number, frame in waiting[:1]:
            kept = handlers[signal.Signals(heard_number)]
            assert callable(kept)
            kept(heard_number, frame)


def _end_with_parent(over: threading.Event) -> None:
    """If the one who started this process asked for it: SIGTERM when that one is gone, however it ended."""
    parent = int(os.environ.pop(ENDS_WITH, "0"))  # popped: it is not for what this process starts
    if not parent:
        return
    if os.getppid() != parent:
        raise Terminated

    def watch() -> None:
        while os.getppid() == parent:
            if over.wait(0.5):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def end(interrupt: KeyboardInterrupt, command: str = "") -> int:
    """Say what ended the command and what is kept; returns the exit code, or leaves at once where JAX is loaded."""
    terminated = isinstance(interrupt, Terminated)
    by, code = ("SIGTERM", 143) if terminated else ("the keyboard", 130)
    with suppress(BrokenPipeError):  # whoever read it may be what was killed
        print(f"stopped by {by}; {KEPT.get(command, 'what was saved is kept')}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    if "jax" in sys.modules:  # whose threads may still compute: the interpreter's way out crashes on them
        os._exit(code)
    return code
