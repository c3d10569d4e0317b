"""paths.py on an object store: the same answers as on a disk, patience with 429 and 503, clear words where it ends."""

from pathlib import Path

import pytest

from t_elaine import paths
from t_elaine.errors import UserError
from tests.storage.bucket import Bucket


@pytest.fixture(params=["local", "remote"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket").url


def test_a_folder_there_is_like_a_folder_here(root: str) -> None:
    folder = paths.join(root, "run")
    paths.make_folder(folder)
    assert paths.listing(folder) == [] and paths.listing(paths.join(root, "none")) == []
    paths.make_folder(paths.join(folder, "deep"))
    paths.write_text(paths.join(folder, "a.txt"), "ein Wörtchen\n")
    paths.write_text(paths.join(folder, "a.txt"), "zwei Wörtchen\n")
    paths.write_text(paths.join(folder, "deep", "b.txt"), "")
    assert paths.listing(folder) == ["a.txt", "deep"]
    assert paths.read_text(paths.join(folder, "a.txt")) == "zwei Wörtchen\n"
    assert paths.size(paths.join(folder, "a.txt")) == 15
    assert paths.read_range(paths.join(folder, "a.txt"), 5, 7) == b"W" + b"\xc3"
    assert paths.exists(folder) and paths.is_folder(folder) and not paths.is_folder(paths.join(folder, "a.txt"))
    assert not paths.exists(paths.join(folder, "b.txt"))
    with paths.open_file(paths.join(folder, "c.bin"), "wb") as handle:
        handle.write(bytes(range(256)) * 100)
    with paths.open_file(paths.join(folder, "c.bin")) as handle:
        handle.seek(300)
        assert handle.read(3) == bytes([44, 45, 46])
    with pytest.raises(FileNotFoundError):
        paths.read_text(paths.join(folder, "missing"))
    paths.remove(paths.join(folder, "a.txt"))
    assert paths.listing(folder) == ["c.bin", "deep"]


def test_files_are_sent_there_and_brought_here(root: str, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(bytes(range(256)) * 40_000)
    for parts in (("sent", "a"), ("sent", "deep", "b")):
        paths.make_folder(paths.join(root, *parts[:-1]))
        paths.send(tmp_path / "here", paths.join(root, *parts))
    folder, file = (Path(paths.brought_here(paths.join(root, *parts))) for parts in (("sent",), ("sent", "a")))
    assert file.name == "a"
    for copy in (file, folder / "a", folder / "deep" / "b"):
        assert copy.read_bytes() == (tmp_path / "here").read_bytes()
    if paths.is_remote(root):
        found = {name: info["size"] for name, info in paths.files_below(paths.join(root, "sent")).items()}
        assert found == {"a": 256 * 40_000, "deep/b": 256 * 40_000} and paths.files_below(f"{root}/none") == {}
        with pytest.raises(FileNotFoundError):
            paths.brought_here(f"{root}/none")


def test_a_file_is_created_once(root: str) -> None:
    path = paths.join(root, "lease")
    assert paths.create_text(path, "mine") and not paths.create_text(path, "theirs")
    assert paths.read_text(path) == "mine"


def test_what_another_process_writes_is_seen_at_once(bucket: Bucket) -> None:
    """gcsfs would keep listings for itself."""
    import gcsfs

    path = f"{bucket.url}/seen/x"
    assert not paths.exists(path) and paths.listing(f"{bucket.url}/seen") == []
    gcsfs.GCSFileSystem(skip_instance_cache=True).pipe_file(path, b"1")
    assert paths.exists(path) and paths.listing(f"{bucket.url}/seen") == ["x"]


@pytest.mark.parametrize("status", [429, 503])
def test_throttled_requests_are_made_again(bucket: Bucket, status: int) -> None:
    bucket.faults({"match": "POST .*upload", "status": status, "times": 2}, {"match": "GET", "status": status})
    paths.write_text(f"{bucket.url}/x", "there")
    assert paths.read_text(f"{bucket.url}/x") == "there"


def test_a_connection_cut_in_an_upload_leaves_the_old_file(bucket: Bucket) -> None:
    paths.write_text(f"{bucket.url}/x", "old")
    bucket.faults({"match": "POST .*upload", "cut": True, "times": 1})
    paths.write_text(f"{bucket.url}/x", "n" * 5000)
    assert paths.read_text(f"{bucket.url}/x") == "n" * 5000


@pytest.mark.parametrize("status", [403, 401])
def test_what_the_store_refuses_is_told(bucket: Bucket, status: int) -> None:
    bucket.faults({"match": ".", "status": status, "times": 10**6})
    with pytest.raises(UserError, match="the object store gave up") as told:
        paths.write_text(f"{bucket.url}/x", "no")
    assert told.value.where == f"{bucket.url}/x" and "permissions" in str(told.value.mend)
