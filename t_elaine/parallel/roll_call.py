"""Processes meet before JAX starts: who is here, who is missing, and do all run the same thing.

Process 0 listens on the coordinator's own port (which JAX's service takes over afterwards); each other one sends its
card there and hears the verdict. All get the same verdict, so that none waits for one that has given up. The
connections stay: `line` hears over them who dies. No JAX here.
"""

import contextlib
import difflib
import errno
import json
import queue
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from t_elaine.errors import UserError

HELLO = "t-elaine roll call 1"
LONGEST = 1 << 24  # bytes of one message; a card carries the whole settings
WAIT = 2.0  # seconds between signs of life of a process 0 that waits
HANDSHAKE = 10.0  # seconds in which whoever accepts a connection must show that it is one of us
Card = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where and how many.

    Args:
        address: host and port of process 0.
        processes: how many there are.
        process: this one's number.
        seconds: after which those who have not come are missing.
        names: host names by process number, for messages; may be empty.
    """

    address: tuple[str, int]
    processes: int
    process: int
    seconds: float
    names: tuple[str, ...] = ()

    def told(self, process: int) -> str:
        """A process as messages name it."""
        name = f" ({self.names[process]})" if process < len(self.names) else ""
        return f"process {process}{name}"

    @property
    def where(self) -> str:
        """host:port."""
        return "{}:{}".format(*self.address)


@dataclass
class Peer:
    """One connection: whole messages out, and a file to read them from."""

    connection: socket.socket
    process: int = -1
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.connection.makefile("rb")

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message. Raises OSError where the other end is gone."""
        with self.lock:
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def read(self, seconds: float | None) -> dict[str, Any] | None:
        """The next message; None at the end of the connection. Raises TimeoutError, or ValueError for other talk."""
        self.connection.settimeout(seconds)
        line = self._file.readline(LONGEST)
        if not line:
            return None
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("not a message")
        return message

    def close(self) -> None:
        """End the connection, also for a thread that reads from it."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def attend(meeting: Meeting, card: Card) -> tuple[dict[int, Peer], list[Card]]:
    """Meet the other processes.

    Args:
        meeting: where, and who we are.
        card: what must be equal on all hosts under "same" (name → text) and "config" (the settings' text); beside it
            "host" and "pid" for messages.

    Returns:
        connections by process (to all others for process 0, to process 0 alone for the others), and all cards.

    Raises:
        UserError: someone is missing, the address is wrong or taken, or two hosts do not run the same thing.
    """
    card = {**card, "hello": HELLO, "process": meeting.process, "processes": meeting.processes}
    return _lead(meeting, card) if meeting.process == 0 else _join(meeting, card)


def _lead(meeting: Meeting, card: Card) -> tuple[dict[int, Peer], list[Card]]:
    listener = _listen(meeting)
    arrivals: queue.Queue[tuple[Peer, Card]] = queue.Queue()
    closing = threading.Event()
    accepting = threading.Thread(target=_accept, args=(listener, arrivals, closing), daemon=True)
    accepting.start()
    deadline = time.monotonic() + meeting.seconds
    peers: dict[int, Peer] = {}
    cards: dict[int, Card] = {0: card}
    try:
        while len(cards) < meeting.processes:
            left = deadline - time.monotonic()
            if left <= 0:
                _end(peers, missing(meeting, cards))
            with contextlib.suppress(queue.Empty):
                _admit(meeting, *arrivals.get(timeout=min(WAIT, left)), peers, cards)
            for process in _left(peers):
                peers.pop(process).close()
                del cards[process]
        present = [cards[process] for process in sorted(cards)]
        unequal = differences(present)
        if unequal is not None:
            _end(peers, unequal)
        for peer in peers.values():
            peer.send({"all": present})
    finally:
        closing.set()
        accepting.join()  # a port on which a thread still waits is not free
        listener.close()
    return peers, present


def _admit(meeting: Meeting, peer: Peer, card: Card, peers: dict[int, Peer], cards: dict[int, Card]) -> None:
    wrong = _misplaced(meeting, cards, card)
    if wrong is not None:
        _end({**peers, -1: peer}, wrong)
    peer.process = int(card["process"])
    peers[peer.process], cards[peer.process] = peer, card


def _left(peers: Mapping[int, Peer]) -> list[int]:
    """Tell those who wait that we are alive; who of them is no more."""
    gone = []
    for process, peer in peers.items():
        try:
            peer.send({"wait": True})
        except OSError:
            gone.append(process)
    return gone


def _listen(meeting: Meeting) -> socket.socket:
    port = meeting.address[1]
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            what = f"port {port} of this host, which process 0 must listen on, is in use by another process"
            raise UserError(what, meeting.where, "end that one, or give another port to all processes") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UserError(f"port {port} may not be opened", meeting.where, "give one above 1023") from error
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return socket.create_server(("", port), backlog=1024)  # a machine without IPv6


def _accept(listener: socket.socket, arrivals: "queue.Queue[tuple[Peer, Card]]", closing: threading.Event) -> None:
    def greet(peer: Peer) -> None:
        try:
            peer.send({"hello": HELLO})
            card = peer.read(HANDSHAKE)
        except (OSError, ValueError):
            card = None
        if card is None or card.get("hello") != HELLO:  # a port scanner, a health check: not for us
            peer.close()
        else:
            arrivals.put((peer, card))

    listener.settimeout(0.05)
    while not closing.is_set():
        try:
            connection, _ = listener.accept()
        except OSError:  # nobody came, or who came is gone again
            continue
        threading.Thread(target=greet, args=(Peer(connection),), daemon=True).start()


def _end(peers: Mapping[int, Peer], error: UserError) -> NoReturn:
    """Give everyone here the same verdict, then end ourselves."""
    for peer in peers.values():
        with contextlib.suppress(OSError):
            peer.send({"refused": [error.what, error.where, error.mend]})
            peer.read(HANDSHAKE)  # it closes first, so that our port is free again at once
        peer.close()
    raise error


def missing(meeting: Meeting, cards: Mapping[int, Card]) -> UserError:
    """Who has not come."""
    absent = [process for process in range(meeting.processes) if process not in cards]
    shown = ", ".join(meeting.told(process) for process in absent[:16])
    more = f" and {len(absent) - 16} more" if len(absent) > 16 else ""
    here = ", ".join(f"{process} on {cards[process]['host']}" for process in sorted(cards)[:16])
    what = (
        f"{len(absent)} of {meeting.processes} processes did not come within {meeting.seconds:g} s: missing "
        f"{shown}{more}; here: {here}"
    )
    mend = "look at the log of the missing ones; start all again, or give them longer with Hosts.seconds"
    return UserError(what, f"roll call at {meeting.where}", mend)


def _misplaced(meeting: Meeting, cards: Mapping[int, Card], card: Card) -> UserError | None:
    """What is wrong with the number that someone comes with."""
    process, processes, host = int(card["process"]), int(card["processes"]), card["host"]
    where = f"roll call at {meeting.where}"
    if processes != meeting.processes:
        what = f"process {process} on {host} was told of {processes} processes, process 0 of {meeting.processes}"
        return UserError(what, where, "give all hosts the same number of processes")
    if process in cards:
        what = f"two processes come as number {process}: one on {cards[process]['host']}, one on {host}"
        mend = "give each its own number, from 0 on; or end what is left of an earlier start"
        return UserError(what, where, mend)
    return None


def differences(cards: Sequence[Card]) -> UserError | None:
    """What is not the same on all hosts as on process 0's, naming the hosts; None where all is."""
    first, lines = cards[0], []
    for card in cards[1:]:
        who = f"process {card['process']} on {card['host']}"
        for name in sorted({*first["same"], *card["same"]}):
            here, there = first["same"].get(name), card["same"].get(name)
            if here != there:
                lines.append(f"{who} has {name} {there}, process 0 on {first['host']} has {here}")
        if card["config"] != first["config"]:
            lines.append(f"{who} has other settings: {settings_difference(first['config'], card['config'])}")
    if not lines:
        return None
    more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
    mend = "install the same on all hosts and give all the same command"
    return UserError("; ".join(lines[:8]) + more, "roll call: what must be equal on all hosts", mend)


def settings_difference(here: str, there: str) -> str:
    """The lines that differ, process 0's with - and the other's with +."""
    changed = difflib.unified_diff(here.splitlines(), there.splitlines(), lineterm="", n=0)
    lines = [line for line in changed if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return " | ".join(lines[:6]) + (" | …" if len(lines) > 6 else "")


def _join(meeting: Meeting, card: Card) -> tuple[dict[int, Peer], list[Card]]:
    peer = _reach(meeting, card)
    try:
        # Process 0 keeps the time from here on; while it waits, it tells us so.
        verdict = peer.read(HANDSHAKE + WAIT)
        while verdict is not None and "wait" in verdict:
            verdict = peer.read(HANDSHAKE + WAIT)
    except (OSError, ValueError):
        verdict = None
    if verdict is None:
        peer.close()
        what = f"{meeting.told(0)} ended during the roll call"
        raise UserError(what, meeting.where, "look at its log, then start all again")
    if "refused" in verdict:
        peer.close()
        raise UserError(*verdict["refused"])
    peer.process = 0
    return {0: peer}, verdict["all"]


def _reach(meeting: Meeting, card: Card) -> Peer:
    """Connect to process 0, trying again until the time is over; whoever else answers there is not taken for it."""
    deadline, why = time.monotonic() + meeting.seconds, ""
    while time.monotonic() < deadline:
        left = max(0.1, deadline - time.monotonic())
        try:
            connection = socket.create_connection(meeting.address, timeout=min(HANDSHAKE, left))
            peer = Peer(connection)
            if (peer.read(HANDSHAKE) or {}).get("hello") == HELLO:
                peer.send(card)
                return peer
            raise ValueError
        except socket.gaierror as error:
            why = f"the name {meeting.address[0]!r} cannot be resolved ({error.strerror})"
        except TimeoutError:
            why = "no answer: a firewall, another network, or another program on that port"
        except ValueError:
            why = "another program answers there"
        except OSError as error:
            why = f"{error.strerror}"
        time.sleep(min(0.2, left))
    what = f"{meeting.told(0)} could not be reached at {meeting.where} within {meeting.seconds:g} s: {why}"
    mend = "see that it runs, that its address and port are right and open to this host; start all again"
    if meeting.address[0] in ("localhost", "127.0.0.1", "::1"):
        mend = f"{meeting.address[0]} means each host itself: give the name of process 0's host; or {mend}"
    raise UserError(what, "Hosts.coordinator", mend)
