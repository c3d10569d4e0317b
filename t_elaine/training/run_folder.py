"""A run's folder: one process at a time in it, a status that launchers can resume by, and what the run was made of.

Checkpoints and metrics have their own files; this one holds the lock, status.json and the records beside them.
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from t_elaine import changes, paths
from t_elaine.errors import UserError
from t_elaine.parallel import agreement
from t_elaine.training.lease import Lease, held

PACKAGES = ("t-elaine", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "pyarrow")


def is_main() -> bool:
    """True on the one process that writes a run's records."""
    return jax.process_index() == 0


@contextmanager
def in_use(
    run_dir: str, lease: Lease | None = None, take_over: bool = False, say: Callable[[str], None] = print
) -> Iterator[None]:
    """Hold a run's folder while inside: process 0 does; the others see that it is the same folder.

    Args:
        run_dir: local (a lock) or in an object store (a lease).
        lease: seconds of the lease.
        take_over: take a lease from whoever holds it; a local lock goes with its process.
        say: takes messages.

    Raises:
        UserError: another run holds it, or a host does not see it.
    """
    with _held(run_dir, lease or Lease(), take_over, say) if is_main() else contextlib.nullcontext():
        check_shared(run_dir)
        yield


def check_shared(run_dir: str, seconds: float = 20.0) -> None:
    """Raise UserError, on all hosts, where one of them does not see what process 0 wrote into the run's folder."""
    if jax.process_count() == 1:
        return
    mark = agreement.from_main(f".seen-{uuid.uuid4().hex}")
    if is_main():
        paths.write_text(paths.join(run_dir, mark), "")
    agreement.wait_for_all("run folder")
    end = time.monotonic() + seconds  # network file systems may show it late
    while not (seen := mark in paths.listing(run_dir)) and time.monotonic() < end:
        time.sleep(0.2)
    blind = agreement.anywhere(not seen)
    if is_main():
        paths.remove(paths.join(run_dir, mark))
    if blind:
        what = f"process(es) {', '.join(map(str, blind))} do not see the run folder of process 0"
        mend = "give a folder that all hosts share, at the same path: a network disk, or gs://"
        raise UserError(what, os.path.abspath(run_dir) if not paths.is_remote(run_dir) else run_dir, mend)


