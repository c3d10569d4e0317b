"""Safetensors: slices equal the whole, our files open in the public reader, damaged files are refused in words."""

import errno
import itertools
import json
import os
import time
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from t_elaine.errors import UserError
from t_elaine.hf import tensors
from t_elaine.hf.tensors import Planned
from tests.hf.models import write_model


def write(
    folder: Path, arrays: dict[str, np.ndarray], shard_bytes: int = tensors.SHARD_BYTES, tag: str = "F32"
) -> None:
    folder.mkdir(exist_ok=True)
    planned = [Planned(name=name, tag=tag, shape=array.shape) for name, array in arrays.items()]
    tensors.write_tensors(folder, planned, arrays.__getitem__, shard_bytes)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"a": (7, 5), "b": (3,), "c": (2, 3, 4), "d": (64, 33)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_public_reader_reads_what_we_write(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write(tmp_path, arrays)
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert list(found) == list(arrays)
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_we_read_what_the_public_writer_writes(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors", {"format": "np"})
    infos = tensors.open_tensors(tmp_path)
    assert all(np.array_equal(tensors.read(infos[name]), arrays[name]) for name in arrays)


@pytest.mark.parametrize("block", [64, 16 << 20])
def test_boxes_equal_slices(
    tmp_path: Path, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    write(tmp_path, arrays)
    monkeypatch.setattr(tensors, "BLOCK_BYTES", block)
    infos = tensors.open_tensors(tmp_path)
    for name, box in [
        ("a", np.s_[2:5, :]),
        ("a", np.s_[1:7, 2:4]),
        ("b", np.s_[1:3,]),
        ("c", np.s_[0:2, 1:2, 1:4]),
        ("d", np.s_[5:60, 0:1]),
    ]:
        assert np.array_equal(tensors.read(infos[name], box), arrays[name][box])


def test_shards_and_index(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write(tmp_path, arrays, shard_bytes=200)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / tensors.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    infos = tensors.open_tensors(tmp_path)
    assert all(np.array_equal(tensors.read(infos[name]), arrays[name]) for name in arrays)


def test_bfloat16_is_rounded_to_nearest_even(tmp_path: Path) -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF807FFF], np.uint32)
    write(tmp_path, {"a": bits.view(np.float32)}, tag="BF16")
    found = tensors.read(tensors.open_tensors(tmp_path)["a"])
    assert found.dtype == ml_dtypes.bfloat16
    assert found.view(np.uint16).tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF80]


def test_transposed_views_are_written_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 100)
    array = np.arange(35, dtype=np.float32).reshape(5, 7).T
    write(tmp_path, {"a": array})
    assert np.array_equal(tensors.read(tensors.open_tensors(tmp_path)["a"]), array)


@pytest.mark.parametrize("tag", ["F32", "BF16"])
def test_runs_of_rows_equal_the_whole(tmp_path: Path, tag: str) -> None:
    """Given in pieces, turned or not, in either dtype, the file is the same; too few or too many rows are no tensor."""
    array = np.random.default_rng(0).normal(size=(64, 33)).astype(np.float32)
    for name, source in {"turned": np.ascontiguousarray(array.T).T, "straight": array}.items():
        planned = [Planned(name="a", tag=tag, shape=(64, 33))]
        for folder, cuts in ((tmp_path / name / "whole", [0, 64]), (tmp_path / name / "pieces", [0, 5, 6, 64])):
            folder.mkdir(parents=True)
            runs = [source[a:b] for a, b in itertools.pairwise(cuts)]
            tensors.write_tensors(folder, planned, lambda _, runs=runs: iter(runs))
            found = tensors.read(tensors.open_tensors(folder)["a"])
            assert found.tobytes() == array.astype(tensors.DTYPES[tag]).tobytes()
        for wrong in (source[:63], np.concatenate([source, source[:1]])):
            with pytest.raises(ValueError, match="planned"):
                tensors.write_tensors(folder, planned, lambda _, wrong=wrong: iter([wrong]))


