"""The line between the processes of a run while it lasts: who dies or fails is named to all, and all end.

Collectives wait for ever, or fail in words that name nobody, when a process is gone. Here each process holds the
connection of the roll call to process 0: the end of a process ends its connection at once, a dead machine is silent for
too long. Process 0 tells the others. It also takes each host's step times, and names the slow one. No JAX here.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from t_elaine.errors import UserError
from t_elaine.parallel.roll_call import Peer

TOGETHER = 1.0  # seconds in which all hosts find what all of them must find
LOST = 2  # exit code of those who end because another one did


class Line:
    """Open connections to the others, threads that listen to them, and a sign of life every so often."""

    def __init__(
        self, process: int, hosts: Mapping[int, str], peers: Mapping[int, Peer], heartbeat_seconds: float
    ) -> None:
        """process: ours; hosts: name by process; peers: see `roll_call.attend`."""
        self.process, self.hosts = process, dict(hosts)
        self.on_end: Callable[[str], None] = lambda reason: None
        self.on_message: Callable[[int, dict[str, Any]], None] = lambda process, message: None
        self._peers, self._silence = dict(peers), heartbeat_seconds
        self._left: set[int] = set()
        self._closing = threading.Event()
        self._ending = threading.Lock()
        self._awaited = False
        for peer in self._peers.values():
            threading.Thread(target=self._listen, args=(peer,), name="line", daemon=True).start()
        threading.Thread(target=self._beat, name="line heartbeat", daemon=True).start()

    def told(self, process: int) -> str:
        """A process as messages name it."""
        return f"process {process} on {self.hosts[process]}"

    def send(self, message: Mapping[str, Any]) -> None:
        """To process 0 (from process 0: to all). A connection that is gone is noticed by who listens to it."""
        for process, peer in self._peers.items():
            if process not in self._left:
                with contextlib.suppress(OSError):
                    peer.send(message)

    def leave(self) -> None:
        """We end in good order: nobody needs to worry."""
        self._closing.set()
        self.send({"bye": True})

    def fail(self, reason: str, stacks: bool = False) -> None:
        """We end with a failure: the others must not wait for us. Those who fail likewise do so in their own words.

        Args:
            reason: in one sentence.
            stacks: the others print what all their threads do, since one of them may be what we waited for.
        """
        self._closing.set()
        time.sleep(TOGETHER)
        self.send({"failed": reason, "process": self.process, "stacks": stacks})

    def await_news(self, seconds: float = 3.0) -> None:
        """Give the news of another's death the time to come, once: it then ends this process in better words."""
        if not self._awaited:
            self._awaited = True
            self._closing.wait(seconds)
        with self._ending:  # one that ends us is not disturbed
            pass

    def _beat(self) -> None:
        while not self._closing.wait(self._silence / 4):
            self.send({"alive": True})

    def _listen(self, peer: Peer) -> None:
        while True:
            try:
                message = peer.read(self._silence)
            except TimeoutError:
                return self._lost(peer.process, f"was silent for {self._silence:g} s")
            except (OSError, ValueError):
                message = None
            if message is None:
                return None if peer.process in self._left else self._lost(peer.process, "is gone (killed, or crashed)")
            if "bye" in message:
                self._left.add(peer.process)
            elif "lost" in message:
                self._end(message["lost"], bool(message["stacks"]))
            elif "failed" in message:
                told = f"{self.told(int(message['process']))} failed: {message['failed']}"
                self._end(told, bool(message["stacks"]))
            elif "alive" not in message:
                self.on_message(peer.process, message)

    def _lost(self, process: int, how: str) -> None:
        if not self._closing.is_set():
            self._end(f"{self.told(process)} {how}")

    def _end(self, what: str, stacks: bool = False) -> None:
        """End this process at once, unless it ends already: its main thread may wait in a collective for ever."""
        with self._ending:  # one thread ends us, the others wait for it
            if self._closing.is_set():
                return
            self._closing.set()
            self.send({"lost": what, "stacks": stacks})
            if stacks:
                print("the stacks of all threads:", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            with contextlib.suppress(OSError, UserError):
                self.on_end(what)
            mend = "look at that host's log; the same command on all hosts goes on from the last checkpoint"
            print(UserError(what, self.told(self.process), mend).text(), file=sys.stderr)
            sys.stderr.flush()
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            time.sleep(0.2 if self.process == 0 else 0.0)  # what was sent must be on its way
            os._exit(LOST)
