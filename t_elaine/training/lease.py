"""The lease of a run's folder in an object store, where there are no locks: who holds it, and a heartbeat.

One file, RUN_DIR/lease.json, made under the condition that there is none. Local folders are locked in `run_folder`.
"""

import datetime
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from t_elaine import paths
from t_elaine.errors import UserError

NAME = "lease.json"
SETTLE = 1.0  # after which two that found the same lease stale see which of them has it


@dataclass(frozen=True, kw_only=True)
class Lease:
    """When a run's folder in an object store counts as left by the process that held it.

    Args:
        stale_seconds: without a heartbeat.
        heartbeat_seconds: between two heartbeats; at most a third of `stale_seconds`.
    """

    stale_seconds: float = 180.0
    heartbeat_seconds: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_seconds <= self.stale_seconds / 3:
            what = f"heartbeat_seconds {self.heartbeat_seconds}, stale_seconds {self.stale_seconds}"
            raise UserError(what, "Lease", "give a heartbeat above 0 and at most a third of stale_seconds")


@contextmanager
def held(
    run_dir: str,
    settings: Lease,
    take_over: bool,
    say: Callable[[str], None],
    lost: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold the lease of a run's folder while inside; a thread of its own says so.

    A lease whose process on this host has ended is taken at once, one without a heartbeat when it is stale.

    Args:
        run_dir: remote.
        settings: seconds.
        take_over: take it from whoever holds it, saying whose it was.
        say: takes messages.
        lost: told whose the folder is now when another run took it; it must leave the process, which may write there
            no more. None: prints it and ends the process with exit code 2.

    Raises:
        UserError: another process holds it and is alive.
    """
    path = paths.join(run_dir, NAME)
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex, "since": _now()}
    mine["every"] = settings.heartbeat_seconds
    while True:
        if paths.create_text(path, _text(mine)):
            time.sleep(SETTLE)
            theirs = read(path)
            if theirs is not None and theirs["token"] == mine["token"]:
                break
        if (theirs := read(path)) is not None:
            _free(path, theirs, settings, take_over, say)
    ended = threading.Event()
    keeper = threading.Thread(target=_keep, args=(path, mine, ended, lost or _leave, say), name="lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join(settings.heartbeat_seconds)
        theirs = read(path)
        if theirs is not None and theirs["token"] == mine["token"]:
            paths.remove(path)


def read(path: str) -> dict[str, Any] | None:
    """The lease as it stands; None if there is none."""
    try:
        found = json.loads(paths.read_text(path))
        return {name: found[name] for name in ("host", "pid", "token", "since", "beat", "every")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("the lease cannot be read", path, "remove the file if no run is at work there") from error


def whose(lease: Mapping[str, Any]) -> str:
    """Who holds a lease, in words."""
    return f"process {lease['pid']} on {lease['host']} (since {lease['since']}, last heartbeat {lease['beat']})"


def _free(path: str, theirs: Mapping[str, Any], settings: Lease, take_over: bool, say: Callable[[str], None]) -> None:
    """Remove another's lease if that is allowed; raise UserError if its process is alive."""
    owner = whose(theirs)
    if take_over:
        say(f"taking the run folder over from {owner}")
    elif theirs["host"] == socket.gethostname() and not paths.runs(int(theirs["pid"])):
        say(f"the run folder was left by {owner}, which has ended")
    else:
        age = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(theirs["beat"])).total_seconds()
        # Clocks of hosts differ: even an old heartbeat is watched for the next one.
        wait = max(settings.stale_seconds - max(0.0, age), 1.5 * float(theirs["every"]))
        say(f"the run folder is held by {owner}; waiting {wait:.0f} s for another heartbeat")
        end = time.monotonic() + wait
        while time.monotonic() < end:
            time.sleep(min(1.0, wait / 4))
            if (now := read(path)) is None:
                return
            if now["beat"] != theirs["beat"] or now["token"] != theirs["token"]:
                mend = "wait for it to end, stop it, give another RUN_DIR, or take it over: --take_over"
                raise UserError(f"the run folder is in use by {whose(now)}", path, mend)
        say("no heartbeat came: the lease is stale")
    try:
        paths.remove(path)
    except FileNotFoundError:
        return  # another process was quicker


def _keep(
    path: str, mine: dict[str, Any], ended: threading.Event, lost: Callable[[str], None], say: Callable[[str], None]
) -> None:
    while not ended.wait(mine["every"]):
        try:
            theirs = read(path)
            if theirs is not None and theirs["token"] != mine["token"]:
                lost(whose(theirs))
                return
            if not ended.is_set():
                paths.write_text(path, _text(mine))
        except UserError as error:  # the store may answer again before the lease is stale
            say(f"warning: the lease could not be renewed: {error.what}")


def _leave(owner: str) -> None:
    """The folder is another's: not one byte more may be written there, so the process ends where it stands."""
    what = f"the run folder was taken over by {owner}"
    print(UserError(what, f"process {os.getpid()}", "this run ends without saving").text(), file=sys.stderr, flush=True)
    os._exit(2)


def _text(mine: Mapping[str, Any]) -> str:
    return json.dumps({**mine, "beat": _now()}, indent=1) + "\n"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