def test_at_most_two_results_are_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is written (slowly, here) exactly one more is made."""
    made: list[weakref.ref[np.ndarray]] = []
    most = 0

    def produce(name: str) -> np.ndarray:
        nonlocal most
        array = np.full((64, 64), int(name), np.float32)
        made.append(weakref.ref(array))
        most = max(most, sum(reference() is not None for reference in made))
        return array

    write_all = tensors._write_all

    def slowly(sink, data) -> None:
        time.sleep(0.02)
        write_all(sink, data)

    monkeypatch.setattr(tensors, "_write_all", slowly)
    tensors.write_tensors(tmp_path, [Planned(name=str(i), tag="F32", shape=(64, 64)) for i in range(9)], produce)
    assert most == 2


def test_what_was_written_is_flushed_underway_and_a_failure_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "FLUSH_BYTES", 1 << 14)
    planned = [Planned(name=str(i), tag="F32", shape=(64, 64)) for i in range(9)]
    produce = lambda name: np.full((64, 64), float(name), np.float32)  # noqa: E731
    real, calls = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(handle) or real(handle))
    tensors.write_tensors(tmp_path, planned, produce)
    assert len(calls) >= 2  # the last one, and at least one before
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert all((found[str(i)] == i).all() for i in range(9))

    def fails(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        tensors.write_tensors(tmp_path, planned, produce)


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def rewrite_header(file: Path, change) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


DAMAGE = {
    "cut in the values": (lambda f: cut(f, f.stat().st_size - 1), "header promises"),
    "cut in the header": (lambda f: cut(f, 40), "no complete safetensors header"),
    "empty": (lambda f: cut(f, 0), "no complete safetensors header"),
    "something appended": (lambda f: f.write_bytes(f.read_bytes() + b"x"), "header promises"),
    "an error page instead": (
        lambda f: f.write_bytes(b"<html>Too many requests</html>" * 20),
        "no complete safetensors header",
    ),
    "shape changed": (lambda f: rewrite_header(f, lambda h: h["a"].update(shape=[7, 6])), "offsets for a"),
    "offsets overlap": (lambda f: rewrite_header(f, lambda h: h["b"].update(data_offsets=[0, 12])), "offsets for"),
    "negative shape": (lambda f: rewrite_header(f, lambda h: h["a"].update(shape=[-7, -5])), "offsets for a"),
    "unknown dtype": (lambda f: rewrite_header(f, lambda h: h["a"].update(dtype="F7")), "unknown dtype 'F7'"),
    "header is a list": (lambda f: f.write_bytes((8).to_bytes(8, "little") + b"[]      "), "header is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_file_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], kind: str) -> None:
    write(tmp_path, arrays)
    damage, words = DAMAGE[kind]
    damage(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=words) as caught:
        tensors.open_tensors(tmp_path)
    assert "model.safetensors" in caught.value.where and caught.value.mend


def test_every_truncation_of_a_small_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a": np.arange(4, dtype=np.float32)})
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError):
            tensors.open_tensors(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "llama3", shard_bytes=60_000)
    shards = sorted(folder.glob("model-*.safetensors"))
    shards[1].unlink()
    with pytest.raises(UserError, match=f"{shards[1].name} is missing"):
        tensors.open_tensors(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", 7])
def test_index_may_not_leave_the_folder(tmp_path: Path, name: object) -> None:
    (tmp_path / tensors.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="outside the folder"):
        tensors.open_tensors(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": 3}', "{}"])
def test_damaged_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / tensors.INDEX).write_text(text)
    with pytest.raises(UserError, match="index cannot be read"):
        tensors.open_tensors(tmp_path)


def test_index_and_shards_must_agree(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write(tmp_path, arrays, shard_bytes=200)
    index = json.loads((tmp_path / tensors.INDEX).read_text())
    swapped = {**index["weight_map"], "a": index["weight_map"]["d"]}
    (tmp_path / tensors.INDEX).write_text(json.dumps({"weight_map": swapped}))
    with pytest.raises(UserError, match="elsewhere"):
        tensors.open_tensors(tmp_path)
    (tmp_path / tensors.INDEX).write_text(
        json.dumps({"weight_map": {**index["weight_map"], "e": index["weight_map"]["d"]}})
    )
    with pytest.raises(UserError, match="e is in the index but not in"):
        tensors.open_tensors(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02.")
    with pytest.raises(UserError, match=f"legacy pickles.*{name}"):
        tensors.open_tensors(tmp_path)


def test_integers_are_not_weights(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"a": np.zeros(3, np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="a has dtype I8"):
        tensors.read(tensors.open_tensors(tmp_path)["a"])
