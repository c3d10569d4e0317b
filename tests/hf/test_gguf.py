"""GGUF: the file holds the model's values in llama.cpp's order; one that does not is refused and not left behind."""

import errno
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import smollm2
from t_elaine.errors import UserError
from t_elaine.hf import folders, gguf_layout, gguf_reading, gguf_writing, importing, mapping, tensors
from tests.hf import models

pytest.importorskip("gguf", reason="the package gguf is not installed: pip install gguf")

WIDE = {**models.BASE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "llama31": {**WIDE, "rope_scaling": models.SCALED},
    "tied": {**WIDE, "tie_word_embeddings": True},
    "qwen2": {**models.FAMILIES["qwen2"], **{k: v for k, v in WIDE.items() if k.endswith("size")}, "head_dim": 16},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name → a folder with that tiny model, its rows a multiple of 32 long."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(models.FAMILIES, name, SHAPES[name])
                made[name] = models.write_model(tmp_path_factory.mktemp(name) / "hf", name)
        return made[name]

    return make


@pytest.mark.parametrize("kind", gguf_layout.KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_every_format_holds_the_model_as_near_as_it_can(tmp_path: Path, model: Any, name: str, kind: str) -> None:
    file, folder = tmp_path / "m.gguf", model(name)
    gguf_writing.write(folder, file, kind, {"general.name": "tiny"})
    found = gguf_reading.compare(file, folder, kind)
    assert found["differing"] == [] and found["config_read_back_equal"]
    assert found["worst"] == 0 if kind == "f32" else 0.3 < found["worst"] <= 1
    coarsest = {"f32": 0, "bf16": 0.003, "f16": 0.0004, "q8_0": 0.01, "q5_1": 0.04, "q5_0": 0.06, "q4_1": 0.08}
    assert max(found["relative"].values(), default=0) <= coarsest.get(kind, 0.12)
    opened = gguf_reading.open_gguf(file)
    assert opened.fields["general.name"] == "tiny"
    assert opened.fields["general.architecture"] == ("qwen2" if name == "qwen2" else "llama")


@pytest.mark.parametrize("name", SHAPES)
def test_our_reading_of_a_float32_file_is_bitwise_the_model(tmp_path: Path, model: Any, name: str) -> None:
    """Boxes of it too: that is how parameters are laid out on a mesh."""
    file, folder = tmp_path / "m.gguf", model(name)
    gguf_writing.write(folder, file, "f32", {})
    opened, config = gguf_reading.open_gguf(file), importing.read_config(folder)
    theirs = importing.hf_source(tensors.open_tensors(folder), config)
    for weight in mapping.weights(config):
        layer = 1 if weight.stacked else None
        np.testing.assert_array_equal(opened.source(weight, layer, None), theirs(weight, layer, None))
        box = [slice(n // 4, n // 2) for n in mapping.our_shape(weight, config)]
        np.testing.assert_array_equal(opened.source(weight, layer, box), theirs(weight, layer, box))


@pytest.mark.parametrize("kind", ["q8_0", "q4_1"])
def test_another_reader_finds_the_same_values_and_the_order_of_pairs(tmp_path: Path, model: Any, kind: str) -> None:
    """The benchmarks' own parser, which knows nothing of the package gguf or of this one."""
    file = tmp_path / "m.gguf"
    gguf_writing.write(model("tied"), file, kind, {})
    data = np.fromfile(file, np.uint8)
    meta, blocks = smollm2.parse(data)
    assert meta["llama.attention.head_count_kv"] == 2 and meta["llama.rope.dimension_count"] == 16
    opened = gguf_reading.open_gguf(file)
    by_path = {weight.path: weight for weight in mapping.weights(opened.config)}
    for name, path, heads in (("attn_q", "attention/q", 4), ("attn_k", "attention/k", 2), ("ffn_down", "mlp/down", 0)):
        rows = smollm2.dequantise(data, blocks[f"blk.1.{name}.weight"])
        weight = by_path[f"layers/{path}"]
        ours = mapping.to_hf(weight, opened.source(weight, 1, None))
        np.testing.assert_array_equal(smollm2.unpair(rows, heads) if heads else rows, ours)
        if heads:
            assert not np.array_equal(rows, ours)


def test_a_value_that_is_off_by_more_than_its_format_allows_is_found(tmp_path: Path, model: Any) -> None:
    """One code of one block, two steps off; a scale that was doubled; a NaN."""
    file, folder = tmp_path / "m.gguf", model("tied")
    gguf_writing.write(folder, file, "q8_0", {})
    whole = file.read_bytes()
    start = smollm2.parse(np.frombuffer(whole, np.uint8))[1]["blk.0.ffn_up.weight"].start
    scale = np.frombuffer(whole[start : start + 2], np.float16)[0]
    code = np.frombuffer(whole[start + 5 : start + 6], np.int8)[0]
    for at, new in (
        (start + 5, np.int8(code - 2 if code > 0 else code + 2).tobytes()),
        (start, np.float16(scale * 2).tobytes()),
        (start, np.float16(np.nan).tobytes()),
    ):
        file.write_bytes(whole[:at] + new + whole[at + len(new) :])
        assert gguf_reading.compare(file, folder, "q8_0")["differing"] == ["blk.0.ffn_up.weight"]


def test_values_that_no_16_bits_hold_are_told(tmp_path: Path, model: Any) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_bytes((model("tied") / "config.json").read_bytes())
    infos = tensors.open_tensors(model("tied"))
    planned = [tensors.Planned(name=info.name, tag=info.tag, shape=info.shape) for info in infos.values()]
    large = "model.layers.1.mlp.up_proj.weight"
    tensors.write_tensors(folder, planned, lambda n: tensors.read(infos[n]) * np.float32(1e9 if n == large else 1))
    for kind, differing in (("f16", ["blk.1.ffn_up.weight"]), ("q4_0", ["blk.1.ffn_up.weight"]), ("bf16", [])):
        gguf_writing.write(folder, tmp_path / "m.gguf", kind, {})
        assert gguf_reading.compare(tmp_path / "m.gguf", folder, kind)["differing"] == differing


def test_what_gguf_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    config = importing.read_config
    with pytest.raises(UserError, match="rows of 48 values, q8_0 packs 32") as caught:
        gguf_layout.plan(config(models.write_model(tmp_path / "narrow", "llama3")), "q4_0")
    assert "f16" in caught.value.mend
    with pytest.raises(UserError, match="'q3' is not written here"):
        gguf_layout.kind_of("q3")
    with pytest.raises(UserError) as caught:
        gguf_layout.kind_of("q4_k_m")
    assert "llama-quantize" in caught.value.mend
    wide = config(models.write_model(tmp_path / "qwen2", "qwen2"))
    with pytest.raises(UserError, match=r"takes heads of 48 values together, this model has 4 of 16"):
        gguf_layout.plan(wide, "f16")


def test_a_missing_shard_and_a_missing_package_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = models.write_model(tmp_path / "hf", "llama3", shard_bytes=60_000)
    sorted(folder.glob("*.safetensors"))[1].unlink()
    with pytest.raises(UserError, match=r"shard .* is missing"):
        gguf_writing.write(folder, tmp_path / "m.gguf", "f16", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed") as caught:
        gguf_writing.library()
    assert "pip install gguf" in caught.value.mend


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf_writing, "_rounded", full)
    with (
        pytest.raises(UserError, match="disk is full"),
        folders.new_folder(str(tmp_path / "out"), False, 0, "export") as folder,
    ):
        gguf_writing.write(model("tied"), folder / "m.gguf", "q8_0", {})
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_cut_off_or_of_others_are_refused(tmp_path: Path, model: Any) -> None:
    file = tmp_path / "m.gguf"
    gguf_writing.write(model("llama31"), file, "q8_0", {})
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:40], b"GGML" + whole[4:], b""):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="no whole GGUF file"):
            gguf_reading.open_gguf(file)
    file.write_bytes(whole.replace(b"t_elaine.rope_scaling", b"t_elaine.rope_scalinG"))
    with pytest.raises(UserError, match="rotary factors are not those"):
        gguf_reading.open_gguf(file)


def test_the_factors_of_llama31_are_those_that_transformers_divides_by(model: Any) -> None:
    factors = gguf_layout.rope_factors(importing.read_config(model("llama31")))
    assert factors is not None and factors.dtype == np.float32 and factors.shape == (8,)
    assert factors[0] == 1 and factors[-1] == 8 and all(a <= b for a, b in itertools.pairwise(factors))
    config = json.loads((model("llama31") / "config.json").read_text())
    assert config["rope_scaling"]["factor"] == 8
