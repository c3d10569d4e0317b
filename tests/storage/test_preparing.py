"""prepare with stores in an object store: the same files as on a disk, the manifest last, through kills and faults."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t_elaine import paths
from t_elaine.data.store import open_store, verify_store
from t_elaine.data.uploading import staging_folder, upload_store
from t_elaine.errors import UserError
from tests import tiny_runs
from tests.storage.bucket import Bucket


def prepare(bucket: Bucket, staging: Path, kill_at: str = "") -> tuple[int, str]:
    stores = f"{bucket.url}/stores"
    command = [sys.executable, "-m", "t_elaine.prepare", "--tasks=samples_en", "--vocabulary={samples}"]
    command += [f"--stores={stores}", f"--gin.prepare.staging='{staging}'", "--shards=2", "--workers=1"]
    environment = os.environ | {"T_ELAINE_KILL_AT": kill_at}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_command_goes_on_after_a_kill_in_the_upload(bucket: Bucket, tmp_path: Path) -> None:
    bucket.faults({"match": "POST .*upload", "status": 503, "times": 1})
    assert prepare(bucket, tmp_path, "prepare.mid_upload:2")[0] == -9
    far = f"{bucket.url}/stores/samples_en"
    assert not paths.exists(f"{far}/manifest.json") and paths.listing(far)
    with pytest.raises(UserError, match="not a finished store"):
        open_store(far)
    code, output = prepare(bucket, tmp_path)
    assert code == 0 and "up to date, nothing to do" in output, output
    verify_store(far)
    here = staging_folder(f"{bucket.url}/stores", str(tmp_path)) / "samples_en"
    for file in (p for p in here.rglob("*") if p.is_file()):
        with paths.open_file(paths.join(far, file.relative_to(here).as_posix())) as handle:
            assert handle.read() == file.read_bytes()


def test_a_killed_upload_goes_on_where_it_was(bucket: Bucket, tmp_path: Path) -> None:
    folder, said = tiny_runs.make_store(tmp_path / "s"), list[str]()
    far = f"{bucket.url}/s"
    upload_store(folder, far, False, said.append)
    paths.remove(f"{far}/manifest.json")
    paths.remove(f"{far}/vocabulary/vocabulary.json")
    upload_store(folder, far, False, said.append)
    upload_store(folder, far, False, said.append)
    assert [text.split(": ", 1)[1].split(",")[0] for text in said] == [
        "4 of 4 files to upload", "1 of 4 files to upload", "up to date",
    ]  # fmt: skip
    last = [line for line in bucket.seen() if "upload" in line and "POST" in line][-1]
    verify_store(far)
    assert last


def test_another_store_is_not_replaced_unasked(bucket: Bucket, tmp_path: Path) -> None:
    one, other = (tiny_runs.make_store(tmp_path / name / "s", documents=n) for name, n in (("a", 50), ("b", 60)))
    far = f"{bucket.url}/s"
    upload_store(one, far, False, print)
    paths.write_text(f"{far}/left-over.arrow", "x")
    with pytest.raises(UserError, match="another store 's' is there"):
        upload_store(other, far, False, print)
    verify_store(far)
    upload_store(other, far, True, print)
    verify_store(far)
    assert "left-over.arrow" not in paths.listing(far)


def test_what_the_bucket_refuses_is_told(bucket: Bucket, tmp_path: Path) -> None:
    bucket.faults({"match": "POST .*upload", "status": 403, "times": 10**6})
    with pytest.raises(UserError, match="the object store gave up"):
        upload_store(tiny_runs.make_store(tmp_path / "s"), f"{bucket.url}/s", False, print)
    assert not paths.exists(f"{bucket.url}/s/manifest.json")
