"""Folders that appear whole or not at all: built under a hidden name beside their target, renamed when all is well.

For what import and export make; it knows nothing of what is in them.
"""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t_elaine import paths
from t_elaine.errors import NO_ROOM, UserError
from t_elaine.faults import fault_point

SPARE_BYTES = 64 << 20


def refuse_existing(there: bool, to: str, overwrite: bool) -> None:
    """Raise UserError if the target is there and may not be replaced."""
    if there and not overwrite:
        raise UserError("the target is already there", to, "give another --to=, or --overwrite to replace it")


@contextmanager
def new_folder(to: str, overwrite: bool, needed: int, command: str) -> Iterator[Path]:
    """A local folder to fill; it takes the name `to` if the block ends well, and vanishes if not.

    Args:
        to: the local target; with `overwrite` an older one stays until the new one is whole.
        overwrite: replace what is there.
        needed: bytes that will be written; refused at once where they do not fit.
        command: names the fault points.

    Raises:
        UserError: the target is there, or the disk is full.
    """
    target = Path(os.path.abspath(to))
    building = target.parent / f".{target.name}.building"
    replaced = target.parent / f".{target.name}.replaced"
    _undo(target, building, replaced)
    refuse_existing(target.exists(), to, overwrite)
    paths.make_folder(target.parent)
    free = shutil.disk_usage(target.parent).free
    if free < needed + SPARE_BYTES:
        raise no_space(to, f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free")
    try:
        building.mkdir()
        yield building
        flush(building)
        fault_point(f"{command}.before_rename")
        if target.exists():
            target.rename(replaced)
            fault_point(f"{command}.between_renames")
        building.rename(target)
        fault_point(f"{command}.after_rename")
    except OSError as problem:
        if problem.errno in NO_ROOM | {errno.EFBIG}:
            raise no_space(to, os.strerror(problem.errno)) from problem
        raise
    finally:
        _undo(target, building, replaced)


def _undo(target: Path, building: Path, replaced: Path) -> None:
    """Clear what a command that ended at any moment left: one whole target, no hidden folder."""
    remove(building)
    if replaced.exists() and not target.exists():
        replaced.rename(target)  # it ended between the two renames
    elif replaced.exists():
        replaced.rename(building)  # a kill while it is removed must not leave half of it under a name that is restored
        remove(building)


def remove(folder: Path, seconds: float = 10.0) -> None:
    """Remove a folder if it is there, also one into which the threads of an interrupted save still write."""
    deadline = time.monotonic() + seconds
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError as problem:
            if problem.errno not in (errno.ENOTEMPTY, errno.ENOENT) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def flush(folder: Path) -> None:
    """Bring the folder's files to the disk before it gets its name."""
    for path in (folder, *folder.rglob("*")):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def copy_into(source: Path, to: str, last: str) -> None:
    """Copy a local folder's files to a local or remote one; `last` goes last, so that a folder with it is whole."""
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for file in sorted(files, key=lambda file: file.as_posix() == last):
        paths.make_folder(paths.join(to, *file.parent.parts))
        paths.send(source / file, paths.join(to, *file.parts))


def no_space(to: str, why: str) -> UserError:
    """The disk is full."""
    return UserError(f"the disk is full ({why}); nothing was left behind", to, "free space, or choose another disk")
