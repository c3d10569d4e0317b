"""The table of names: every tensor has its own values, so that two swapped rows or axes cannot go unseen."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from t_elaine.hf import importing, mapping, tensors
from t_elaine.hf.reference import NumpyModel
from t_elaine.model import llama
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel import sharding
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from tests.hf.models import FAMILIES, write_model

EXACT = ComputeConfig(dtype="float32", remat="none")


def on_one_device(config) -> dict:
    everywhere = NamedSharding(make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]), PartitionSpec())
    return jax.tree.map(lambda _: everywhere, llama.parameter_shapes(config))


def load(folder: Path, layout=on_one_device):
    config = importing.read_config(folder)
    source = importing.hf_source(tensors.open_tensors(folder), config)
    return config, importing.load_params(source, config, layout(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_table_covers_the_model(tmp_path: Path, family: str) -> None:
    """Our tree and the table name the same parameters with the same shapes."""
    config = importing.read_config(write_model(tmp_path / "m", family))
    ours = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(llama.parameter_shapes(config))
    }
    rows = mapping.weights(config)
    assert {w.path: (config.layers,) * w.stacked + mapping.our_shape(w, config) for w in rows} == ours


@pytest.mark.parametrize("size", [1, 5000, 1 << 30])
def test_boxes_of_rows_make_the_whole(tmp_path: Path, size: int) -> None:
    """Read in any pieces and put one under the other, a tensor is what it is when read whole."""
    folder = write_model(tmp_path / "m", "qwen2")
    config = importing.read_config(folder)
    source = importing.hf_source(tensors.open_tensors(folder), config)
    counts = []
    for tensor in mapping.hf_tensors(config):
        boxes = list(mapping.row_boxes(tensor.weight, config, size))
        parts = [mapping.to_hf(tensor.weight, source(tensor.weight, tensor.layer, box)) for box in boxes]
        whole = mapping.to_hf(tensor.weight, source(tensor.weight, tensor.layer, None))
        assert np.array_equal(np.concatenate(parts), whole)
        counts.append(len(parts))
    assert max(counts) == {1: config.vocab_size, 5000: 13, 1 << 30: 1}[size]


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(tmp_path: Path, family: str) -> None:
    """from_hf then to_hf gives every tensor back bitwise, and no two tensors are alike."""
    folder = write_model(tmp_path / "m", family)
    config = importing.read_config(folder)
    infos = tensors.open_tensors(folder)
    source = importing.hf_source(infos, config)
    seen = set()
    for tensor in mapping.hf_tensors(config):
        ours = source(tensor.weight, tensor.layer, None)
        assert ours.shape == mapping.our_shape(tensor.weight, config)
        back = mapping.to_hf(tensor.weight, np.ascontiguousarray(ours))
        assert back.base is not None, "a copy was made"
        assert back.tobytes() == tensors.read(infos[tensor.name]).tobytes()
        seen.add(back.tobytes())
    assert len(seen) == len(infos)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_independent_reference(tmp_path: Path, family: str) -> None:
    folder = write_model(tmp_path / "m", family)
    config, params = load(folder)
    rows = [np.random.default_rng(i).integers(0, config.vocab_size, 100) for i in range(3)]
    ours = llama.logits(params, config, EXACT, np.stack(rows).astype(np.int32))
    theirs = NumpyModel(folder).logits(rows)
    assert np.abs(np.asarray(ours) - np.stack(theirs)).max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_numpy_reference_equals_transformers(tmp_path: Path, family: str) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from t_elaine.hf.reference import transformers_logits

    folder = write_model(tmp_path / "m", family)
    row = np.random.default_rng(0).integers(0, FAMILIES[family]["vocab_size"], 100)
    name, logits = transformers_logits(folder)
    assert "transformers" in name
    assert np.abs(logits([row])[0] - NumpyModel(folder).logits([row])[0]).max() < 1e-4


def spread(config):
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    return sharding.shardings(llama.parameter_axes(config), mesh, sharding.RULES, llama.parameter_shapes(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_are_read_as_the_mesh_wants(tmp_path: Path, family: str) -> None:
    folder = write_model(tmp_path / "m", family, shard_bytes=100_000)
    _, whole = load(folder)
    _, pieces = load(folder, spread)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), whole, pieces))
    q = pieces["layers"]["attention"]["q"]
    assert {shard.data.shape for shard in q.addressable_shards} == {(3, 24, 2, 16)}


def test_only_the_needed_rows_are_read(tmp_path: Path) -> None:
    """A quarter of the heads costs a quarter of the tensor's bytes."""
    folder = write_model(tmp_path / "m", "llama3")
    config = importing.read_config(folder)
    q = next(w for w in mapping.TABLE if w.path == "layers/attention/q")
    asked = []

    def read(box):
        asked.append(box)
        return np.zeros([part.stop - part.start for part in box], np.float32)

    got = mapping.from_hf(q, config, read, [slice(0, 24), slice(1, 2), slice(0, 16)])
    assert got.shape == (24, 1, 16) and asked == [[slice(16, 32), slice(0, 24)]]


def test_head_size_may_be_cut_too(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "llama3")
    config = importing.read_config(folder)
    infos = tensors.open_tensors(folder)
    source = importing.hf_source(infos, config)
    for path in ("layers/attention/q", "layers/attention/o"):
        weight = next(w for w in mapping.TABLE if w.path == path)
        box = [slice(1, 3), slice(1, 4), slice(3, 9)]
        assert np.array_equal(source(weight, 1, box), source(weight, 1, None)[tuple(box)])
