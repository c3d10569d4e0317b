"""A finished store → an object store: its files, several at once, the manifest last; what is there already stays.

It begins where preparation ends, with a store on a disk, so that a kill at any moment costs the files in flight alone.
"""

import base64
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from t_elaine import paths
from t_elaine.data.store import MANIFEST, read_manifest
from t_elaine.errors import UserError
from t_elaine.faults import fault_point

UPLOADS = 8  # at the same time


def staging_folder(stores: str, staging: str) -> Path:
    """The local folder in which stores for an object store are made: the same one at each call with `stores`."""
    digest = hashlib.sha256(stores.rstrip("/").encode()).hexdigest()[:12]
    return Path(os.path.expanduser(staging), f"{stores.rstrip('/').rsplit('/', 1)[-1]}-{digest}")


def upload_store(folder: Path, to: str, overwrite: bool, say: Callable[[str], None]) -> None:
    """Upload a store; called again after a kill, it goes on.

    Args:
        folder: a finished store.
        to: its address there.
        overwrite: replace another store of that name.
        say: takes messages.

    Raises:
        UserError: another store is there, or the object store refuses.
    """
    manifest = (folder / MANIFEST).read_text(encoding="utf-8")
    marker = paths.join(to, MANIFEST)
    if paths.exists(marker):
        if paths.read_text(marker) == manifest:
            say(f"{to}: up to date")
            return
        if not overwrite:
            mend = "give another stores=, or --overwrite to replace it"
            raise UserError(f"another store {read_manifest(to)['name']!r} is there", to, mend)
        paths.remove(marker)  # from here on no reader takes it for whole
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    # "" where the object store knows no MD5
    there = {name: str(info.get("md5Hash", "")) for name, info in paths.files_below(to).items()}
    waiting = [file for file in files if there.get(file.as_posix()) != _md5(folder / file)]
    total = sum((folder / file).stat().st_size for file in waiting)
    say(f"{to}: {len(waiting)} of {len(files)} files to upload, {total / 1e9:.3f} GB")
    with ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload") as pool:
        for _ in pool.map(lambda file: paths.send(folder / file, paths.join(to, *file.parts)), waiting):
            fault_point("prepare.mid_upload")
    for name in sorted(set(there) - {file.as_posix() for file in files} - {MANIFEST}):
        paths.remove(paths.join(to, name))  # of the store before
    fault_point("prepare.before_upload_marker")
    paths.write_text(marker, manifest)


def _md5(path: Path) -> str:
    with open(path, "rb") as handle:
        return base64.b64encode(hashlib.file_digest(handle, "md5").digest()).decode()
