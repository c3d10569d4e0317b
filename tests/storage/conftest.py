"""Fixtures: one object store for all tests (TensorStore reads its address once), a prefix of its own for each."""

from collections.abc import Iterator

import pytest

from tests.storage.bucket import Bucket, environment, running


@pytest.fixture(scope="session")
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
    GCSFileSystem.clear_instance_cache()
    store.faults()
    mine = Bucket(store.port)
    mine.url = f"{store.url}/{request.node.name.replace('[', '-').replace(']', '')}"
    yield mine
    store.faults()
    GCSFileSystem.clear_instance_cache()
