"""Adapters in PEFT's format: bitwise there and back, the same logits as PEFT's own, and refusals by name."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from t_elaine.checkpoints import adapters, reading
from t_elaine.checkpoints.writing import save_params
from t_elaine.errors import UserError
from t_elaine.hf import peft_format
from t_elaine.hf.exporting import config_of, export_checkpoint
from t_elaine.hf.importing import hf_source
from t_elaine.hf.tensors import open_tensors
from t_elaine.hf.walking import EXACT
from t_elaine.model import llama, lora
from t_elaine.model.lora import Lora
from tests.hf.models import encode

Runs = Callable[[str], Path]
ALL = ("q", "k", "v", "o", "gate", "up", "down")
KINDS = {
    "lora": Lora(rank=3, alpha=5, targets=("q_proj", "down"), base="float32"),
    "rslora": Lora(rank=4, alpha=7, targets=ALL, rslora=True, base="float32"),
    "dora": Lora(rank=2, alpha=4, targets=("k", "o", "up"), dora=True, base="float32"),
}
TOKENS = np.random.default_rng(0).integers(3, 320, (3, 17)).astype(np.int32)


def quiet(line: str) -> None:
    """Takes lines of progress."""


def adapted_run(base: Path, to: Path, settings: Lora) -> Path:
    """A run folder with adapters that change much, beside an imported model."""
    meta = reading.read_meta(base, 0)
    config = config_of(meta)
    rng = np.random.default_rng(1)
    shapes = lora.adapter_shapes(config, settings)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape).astype(np.float32)), shapes)
    for group in params["layers"].values():
        for own in group.values():
            if "magnitude" in own:
                own["magnitude"] = jnp.abs(own["magnitude"]) + 0.5
    record = adapters.record((str(base), 0), settings)
    save_params(str(to), 0, params, dataclasses.replace(meta, parent=record["base"], adapter=record))
    for name in ("vocabulary", "parent"):
        (to / name).symlink_to(base / name)
    return to


def logits(run: Path) -> np.ndarray:
    """Of the model beside its adapters, nothing merged."""
    meta = reading.read_meta(run, 0)
    config, settings = config_of(meta), lora.from_record(meta.adapter["lora"])
    base = lora.freeze(config, settings.base, tree(reading_all(*adapters.base_of(meta.adapter, str(run)))))
    params = lora.combine(config, settings, base, tree(reading_all(str(run), 0)))
    return np.asarray(llama.logits(params, config, EXACT, TOKENS))


def reading_all(run: str, step: int) -> dict[str, np.ndarray]:
    return {path: reading.read_tensor(run, step, path) for path in reading.tensors(run, step)}


def tree(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = made
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = jnp.asarray(value)
    return made


def peft() -> Any:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    return pytest.importorskip("peft", reason="PEFT is not installed")


def theirs(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS).long()).logits.numpy()


def causal_lm(folder: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_bitwise(tmp_path: Path, imported_run: Runs, kind: str) -> None:
    base = imported_run("llama3")
    run = adapted_run(base, tmp_path / "run", KINDS[kind])
    peft_format.export_adapter(str(run), str(tmp_path / "out"), say=quiet)
    peft_format.import_adapter(tmp_path / "out", str(base), str(tmp_path / "again"), say=quiet)
    one, other = reading_all(str(run), 0), reading_all(str(tmp_path / "again"), 0)
    assert one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)
    assert reading.read_meta(tmp_path / "again", 0).adapter["fingerprint"] == adapters.fingerprint(base, 0)
    assert (tmp_path / "again" / "vocabulary" / "vocabulary.json").exists()


def test_the_merged_export_computes_what_base_and_adapters_do(tmp_path: Path, imported_run: Runs) -> None:
    run = adapted_run(imported_run("qwen2"), tmp_path / "run", KINDS["dora"])
    done = export_checkpoint(str(run), str(tmp_path / "out"), encode, transformers=False, say=quiet)
    config = config_of(reading.read_meta(run, 0))
    source = hf_source(open_tensors(tmp_path / "out"), config)
    from t_elaine.hf.walking import head_reader, hidden

    x_ND = hidden(config, source, list(TOKENS))
    found = x_ND @ head_reader(config, source, at_once=False)(0, config.vocab_size)
    np.testing.assert_allclose(found.reshape(3, 17, -1), logits(run), atol=1e-4)
    assert done.proof["passed"]


@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_the_same_logits(tmp_path: Path, imported_run: Runs, kind: str) -> None:
    library = peft()
    base = imported_run("llama3")
    run = adapted_run(base, tmp_path / "run", KINDS[kind])
    peft_format.export_adapter(str(run), str(tmp_path / "out"), say=quiet)
    plain = causal_lm(base.parent / "hf")
    before = theirs(plain)
    found = theirs(library.PeftModel.from_pretrained(plain, str(tmp_path / "out")))
    assert np.abs(found - before).max() > 0.1
    np.testing.assert_allclose(found, logits(run), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_pefts_own_adapters_are_imported(tmp_path: Path, imported_run: Runs, kind: str) -> None:
    import torch

    library, settings = peft(), KINDS[kind]
    base = imported_run("llama3")
    names = [f"{m.name}_proj" for m in lora.targets(config_of(reading.read_meta(base, 0)), settings)]
    model = library.get_peft_model(
        causal_lm(base.parent / "hf"),
        library.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=names,
            use_rslora=settings.rslora,
            use_dora=settings.dora,
            task_type="CAUSAL_LM",
        ),
    )
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "theirs")
    peft_format.import_adapter(tmp_path / "theirs", str(base), str(tmp_path / "run"), say=quiet)
    np.testing.assert_allclose(logits(tmp_path / "run"), theirs(model), atol=1e-4)


SETTINGS = [
    ({"peft_type": "IA3"}, "IA3"),
    ({"bias": "all"}, "bias"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
    ({"r": 5}, "makes it"),
    ({"r": None}, "r is None, no number"),
    ({"lora_alpha": "x"}, "lora_alpha is 'x', no number"),
    ({"use_dora": True}, "is missing"),
]


@pytest.mark.parametrize(("change", "told"), SETTINGS)
def test_adapters_of_another_kind_are_refused(
    tmp_path: Path, imported_run: Runs, change: dict[str, Any], told: str
) -> None:
    folder = exported(tmp_path, imported_run)
    file = folder / peft_format.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=told):
        peft_format.import_adapter(folder, str(imported_run("llama3")), str(tmp_path / "to"), say=quiet)
    assert not (tmp_path / "to").exists()


def exported(tmp_path: Path, imported_run: Runs) -> Path:
    run = adapted_run(imported_run("llama3"), tmp_path / "run", KINDS["lora"])
    peft_format.export_adapter(str(run), str(tmp_path / "out"), say=quiet)
    return tmp_path / "out"


def test_another_base_is_refused_with_both_fingerprints(tmp_path: Path, imported_run: Runs) -> None:
    folder, base = exported(tmp_path, imported_run), imported_run("llama3")
    own = adapters.sample(str(base), 0)
    meta, params = reading.read_meta(base, 0), tree(reading_all(str(base), 0))
    for name, change in (("same", 0.0), ("other", 0.01)):
        moved = jax.tree.map(lambda x, change=change: x * (1 + change), params)
        save_params(str(tmp_path / name), 0, moved, meta)
        shutil.copytree(base / "vocabulary", tmp_path / name / "vocabulary")
    peft_format.import_adapter(folder, str(tmp_path / "same"), str(tmp_path / "to"), say=quiet)
    other = adapters.sample(tmp_path / "other", 0)
    with pytest.raises(UserError, match=f"{own}, this one has {other}"):
        peft_format.import_adapter(folder, str(tmp_path / "other"), str(tmp_path / "again"), say=quiet)
    (folder / peft_format.BASE).write_text("{}")
    with pytest.raises(UserError, match="names no base"):
        peft_format.import_adapter(folder, str(base), str(tmp_path / "again"), say=quiet)
    (folder / peft_format.BASE).write_text("{}")
    with pytest.raises(UserError, match="names no base"):
        peft_format.import_adapter(folder, str(base), str(tmp_path / "again"), say=quiet)
    assert not (tmp_path / "again").exists()


def test_damaged_adapters_are_refused(tmp_path: Path, imported_run: Runs) -> None:
    folder, base = exported(tmp_path, imported_run), str(imported_run("llama3"))
    whole = load_file(folder / peft_format.WEIGHTS)
    name = sorted(whole)[3]
    for change, told in (({name: whole[name] * np.nan}, "not finite"), ({"else": whole[name]}, "else has no place")):
        save_file(whole | change, folder / peft_format.WEIGHTS)
        with pytest.raises(UserError, match=told):
            peft_format.import_adapter(folder, base, str(tmp_path / "to"), say=quiet)
    with pytest.raises(UserError, match="whole model"):
        peft_format.export_adapter(base, str(tmp_path / "to"), say=quiet)
    with pytest.raises(UserError, match="--base"):
        peft_format.import_adapter(folder, "", str(tmp_path / "to"), say=quiet)
