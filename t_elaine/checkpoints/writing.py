"""Writing checkpoints: Orbax's `CheckpointManager` in the background, then digests, then pruning.

A checkpoint counts only once its digests are there. The two newest that count are never removed. Nothing is read here.
"""

import contextlib
import dataclasses
import errno
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from t_elaine import paths
from t_elaine.checkpoints import layout, verify
from t_elaine.checkpoints.arrays import TreeHandler, TreeSave, orbax_path, save_args
from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.checkpoints.produced import Produced
from t_elaine.errors import NO_ROOM, UserError
from t_elaine.faults import fault_point
from t_elaine.parallel import agreement

SPARE = 16 << 20  # records, digests, the file system's own
SEAL_SECONDS = 600.0  # for other processes to write their digests
NO_SPACE = ("no space left", "disk quota", "file too large", "resource_exhausted")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """When checkpoints are written and which are kept.

    Args:
        every: steps between checkpoints (the last step is always saved).
        keep: newest complete ones kept; at least 2, so that a damaged one has another behind it.
        permanent_every: steps between checkpoints that are never removed; None: none is permanent.
        asynchronous: write in the background while training goes on.
    """

    every: int = 500
    keep: int = 2
    permanent_every: int | None = None
    asynchronous: bool = True

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("keep", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}", "Checkpointing", f"give at least {least}")
        if self.permanent_every is not None and self.permanent_every < 1:
            raise UserError(f"permanent_every is {self.permanent_every}", "Checkpointing", "give None or at least 1")


