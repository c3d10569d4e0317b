"""Paths: the only file that knows a local folder from an object store, and where the shipped files lie.

Local paths are plain strings or `pathlib.Path`; anything with a scheme (`gs://…`, `memory://…`) goes through fsspec.
Nothing here imports TensorFlow.
"""

import os
import re
import sys
from pathlib import Path
from typing import IO, Any

import fsspec

from t_elaine.errors import UserError

PathLike = str | os.PathLike[str]


def is_remote(path: PathLike) -> bool:
    """True for paths with a scheme other than file://."""
    text = os.fspath(path)
    return "://" in text and not text.startswith("file://")


def join(path: PathLike, *parts: str) -> str:
    """Join path parts with one slash, for local and remote paths alike."""
    return "/".join([os.fspath(path).rstrip("/") or "/", *(part.strip("/") for part in parts)])


def filesystem(path: PathLike) -> Any:
    """The fsspec file system that `path` lies in."""
    return fsspec.core.url_to_fs(os.fspath(path))[0]


def open_file(path: PathLike, mode: str = "rb") -> IO[Any]:
    """Open a local or remote file; text modes are UTF-8."""
    text = os.fspath(path)
    if not is_remote(text):
        return open(text, mode, encoding=None if "b" in mode else "utf-8")
    return fsspec.open(text, mode, encoding=None if "b" in mode else "utf-8").open()


def exists(path: PathLike) -> bool:
    """True if a file or folder is there."""
    return bool(filesystem(path).exists(os.fspath(path))) if is_remote(path) else os.path.exists(path)


def listing(path: PathLike) -> list[str]:
    """Names (not paths) in a folder, sorted; empty if there is no such folder."""
    if not is_remote(path):
        return sorted(os.listdir(path)) if os.path.isdir(path) else []
    fs = filesystem(path)
    if not fs.exists(os.fspath(path)):
        return []
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(os.fspath(path), detail=False))


def make_folder(path: PathLike) -> None:
    """Make a folder and its parents; object stores have no folders, so nothing happens there.

    Raises:
        UserError: the system has no such place (a drive that is not mounted, a path inside /proc).
    """
    if is_remote(path):
        return
    try:
        os.makedirs(path, exist_ok=True)
    except FileNotFoundError as error:
        raise UserError("no folder can be made there", os.fspath(path), "name another path") from error


def read_text(path: PathLike) -> str:
    """The whole file as UTF-8 text."""
    with open_file(path, "r") as handle:
        return str(handle.read())


def write_text(path: PathLike, text: str) -> None:
    """Write a file whole or not at all: locally a temporary name, flushed, then renamed; remotely one upload."""
    if is_remote(path):
        with open_file(path, "w") as handle:
            handle.write(text)
        return
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".writing-{os.getpid()}-{name}")
    try:
        with open(temporary, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = os.fspath(path)  # a full disk names no file, the others the temporary one
        raise
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def remove(path: PathLike) -> None:
    """Remove a local or remote file."""
    if is_remote(path):
        filesystem(path).rm_file(os.fspath(path))
    else:
        os.unlink(path)


def clear_half_written(folder: PathLike) -> None:
    """Remove what `write_text` of processes of this machine left in a local folder when they were killed."""
    for name in listing(folder):
        found = re.match(r"\.writing-(\d+)-", name)
        if found and not _runs(int(found.group(1))):
            os.unlink(join(folder, name))


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def is_held(folder: PathLike) -> bool:
    """True if a process holds the lock of a local folder (its file `.lock`); it is not waited for."""
    import fcntl

    try:
        handle = open(join(folder, ".lock"))  # noqa: SIM115  closed below
    except (FileNotFoundError, NotADirectoryError):
        return False
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def shipped(name: str) -> Path:
    """The folder `gin_configs` or `data_tasks` as shipped: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "_shipped" / name
    return inside if inside.is_dir() else package.parent / name


def make_importable(name: str) -> None:
    """Let Python find a shipped folder as a package, behind everything else: a folder of the user's comes first."""
    folder = str(shipped(name).parent)
    if folder not in sys.path:
        sys.path.append(folder)
