"""Paths: the only file that knows a local folder from an object store, and where the shipped files lie.

Local paths are plain strings or `pathlib.Path`; anything with a scheme (`gs://…`, `memory://…`) goes through fsspec.
Nothing here imports TensorFlow.
"""

import atexit
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec

from t_elaine.errors import UserError

PathLike = str | os.PathLike[str]
# Else gcsfs, once imported, asks by gRPC, with credentials of its own, what kind of bucket each path lies in.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# Whoever opens gs:// in this process, Orbax included: no listing is kept, since other hosts write there too.
fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False


def is_remote(path: PathLike) -> bool:
    """True for paths with a scheme other than file://."""
    text = os.fspath(path)
    return "://" in text and not text.startswith("file://")


def join(path: PathLike, *parts: str) -> str:
    """Join path parts with one slash, for local and remote paths alike."""
    return "/".join([os.fspath(path).rstrip("/") or "/", *(part.strip("/") for part in parts)])


def filesystem(path: PathLike) -> Any:
    """The fsspec file system that `path` lies in; UserError if there is none for such an address."""
    try:
        return fsspec.core.url_to_fs(os.fspath(path))[0]
    except (ValueError, ImportError) as error:
        mend = "give a local path or gs://BUCKET/PATH"
        raise UserError(f"no such kind of address is known: {error}", os.fspath(path), mend) from error


def store_errors() -> tuple[type[BaseException], ...]:
    """What an object store's client raises beside OSError, of the modules that are loaded."""
    names = (
        ("gcsfs.retry", "HttpError"),
        ("google.auth.exceptions", "GoogleAuthError"),
        ("google.api_core.exceptions", "GoogleAPIError"),
        ("aiohttp.client_exceptions", "ClientError"),
        ("requests.exceptions", "RequestException"),
    )
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)


@contextmanager
def answering(path: PathLike) -> Iterator[None]:
    """While inside, what the object store refuses, after all tries again, is a UserError that names the path."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except (OSError, *store_errors()) as error:  # type: ignore[misc]  # mypy wants a tuple that it can count
        if not is_remote(path):
            raise
        what = f"the object store gave up: {str(error).strip().splitlines()[0] if str(error).strip() else repr(error)}"
        mend = "check bucket, permissions (gcloud auth application-default login) and network, then start again"
        raise UserError(what, os.fspath(path), mend) from error


def open_file(path: PathLike, mode: str = "rb") -> IO[Any]:
    """Open a local or remote file; text modes are UTF-8. A remote file is there once it is closed, and then whole."""
    text = os.fspath(path)
    encoding = None if "b" in mode else "utf-8"
    if not is_remote(text):
        return open(text, mode, encoding=encoding)
    with answering(path):
        return filesystem(text).open(text, mode, **({} if encoding is None else {"encoding": encoding}))


def exists(path: PathLike) -> bool:
    """True if a file or folder is there."""
    if not is_remote(path):
        return os.path.exists(path)
    with answering(path):
        return bool(filesystem(path).exists(os.fspath(path)))


def is_folder(path: PathLike) -> bool:
    """True if a folder is there; in an object store, if some name begins with it."""
    if not is_remote(path):
        return os.path.isdir(path)
    with answering(path):
        return bool(filesystem(path).isdir(os.fspath(path)))


def size(path: PathLike) -> int:
    """Bytes of a file."""
    if not is_remote(path):
        return os.path.getsize(path)
    with answering(path):
        return int(filesystem(path).size(os.fspath(path)))


def sizes(folder: PathLike) -> dict[str, int]:
    """Bytes of each file of a folder (not of those in folders below), by name."""
    if not is_remote(folder):
        return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
    with answering(folder):
        entries = filesystem(folder).ls(os.fspath(folder), detail=True)
    return {e["name"].rsplit("/", 1)[-1]: int(e["size"]) for e in entries if e["type"] == "file"}


def read_range(path: PathLike, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file, in one request where it lies in an object store."""
    if not is_remote(path):
        with open(path, "rb") as handle:
            handle.seek(start)
            return handle.read(stop - start)
    with answering(path):
        return bytes(filesystem(path).cat_file(os.fspath(path), start=start, end=stop))


