"""Token stores in an object store: the same rows as from a disk, by ranged requests made ahead of their turn."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from t_elaine import paths
from t_elaine.data.arrow_layout import layout
from t_elaine.data.loader import AHEAD, Loader, open_mixture
from t_elaine.data.mixture import Mixture
from t_elaine.data.remote import CHUNK, LazyTokens, TokenCache
from t_elaine.data.store import open_store, verify_store
from t_elaine.data.validation import validation_rows
from t_elaine.errors import UserError
from t_elaine.hf.folders import copy_into
from tests import tiny_runs
from tests.storage.bucket import Bucket


def uploaded(bucket: Bucket, folder: Path) -> str:
    to = f"{bucket.url}/{folder.name}"
    copy_into(folder, to, last="manifest.json")
    return to


def mixture(*stores: str | Path, **changes: object) -> Mixture:
    return Mixture(stores=[str(s) for s in stores], sequence_length=16, batch_tokens=128, **changes)  # type: ignore


@pytest.mark.parametrize("documents", [0, 3, 150])
def test_the_place_of_the_tokens_is_where_arrow_has_them(tmp_path: Path, documents: int) -> None:
    folder = tiny_runs.make_store(tmp_path / "s", documents=documents)
    path = folder / "train-00000-of-00001.arrow"
    content = path.read_bytes()
    found, rest = layout(lambda spans: [content[a:b] for a, b in spans], len(content), "here")
    batches = open_store(folder).batches("train")
    assert len(found) == len(batches) and (not documents or sum(b.docs for b in batches) == documents)
    for (start, stop), batch in zip(found, batches, strict=True):
        assert np.array_equal(np.frombuffer(content[start:stop], np.uint32), batch.tokens)
    holed = bytearray(len(content))
    for place, piece in rest:
        holed[place : place + len(piece)] = piece
    lost = sum(a != b for a, b in zip(content, holed, strict=True))
    assert 0 <= lost <= 4 * sum(len(b.tokens) for b in batches)
    assert pa.ipc.open_file(pa.py_buffer(bytes(holed))).num_record_batches == len(batches)


def test_a_file_cut_short_is_told(tmp_path: Path) -> None:
    folder = tiny_runs.make_store(tmp_path / "s")
    content = (folder / "train-00000-of-00001.arrow").read_bytes()
    for size in (0, 5, 11, len(content) // 2, len(content) - 1):
        with pytest.raises(UserError, match="cannot be read as an Arrow file"):
            layout(lambda spans, end=size: [content[:end][max(a, 0) : b] for a, b in spans], size, "here")  # type: ignore


@pytest.mark.parametrize("packing", ["split", "whole"])
def test_batches_are_bitwise_those_from_the_disk(bucket: Bucket, tmp_path: Path, packing: str) -> None:
    folders = [tiny_runs.make_store(tmp_path / name, documents=400) for name in ("one", "two")]
    far = [uploaded(bucket, folder) for folder in folders]
    here = Loader(open_mixture(mixture(*folders, packing=packing)), 2, 4, [0, 2])
    there = Loader(open_mixture(mixture(*far, packing=packing)), 2, 4, [0, 2])
    assert here.groups == there.groups and here.describe(50) == there.describe(50)
    for step in (0, 1, 2, 40, 3, 1000):
        for name, array in here.batch(step).items():
            assert np.array_equal(array, there.batch(step)[name]), (step, name)
    reads = [line for line in bucket.seen() if "train-" in line and "bytes=" in line]
    assert reads and not any(
        "alt=media" in line and "bytes=" not in line and "train-" in line for line in bucket.seen()
    )


def test_held_out_rows_and_digests(bucket: Bucket, tmp_path: Path) -> None:
    folder = tiny_runs.make_store(tmp_path / "s")
    far = uploaded(bucket, folder)
    groups = open_store(folder).groups
    both = zip(
        validation_rows([open_store(folder)], 16, groups), validation_rows([open_store(far)], 16, groups), strict=True
    )
    for one, other in both:
        assert all(np.array_equal(one.rows[name], other.rows[name]) for name in one.rows)
    verify_store(far)
    name = paths.join(far, "train-00000-of-00001.arrow")
    with paths.open_file(name) as handle:
        damaged = bytearray(handle.read())
    damaged[-300] ^= 1
    with paths.open_file(name, "wb") as handle:
        handle.write(damaged)
    with pytest.raises(UserError, match="damaged: its sha256"):
        verify_store(far)
    with paths.open_file(name, "wb") as handle:
        handle.write(damaged[:-1])
    with pytest.raises(UserError, match=r"has .* bytes, the manifest says"):
        open_store(far)


def test_what_is_no_store_there_is_told(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such store"):
        open_store(f"{bucket.url}/none")
    paths.write_text(f"{bucket.url}/half/train-00000-of-00001.arrow", "x")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        open_store(f"{bucket.url}/half")


def test_rows_ahead_are_asked_for_before_their_turn(bucket: Bucket, tmp_path: Path, monkeypatch: object) -> None:
    plan = open_mixture(mixture(uploaded(bucket, tiny_runs.make_store(tmp_path / "s", documents=2000))))
    asked: list[int] = []
    ask = type(plan).ask
    monkeypatch.setattr(type(plan), "ask", lambda self, rows: (asked.append(int(rows[0]) // 8), ask(self, rows)))  # type: ignore
    loader = Loader(plan, 2, 4, range(4))
    loader.batch(5)
    loader.batch(6)
    assert asked == [*range(5, 6 + AHEAD), 6 + AHEAD]
    loader.batch(100)
    assert asked[-AHEAD - 1 :] == list(range(100, 101 + AHEAD))


def test_the_cache_is_bounded_and_forgets_failures(bucket: Bucket) -> None:
    content = np.arange(CHUNK, dtype=np.uint32)  # four chunks
    path = f"{bucket.url}/tokens"
    with paths.open_file(path, "wb") as handle:
        handle.write(b"??" + content.tobytes())
    cache = TokenCache(limit=2 * CHUNK)
    tokens = LazyTokens(cache, path, (2, 2 + content.nbytes))
    assert len(tokens) == CHUNK and not len(tokens[7:7])
    for start, stop in ((0, 10), (CHUNK // 4 - 5, CHUNK // 4 + 5), (0, CHUNK), (CHUNK - 3, CHUNK)):
        assert np.array_equal(tokens[start:stop], content[start:stop])
        assert cache._bytes <= 2 * CHUNK and len(cache._chunks) <= 2
    before = len(bucket.seen())
    assert np.array_equal(tokens[CHUNK - 9 :], content[-9:]) and len(bucket.seen()) == before
    bucket.faults({"match": "GET .*tokens", "status": 403, "times": 1})
    with pytest.raises(UserError, match="gave up"):
        tokens[0:10]
    assert np.array_equal(tokens[0:10], content[:10])


def test_throttling_only_slows_the_reading(bucket: Bucket, tmp_path: Path) -> None:
    folder = tiny_runs.make_store(tmp_path / "s", documents=300)
    far = uploaded(bucket, folder)
    bucket.faults({"match": "GET .*bytes=", "status": 429, "times": 1}, {"match": "GET .*bytes=", "status": 503})
    here, there = (Loader(open_mixture(mixture(s)), 1, 8, range(8)) for s in (folder, far))
    assert np.array_equal(here.batch(3)["tokens"], there.batch(3)["tokens"])
