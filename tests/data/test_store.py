"""The store gives back what was written, without copying, and refuses what is damaged."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from t_elaine.data.store import Labels, Row, ShardWriter, open_store, verify_store, write_manifest
from t_elaine.errors import UserError
from t_elaine.paths import file_sha256

LABELS = Labels(languages=("en", "ja"), categories=("textbook", "guideline"), sources=("a", "b"))


def make_rows(count: int = 7) -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        Row(
            tokens=rng.integers(0, 100, 3 + i).astype(np.uint32),
            id=f"doc{i}",
            language=LABELS.languages[i % 2],
            category=LABELS.categories[i % 3 == 0],
            source=LABELS.sources[i % 2],
            bytes=10 * i,
            text_hash=2**63 + i,
            trained=None if i % 2 else [(0, 1), (2, 3)],
        )
        for i in range(count)
    ]


def make_store(folder: Path, rows: list[Row], batch_tokens: int = 20) -> Path:
    folder.mkdir()
    writer = ShardWriter(folder / "train-00000-of-00001.arrow", LABELS, batch_tokens)
    for row in rows:
        writer.add(row)
    path = writer.close()
    shard = {"file": path.name, "split": "train", "size": path.stat().st_size, "sha256": file_sha256(path)}
    groups = sorted({(row.language, row.category) for row in rows})
    write_manifest(folder, {"name": "tiny", "groups": groups, "vocabulary": {"sha256": "0"}, "shards": [shard]})
    return folder


def test_reads_back_every_document(tmp_path: Path) -> None:
    rows = make_rows()
    store = open_store(make_store(tmp_path / "tiny", rows))
    batches = store.batches("train")
    assert len(batches) > 1 and sum(batch.docs for batch in batches) == len(rows)
    seen = iter(rows)
    for batch in batches:
        assert len(batch.tokens) <= 20 or batch.docs == 1
        assert batch.trained is not None
        span_offsets, starts, stops = batch.trained
        for i, name in enumerate(batch.ids()):
            row = next(seen)
            tokens = batch.tokens[batch.offsets[i] : batch.offsets[i + 1]]
            assert name == row.id and batch.sources()[i] == row.source
            np.testing.assert_array_equal(tokens, row.tokens)
            assert store.groups[batch.group[i]] == (row.language, row.category)
            assert (batch.bytes[i], batch.text_hash[i]) == (row.bytes, row.text_hash)
            span = slice(span_offsets[i], span_offsets[i + 1])
            expected = row.trained or [(0, len(row.tokens))]
            assert list(zip(starts[span], stops[span], strict=True)) == list(expected)
    assert store.batches("validation") == []


def test_all_trained_is_none(tmp_path: Path) -> None:
    rows = [row for row in make_rows() if row.trained is None]
    assert all(batch.trained is None for batch in open_store(make_store(tmp_path / "s", rows)).batches("train"))


def test_reading_copies_nothing(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "tiny", make_rows())
    before = pa.total_allocated_bytes()
    batch = open_store(folder).batches("train")[0]
    assert not batch.tokens.flags.owndata and not batch.tokens.flags.writeable
    assert not batch.offsets.flags.owndata and pa.total_allocated_bytes() - before < 4096


def test_nothing_under_the_final_name_before_close(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    writer = ShardWriter(path, LABELS)
    writer.add(make_rows()[0])
    assert not path.exists()
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_datasets_opens_a_shard(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets, a peer, is not installed")
    rows = make_rows()
    folder = make_store(tmp_path / "tiny", rows)
    loaded = datasets.load_dataset(
        "arrow", data_files=str(folder / "*.arrow"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded[3]["tokens"] == rows[3].tokens.tolist() and loaded[3]["language"] in ("ja", 1)


@pytest.mark.parametrize("damage", ["no folder", "no manifest", "bad json", "edited", "format", "short", "missing"])
def test_damage_is_one_clear_message(tmp_path: Path, damage: str) -> None:
    folder = make_store(tmp_path / "tiny", make_rows())
    manifest, shard = folder / "manifest.json", folder / "train-00000-of-00001.arrow"
    content = json.loads(manifest.read_text())
    if damage == "no folder":
        folder = tmp_path / "other"
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "bad json":
        manifest.write_text(manifest.read_text()[:-20])
    elif damage == "edited":
        manifest.write_text(json.dumps(content | {"name": "another"}))
    elif damage == "format":
        manifest.write_text(json.dumps(content | {"format": 99}))
    elif damage == "short":
        shard.write_bytes(shard.read_bytes()[:-100])
    else:
        shard.unlink()
    with pytest.raises(UserError) as caught:
        open_store(folder)
    assert caught.value.where and caught.value.mend


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "tiny", make_rows())
    verify_store(folder)
    shard = folder / "train-00000-of-00001.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        verify_store(folder)


def test_a_flipped_bit_is_found_where_only_one_split_is_read(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "tiny", make_rows())
    path = folder / "train-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    verify_store(folder, "validation")
    with pytest.raises(UserError, match="is damaged"):
        verify_store(folder, "train")


def test_arrow_cut_short_says_so(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "tiny", make_rows())
    shard = folder / "train-00000-of-00001.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content[:-64] + b"\0" * 64)
    with pytest.raises(UserError, match="Arrow"):
        open_store(folder).batches("train")
