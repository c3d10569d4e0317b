"""Digests of checkpoint files: written when a checkpoint is complete, compared before anything is loaded from it.

An Orbax data file with a flipped bit restores silently; only a digest tells. Each process answers for the files that it
wrote (`digests.json` by process 0, `digests.<p>.json` by process p), so that sealing needs no second reader.
"""

import json
import os
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from t_elaine import paths
from t_elaine.checkpoints.layout import DIGESTS
from t_elaine.errors import UserError

OF_PROCESS = re.compile(r"(?:^|/)(?:ocdbt\.)?process_(\d+)(?:/|$)")
DIGEST_NAME = re.compile(r"digests(\.\d+)?\.json")


def files_under(folder: str) -> list[str]:
    """Relative paths of every file under `folder`, sorted; digests and unfinished files left out."""
    if paths.is_remote(folder):
        names = list(paths.files_below(folder))
    else:
        names = [
            os.path.relpath(os.path.join(base, name), folder).replace(os.sep, "/")
            for base, _, files in os.walk(folder)
            for name in files
        ]
    return sorted(n for n in names if not DIGEST_NAME.fullmatch(n) and not os.path.basename(n).startswith(".writing-"))


def writer_of(name: str, processes: int) -> int:
    """The process that wrote a file of a checkpoint: Orbax names its own parts, the rest is process 0's."""
    match = OF_PROCESS.search(name)
    return int(match.group(1)) if match and int(match.group(1)) < processes else 0


def digest_file(process: int) -> str:
    """The name of the digests that one process writes."""
    return DIGESTS if process == 0 else f"digests.{process}.json"


def seal(folder: str, process: int = 0, processes: int = 1, wait_seconds: float = 600.0) -> None:
    """Write the digests of this process's files; process 0 waits for the others and writes last.

    Raises:
        UserError: another process did not write its digests in `wait_seconds`.
    """
    names = [name for name in files_under(folder) if writer_of(name, processes) == process]
    record = {"processes": processes, "files": digests(folder, names)}
    if process == 0:
        await_files([paths.join(folder, digest_file(p)) for p in range(1, processes)], wait_seconds)
    paths.write_text(paths.join(folder, digest_file(process)), json.dumps(record, indent=0, sort_keys=True))


def await_files(wanted: Iterable[str], wait_seconds: float) -> None:
    """Wait until all files are there."""
    deadline = time.monotonic() + wait_seconds
    for path in wanted:
        while not paths.exists(path):
            if time.monotonic() > deadline:
                raise UserError(f"no digests appeared in {wait_seconds:.0f} s", path, "look at that host's log")
            time.sleep(0.05)


def digests(folder: str, names: list[str]) -> dict[str, dict[str, object]]:
    """Size and sha256 by name; files are hashed four at a time, since hashing frees the interpreter."""

    def look(name: str) -> dict[str, object]:
        path = paths.join(folder, name)
        return {"bytes": paths.size(path), "sha256": paths.file_sha256(path)}

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(look, names), strict=True))


def recorded(folder: str) -> dict[str, dict[str, object]]:
    """The digests that were written with a checkpoint, of all processes.

    Raises:
        UserError: a digest file is missing or is not JSON.
    """
    where, files = paths.join(folder, DIGESTS), {}
    try:
        first = json.loads(paths.read_text(where))
        files.update(first["files"])
        for process in range(1, int(first["processes"])):
            where = paths.join(folder, digest_file(process))
            files.update(json.loads(paths.read_text(where))["files"])
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise UserError(f"the digests cannot be read: {error!r}", where, "take another checkpoint") from error
    return files


def faults(folder: str, items: tuple[str, ...] | None = None, share: tuple[int, int] = (0, 1)) -> list[str]:
    """What differs from the digests: one line a fault, empty when all is well.

    Args:
        folder: a checkpoint's folder.
        items: only these subfolders (for example ("params", "meta")); None: everything.
        share: (i, n): check only every n-th file from the i-th, so that n hosts share the reading.
    """
    wanted = {n: entry for n, entry in recorded(folder).items() if items is None or n.split("/")[0] in items}
    here = {name for name in files_under(folder) if items is None or name.split("/")[0] in items}
    mine = sorted(wanted)[share[0] :: share[1]]
    lines = [f"{name}: missing" for name in mine if name not in here]
    lines += [f"{name}: not in the digests" for name in sorted(here - set(wanted))]
    for name, found in digests(folder, [name for name in mine if name in here]).items():
        if found["bytes"] != wanted[name]["bytes"]:
            lines.append(f"{name}: {found['bytes']} bytes, {wanted[name]['bytes']} were written")
        elif found["sha256"] != wanted[name]["sha256"]:
            lines.append(f"{name}: sha256 differs (a flipped bit or another file)")
    return lines