@contextmanager
def _held(run_dir: str, lease: Lease, take_over: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a run's folder. The lock is freed by the system when the process ends, SIGKILL included.

    A run that was refused, so that nothing was written but the lock, leaves no folder where there was none.

    Raises:
        UserError: another process holds it.
    """
    if paths.is_remote(run_dir):
        with held(run_dir, lease, take_over, say):
            yield
        return
    lock, folder = os.path.join(run_dir, ".lock"), Path(os.path.abspath(run_dir))
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    new = not os.path.exists(lock)
    paths.make_folder(run_dir)
    with _locked(lock, run_dir):
        paths.clear_half_written(run_dir)
        try:
            yield
        finally:
            if new and os.listdir(run_dir) == [".lock"]:
                os.unlink(lock)
                with contextlib.suppress(OSError):  # someone else's file came into one of them
                    for path in made:
                        path.rmdir()


@contextmanager
def _locked(lock: str, run_dir: str) -> Iterator[None]:
    import fcntl

    with open(lock, "a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed the file between our two calls.
            if os.fstat(handle.fileno()).st_ino != os.stat(lock).st_ino:
                raise BlockingIOError
        except OSError as error:
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            mend = "wait for it to end, stop it, or give another RUN_DIR"
            raise UserError(f"the run folder is in use by {owner}", run_dir, mend) from error
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield


def write_status(run_dir: str, state: str, reason: str, step: int) -> None:
    """status.json: state ("running", "preempted", "stopped" or "finished"), why, and the step it is true for.

    A run that was killed still says "running"; its folder's lock is free.
    """
    if is_main():
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = {"state": state, "reason": reason, "step": step, "time": when, "host": socket.gethostname()}
        paths.write_text(paths.join(run_dir, "status.json"), json.dumps(record, indent=1) + "\n")


def versions() -> dict[str, Any]:
    """What the run computes with: source, packages, flags, devices."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    devices = jax.devices()
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    return {
        "source": source_version(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": found,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "libtpu_args": os.environ.get("LIBTPU_INIT_ARGS", ""),
        "devices": {
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
            "slices": slices,
        },
        "runtime": str(devices[0].client.platform_version).splitlines()[0],
    }


def same_on_all_hosts() -> dict[str, str]:
    """What must be equal on all hosts of a run, by name; asks no device."""
    found = {"python": platform.python_version(), **_source()}
    for name in (*PACKAGES, "libtpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
        flags = (flag for flag in os.environ.get(name, "").split() if not flag.startswith("--xla_dump"))
        found[name] = " ".join(sorted(flags))
    return found


def _source() -> dict[str, str]:
    """The checkout's commit; no more, because byte-compiled or untracked files differ without meaning anything."""
    source = source_version(Path(__file__).resolve().parents[2])
    changed = f" with changes {source['diff_sha256'][:12]}" if source["diff_sha256"] else ""
    return {"commit of t_elaine": f"{str(source['commit'])[:12]}{changed}"} if source["commit"] else {}


def source_version(checkout: Path) -> dict[str, Any]:
    """Git commit of a checkout and the sha256 of its uncommitted changes; nulls where it is none (a wheel)."""

    def git(*arguments: str) -> bytes | None:
        try:
            done = subprocess.run(("git", "-C", str(checkout), *arguments), capture_output=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout

    if not (checkout / ".git").exists():
        return {"commit": None, "diff_sha256": None}
    commit, diff = git("rev-parse", "HEAD"), git("diff", "HEAD")
    digest = hashlib.sha256(diff).hexdigest() if diff else None
    return {"commit": commit.decode().strip() if commit else None, "diff_sha256": digest}


def write_records(run_dir: str, first: int, config_text: str, argv: Sequence[str], data: Mapping[str, Any]) -> None:
    """Save settings, versions, command, data digests; where an earlier start wrote otherwise, that is kept beside it.

    Args:
        run_dir: the run's folder.
        first: step this start begins at; names the older records (config.before-step-120.gin).
        config_text: operative settings.
        argv: arguments of the command.
        data: what the stores' manifests say.
    """
    records = {
        "config.gin": config_text,
        "versions.json": json.dumps(versions(), indent=1) + "\n",
        "command.txt": f"python -m t_elaine.train {shlex.join(argv)}\n",
        "data.json": json.dumps(data, indent=1, sort_keys=True) + "\n",
    }
    for name, text in records.items():
        old = _as_trained(run_dir, name, first)
        stem, _, end = name.partition(".")
        if old not in (None, text):
            paths.write_text(paths.join(run_dir, changes.kept_name(stem, first, end)), str(old))
        paths.write_text(paths.join(run_dir, name), text)
        for step in changes.kept_steps(paths.listing(run_dir), stem, end):
            if step > first:  # what came after is gone with its checkpoints
                paths.remove(paths.join(run_dir, changes.kept_name(stem, step, end)))


def settings_before(run_dir: str, first: int) -> str:
    """The settings that trained up to the step that this start begins at; "" where none are recorded."""
    return _as_trained(run_dir, "config.gin", first) or ""


def _as_trained(run_dir: str, name: str, first: int) -> str | None:
    """The record that held up to step `first`; None if there is none.

    It is the newest, unless starts from here, or from later steps whose checkpoints are gone, stand between.
    """
    stem, _, end = name.partition(".")
    for step in changes.kept_steps(paths.listing(run_dir), stem, end):
        if step >= first:
            return paths.read_text(paths.join(run_dir, changes.kept_name(stem, step, end)))
    path = paths.join(run_dir, name)
    return paths.read_text(path) if paths.exists(path) else None


def copy_folder(source: str, target: str) -> None:
    """Copy the files of a folder and of those in it, local or remote; what has their names is written over."""
    paths.make_folder(target)
    for name in paths.listing(source):
        path, to = paths.join(source, name), paths.join(target, name)
        if paths.is_folder(path):
            copy_folder(path, to)
        else:
            paths.send(path, to)


def config_hash(text: str) -> str:
    """sha256 of the operative settings."""
    return hashlib.sha256(text.encode()).hexdigest()