class Checkpoints:
    """The writer of one run. Use as a context manager, so that a save in flight is finished or its error told."""

    def __init__(self, run_dir: str, settings: Checkpointing, say: Callable[[str], None] = print) -> None:
        """Open a run's checkpoints for writing; what an earlier process left half done is removed."""
        self._run_dir, self._settings, self._say = run_dir, settings, say
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._failed = False
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(one_voice())
        folder = layout.checkpoints_dir(run_dir)
        if jax.process_index() == 0:
            for step in layout.incomplete_steps(run_dir):
                say(f"removing checkpoint {step}: it was never completed")
                remove(layout.step_dir(run_dir, step))
            for name in paths.listing(folder):
                if ".deleting-" in name or "orbax-checkpoint-tmp" in name:
                    remove(paths.join(folder, name))
        paths.make_folder(folder)
        agreement.wait_for_all("checkpoints folder")  # none lists it before it is clean
        self._manager = ocp.CheckpointManager(
            orbax_path(folder),
            item_handlers={
                layout.PARAMS: TreeHandler(),
                layout.OPTIMIZER: TreeHandler(),
                layout.META: ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(enable_async_checkpointing=settings.asynchronous),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        failed: UserError | None = None
        try:
            self.wait()
        except UserError as error:
            failed = error
        try:
            self._manager.close()
        except (OSError, ValueError, RuntimeError, *paths.store_errors()) as error:  # type: ignore[misc]
            if not self._failed:  # the manager tells a failed save again
                failed = UserError(f"the last checkpoint could not be saved: {error}", self._run_dir)
        if kind is not None:  # an interrupt may have cut the save off from the threads that write for it
            wait_for_writers()
        self._quiet.close()
        if failed is not None and kind is None:
            raise failed
        if failed is not None:
            self._say(failed.text())  # what ended the run is told by the exception already on its way

    def due(self, step: int) -> bool:
        """True if a checkpoint belongs at this step."""
        permanent = self._settings.permanent_every
        return step % self._settings.every == 0 or (permanent is not None and step % permanent == 0)

    def save(self, params: Any, meta: CheckpointMeta, optimizer: Any = None) -> None:
        """Start saving. Returns when the arrays are copied from the devices; waits for the save before it, if any.

        Args:
            params: tree of float32 arrays.
            meta: its `step` names the folder.
            optimizer: tree of arrays (moments and counters), None for parameters alone.

        Raises:
            UserError: this save could not start, or the one before could not be finished (for example a full disk).
        """
        self.wait()
        fault_point("checkpoint.before_save")
        self._check_space((params, optimizer), meta.step)
        meta = dataclasses.replace(meta, has_optimizer=optimizer is not None)
        items = {
            layout.PARAMS: TreeSave(params, save_args=save_args(params)),
            layout.META: ocp.args.JsonSave(meta.to_dict()),
        }
        if optimizer is not None:
            items[layout.OPTIMIZER] = TreeSave(optimizer, save_args=save_args(optimizer))
        try:
            self._manager.save(meta.step, args=ocp.args.Composite(**items), force=True)
        except (OSError, ValueError, RuntimeError, *paths.store_errors()) as error:  # type: ignore[misc]
            raise self._explained(error, meta.step) from error
        self._thread = threading.Thread(target=self._finish, args=(meta.step,), name="seal checkpoint")
        self._thread.start()
        if not self._settings.asynchronous:
            self.wait()

    def _check_space(self, tree: Any, step: int) -> None:
        """Refuse to begin a save that the disk cannot hold: as long as nothing is written, nothing is half written."""
        if paths.is_remote(self._run_dir):
            return
        wanted = sum(held_bytes(leaf) for leaf in jax.tree.leaves(tree)) + SPARE
        free = shutil.disk_usage(layout.checkpoints_dir(self._run_dir)).free
        if free < wanted:
            raise self._explained(OSError(errno.ENOSPC, f"{wanted:,} bytes are needed, {free:,} are free"), step)

    def wait(self) -> None:
        """Wait until the save in flight is complete, digests included. Raises UserError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _finish(self, step: int) -> None:
        try:
            self._manager.wait_until_finished()
            folder = layout.step_dir(self._run_dir, step)
            fault_point("checkpoint.before_digests")
            if jax.process_index():  # the folder gets its name on process 0
                verify.await_files([paths.join(folder, layout.META)], SEAL_SECONDS)
            verify.seal(folder, jax.process_index(), jax.process_count(), SEAL_SECONDS)
            fault_point("checkpoint.after_digests")
            if jax.process_index() == 0:
                self._prune()
        except (OSError, ValueError, RuntimeError, *paths.store_errors()) as error:  # type: ignore[misc]
            self._error = self._explained(error, step)
        except UserError as error:
            self._error = error

    def _prune(self) -> None:
        permanent = self._settings.permanent_every
        for step in layout.complete_steps(self._run_dir)[: -self._settings.keep]:
            if permanent is None or step % permanent:
                remove(layout.step_dir(self._run_dir, step))

    def _explained(self, error: Exception, step: int) -> UserError:
        """The failed save as a message; its half-written folder is removed, the earlier checkpoints are untouched."""
        self._failed, where = True, layout.step_dir(self._run_dir, step)
        wait_for_writers()
        there = layout.complete_steps(self._run_dir)
        kept = f"checkpoint {there[-1]} is intact" if there else "no earlier checkpoint exists"
        names = paths.listing(layout.checkpoints_dir(self._run_dir)) if jax.process_index() == 0 else []
        for name in names:
            if name == str(step) or name.startswith(f"{step}.orbax-checkpoint-tmp"):
                remove(paths.join(layout.checkpoints_dir(self._run_dir), name))
        if disk_full(error):
            figures = f" ({error.strerror})" if isinstance(error, OSError) and error.errno == errno.ENOSPC else ""
            what = f"no space left while saving checkpoint {step}{figures}; {kept}"
            return UserError(what, where, "free space or take another RUN_DIR, then start the same command again")
        mend = "look at bucket, permissions and network" if paths.is_remote(where) else "look at the folder's disk"
        return UserError(f"checkpoint {step} could not be saved: {error}; {kept}", where, mend)


def wait_for_writers(seconds: float = 60.0) -> None:
    """Wait until Orbax's threads have ended: after a failed write of one item it still writes the others."""
    end = time.monotonic() + seconds
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            threading.Thread.join(thread, max(0.0, end - time.monotonic()))  # its own join() raises what it failed with


def held_bytes(leaf: Any) -> int:
    """Bytes of an array that this host will write: its devices' pieces, each copied piece once."""
    if not isinstance(leaf, jax.Array):
        return int(leaf.nbytes if isinstance(leaf, Produced) else np.asarray(leaf).nbytes)
    return sum(shard.data.nbytes for shard in leaf.addressable_shards if shard.replica_id == 0)


@contextmanager
def one_voice() -> Iterator[None]:
    """While inside, what Orbax and TensorStore print beside the exception they raise for a failed save is not shown.

    Orbax logs the traceback; TensorStore's threads print "Event loop is closed" once for each write still under way;
    asyncio tells of each other write that failed too, when the garbage collector finds it, which may be after the end.
    """
    before, logger = sys.unraisablehook, logging.getLogger("absl")

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
    logger.addFilter(no_traceback)
    logging.getLogger("asyncio").addFilter(no_lost_write)  # it stays: see above
    try:
        yield
    finally:
        sys.unraisablehook = before
        logger.removeFilter(no_traceback)


def no_traceback(record: logging.LogRecord) -> bool:
    """Log filter: False for tracebacks that Orbax logs."""
    return not (record.exc_info and "orbax" in record.pathname)


def no_lost_write(record: logging.LogRecord) -> bool:
    """Log filter: False for asyncio's word of a failed write of a checkpoint that nobody waited for."""
    text = record.getMessage()
    return not ("exception was never retrieved" in text and "OCDBT" in text)


def disk_full(error: BaseException) -> bool:
    """True if an exception, or one that it came from, means that the disk is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in NO_ROOM | {errno.EFBIG}:
            return True
        if any(sign in str(seen).lower() for sign in NO_SPACE):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def remove(folder: str) -> None:
    """Remove a checkpoint's folder; it never looks complete in between (renamed first; remotely digests go first)."""
    if paths.is_remote(folder):
        fs = paths.filesystem(folder)
        marker = paths.join(folder, layout.DIGESTS)
        if fs.exists(marker):
            fs.rm_file(marker)
        fs.rm(folder, recursive=True)
        return
    head, name = os.path.split(folder)
    doomed = os.path.join(head, f".deleting-{name}")
    if os.path.exists(doomed):
        shutil.rmtree(doomed)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def set_aside(run_dir: str, step: int) -> str:
    """Move a damaged checkpoint out of the way, to RUN_DIR/damaged/; returns where it went."""
    there = paths.join(run_dir, "damaged")
    paths.make_folder(there)
    name, count = str(step), 1
    while paths.exists(paths.join(there, name)):
        name, count = f"{step}-{count}", count + 1
    target = paths.join(there, name)
    if paths.is_remote(run_dir):
        paths.filesystem(run_dir).mv(layout.step_dir(run_dir, step), target, recursive=True)
    else:
        os.rename(layout.step_dir(run_dir, step), target)
    return target


def save_params(run_dir: str, step: int, params: Any, meta: CheckpointMeta) -> None:
    """Write parameters alone as a complete checkpoint (an imported or merged model), and wait for it.

    Args:
        run_dir: the run folder to write into.
        step: names the checkpoint; `meta.step` is set to it.
        params: tree of jax arrays, of numpy arrays (which lie whole on this host), or of `Produced` ones.
        meta: the record.

    Raises:
        UserError: the disk is full, or a checkpoint of this step is already there.
    """
    if step in layout.complete_steps(run_dir):
        raise UserError(f"checkpoint {step} is already there", layout.step_dir(run_dir, step), "give another folder")
    with Checkpoints(run_dir, Checkpointing(asynchronous=False)) as checkpoints:
        checkpoints.save(params, dataclasses.replace(meta, step=step))
