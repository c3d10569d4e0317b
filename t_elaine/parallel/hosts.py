"""Starting the processes of a run, on one host or on many, before anything touches a device.

Finds out how many there are and which one this is, calls the roll (`roll_call`), starts `jax.distributed`, and keeps
the line to the others open while the run lasts. Makes no mesh.
"""

import atexit
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import jax

from t_elaine.errors import UserError
from t_elaine.parallel import clusters
from t_elaine.parallel.line import Line
from t_elaine.parallel.roll_call import Meeting, attend

KINDS = ("auto", "none", "tpu", "slurm", "explicit")
JAX_LATER = 30.0  # seconds after which JAX itself ends a job that our own line should have ended


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """How the processes of a run find each other. None: from the environment (T_ELAINE_…), else as `kind` finds it.

    Args:
        kind: "auto" (explicit where an address is given, else a TPU pod, else SLURM, else one process), "none", "tpu",
            "slurm" or "explicit".
        coordinator: host:port of process 0, free there and reachable from all (T_ELAINE_COORDINATOR).
        processes: how many there are (T_ELAINE_PROCESSES).
        process: this one's number, from 0 (T_ELAINE_PROCESS).
        expected: refuse to start with another number of processes, however it was found (T_ELAINE_EXPECTED).
        names: host names by process number, for messages about one that never came (T_ELAINE_HOSTS, with commas).
        local_devices: GPUs that this process uses; None: all, or by the task's number where SLURM starts several
            tasks on a node (T_ELAINE_LOCAL_DEVICES, with commas).
        seconds: in which all must have come.
        heartbeat_seconds: silence after which a host counts as dead (a process that ends is noticed at once).
        report_every: steps between comparisons of the hosts' times; 0: never.
        slow_factor: a host whose own time is so many times the others' is named.
    """

    kind: str = "auto"
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    expected: int | None = None
    names: tuple[str, ...] = ()
    local_devices: tuple[int, ...] | None = None
    seconds: float = 300.0
    heartbeat_seconds: float = 100.0
    report_every: int = 50
    slow_factor: float = 2.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"kind {self.kind!r} is none of {', '.join(KINDS)}", "Hosts.kind", 'give "auto"')
        for name in ("seconds", "heartbeat_seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}", f"Hosts.{name}", "give seconds above 0")
        if self.slow_factor <= 1:
            raise UserError(f"slow_factor is {self.slow_factor}", "Hosts.slow_factor", "give a factor above 1")


@contextmanager
def together(hosts: Hosts, same: Mapping[str, str], config: str) -> Iterator[Line | None]:
    """While inside, JAX knows all processes; yields the line to them, None where there is only one.

    An exception that leaves is told to the others, which end too; a normal end waits for theirs.

    Args:
        hosts: settings.
        same: what must be equal on all hosts, by name (versions, flags).
        config: the settings' text, which must be equal too (but for `Hosts` itself).

    Raises:
        UserError: see `clusters.place` and `roll_call.attend`.
    """
    place = clusters.place(hosts)
    if place is None:
        yield None
        return
    meeting = Meeting(
        address=place.address,
        processes=place.processes,
        process=place.process,
        seconds=hosts.seconds,
        names=place.names,
    )
    card = {"host": socket.gethostname(), "pid": os.getpid(), "same": dict(same), "config": without_hosts(config)}
    peers, cards = attend(meeting, card)
    line = Line(place.process, {int(card["process"]): card["host"] for card in cards}, peers, hosts.heartbeat_seconds)
    try:
        start_jax(place, hosts)
        _abort_slowly()
        yield line
    except UserError as error:
        _fail(line, error.what, 2)
        raise
    except BaseException as error:
        if isinstance(error, Exception):
            line.await_news()  # a collective fails when a peer dies
        _fail(line, repr(error)[:500], 1)
        raise
    line.leave()


def without_hosts(config: str) -> str:
    """A run's settings without `Hosts`, which differ by host and name machines, and the trace: neither is computed."""
    apart = ("Hosts.", "train.profile = ")
    return "".join(line for line in config.splitlines(keepends=True) if not line.startswith(apart))


def start_jax(place: clusters.Place, hosts: Hosts) -> None:
    """`jax.distributed` for processes that have met.

    Raises:
        UserError: it could not start.
    """
    try:
        jax.distributed.initialize(
            coordinator_address="{}:{}".format(*place.address),
            num_processes=place.processes,
            process_id=place.process,
            local_device_ids=place.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=max(1, int(hosts.seconds)),
            heartbeat_timeout_seconds=int(hosts.heartbeat_seconds + JAX_LATER),
        )
    except jax.errors.JaxRuntimeError as error:
        what = f"jax.distributed did not start: {str(error).splitlines()[0]}"
        mend = "see that nothing else took the port in between; start all again"
        raise UserError(what, "{}:{}".format(*place.address), mend) from error


def _abort_slowly() -> None:
    """Let `abort` wait a moment before it ends this process.

    JAX aborts at once when process 0 is gone, in words that name nobody; the line knows it at the same moment and needs
    a few milliseconds to say so. The signal's handler is the C library's own `sleep`, whose argument, the signal's
    number, is 6: no Python could run there.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def _fail(line: Line, reason: str, code: int) -> None:
    """Tell the others, and leave without JAX's own farewell, which would wait for them for minutes."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)
    line.fail(reason)
