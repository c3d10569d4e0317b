"""Fixtures: an object store of its own for each test file, named by environment variables for this process too."""

from collections.abc import Iterator

import fsspec
import pytest

from tests.storage.bucket import Bucket, environment, running


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    pytest.importorskip("gcp_storage_emulator", reason="the extra `test` is not installed")
    with running(str(tmp_path_factory.mktemp("objects"))) as made:
        yield made


@pytest.fixture
def bucket(store: Bucket, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Bucket]:
    """The store without faults; `bucket.url` is a prefix that only this test uses."""
    from gcsfs import GCSFileSystem

    for name, value in environment(store.port).items():
        monkeypatch.setenv(name, value)
    fsspec.core.url_to_fs  # noqa: B018
    GCSFileSystem.clear_instance_cache()
    store.faults()
    mine = Bucket(store.port)
    mine.url = f"{store.url}/{request.node.name.replace('[', '-').replace(']', '')}"
    yield mine
    store.faults()
    GCSFileSystem.clear_instance_cache()