def file_sha256(path: PathLike) -> str:
    """The sha256, in hex, of a local or remote file, read in pieces."""
    with answering(path), open_file(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]


def listing(path: PathLike) -> list[str]:
    """Names (not paths) in a folder, sorted; empty if there is no such folder."""
    if not is_remote(path):
        return sorted(os.listdir(path)) if os.path.isdir(path) else []
    with answering(path):
        try:
            entries = filesystem(path).ls(os.fspath(path), detail=False)
        except FileNotFoundError:
            return []
    names = {entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries}
    return sorted(names - {os.fspath(path).rstrip("/").rsplit("/", 1)[-1]})


def files_below(folder: PathLike) -> dict[str, dict[str, Any]]:
    """What an object store knows of each file below a folder, by relative name; "" is a file of that very name."""
    with answering(folder):
        fs = filesystem(folder)
        root = fs._strip_protocol(os.fspath(folder)).rstrip("/")
        try:
            found = fs.find(root, detail=True)
        except FileNotFoundError:
            return {}
    return {name[len(root) + 1 :]: info for name, info in found.items()}


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
    if is_remote(path):
        with answering(path):
            return bytes(filesystem(path).cat_file(os.fspath(path))).decode("utf-8")
    with open_file(path, "r") as handle:
        return str(handle.read())


def write_text(path: PathLike, text: str) -> None:
    """Write a file whole or not at all: locally a temporary name, flushed, then renamed; remotely one upload."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: PathLike, content: bytes) -> None:
    """`write_text` of what is no text."""
    if is_remote(path):
        with answering(path):
            filesystem(path).pipe_file(os.fspath(path), content)
        return
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".writing-{os.getpid()}-{name}")
    try:
        with open(temporary, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = os.fspath(path)  # a full disk names no file, the others the temporary one
        raise
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def send(source: PathLike, to: PathLike) -> None:
    """Copy a file, from and to a disk or an object store."""
    with open_file(source) as incoming, answering(to), open_file(to, "wb") as sink:
        shutil.copyfileobj(incoming, sink, 1 << 22)


def create_text(path: PathLike, text: str) -> bool:
    """Write a file only where there is none yet; False if there is. Of several that try at once, one succeeds."""
    try:
        if is_remote(path):
            with answering(path):
                filesystem(path).pipe_file(os.fspath(path), text.encode("utf-8"), mode="create")
        else:
            with open(path, "x", encoding="utf-8") as handle:
                handle.write(text)
    except FileExistsError:
        return False
    return True


def remove(path: PathLike) -> None:
    """Remove a local or remote file."""
    if is_remote(path):
        with answering(path):
            filesystem(path).rm_file(os.fspath(path))
    else:
        os.unlink(path)


def remove_folder(path: PathLike) -> None:
    """Remove a local or remote folder with everything in it; one that is not there is no error."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif is_folder(path):
        with answering(path):
            filesystem(path).rm(os.fspath(path), recursive=True)


def brought_here(path: PathLike) -> str:
    """A local file or folder as it is; a remote one as a copy that vanishes with this process.

    Raises:
        FileNotFoundError: nothing lies there.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return text
    to = tempfile.mkdtemp(prefix="t-elaine-copy-")
    atexit.register(shutil.rmtree, to, ignore_errors=True)
    names, itself = files_below(text), os.path.join(to, text.rstrip("/").rsplit("/", 1)[-1])
    if not names:
        raise FileNotFoundError(text)
    with answering(text):
        for name in names:
            target = os.path.join(to, name) if name else itself
            os.makedirs(os.path.dirname(target), exist_ok=True)
            filesystem(text).get_file(join(text, name) if name else text, target)
    return itself if list(names) == [""] else to


def clear_half_written(folder: PathLike) -> None:
    """Remove what `write_text` of processes of this machine left in a local folder when they were killed."""
    for name in listing(folder):
        found = re.match(r"\.writing-(\d+)-", name)
        if found and not runs(int(found.group(1))):
            os.unlink(join(folder, name))


def runs(process: int) -> bool:
    """True if a process of this number runs on this machine."""
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
