"""`merge` as a command: what it makes of run folders and Hugging Face folders, what it refuses, and that it leaves a
whole run folder or none."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from t_elaine import export, import_hf, merge
from t_elaine.checkpoints import adapters, layout, reading
from t_elaine.checkpoints.produced import Produced
from t_elaine.checkpoints.writing import save_params
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.evaluation.engines import open_model
from t_elaine.hf import card, card_parts, exporting, mapping, merge_inputs, proof, reference, tensors, walking
from t_elaine.hf.card_rules import Card
from t_elaine.model import lora
from t_elaine.model.lora import Lora
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from tests.hf.models import FAMILIES, add_tokenizer, whole_model

REPOSITORY = Path(__file__).resolve().parents[2]


def near(folder: Path, to: Path, seed: int) -> Path:
    """A model that was trained from another one: a little added to every weight, a licence and a card of its own."""
    shutil.copytree(folder, to)
    infos, rng = tensors.open_tensors(folder), np.random.default_rng(seed)
    values = {n: tensors.read(i) + rng.normal(scale=0.05, size=i.shape).astype(np.float32) for n, i in infos.items()}
    planned = [tensors.Planned(name=n, tag="F32", shape=v.shape) for n, v in values.items()]
    tensors.write_tensors(to, planned, lambda name: values[name])
    (to / "LICENSE").write_text(f"Licence {seed}")
    return to


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and two models that came from it as Hugging Face folders, one of these as a run folder too."""
    folder = tmp_path_factory.mktemp("merge")
    found = {"base": whole_model(folder / "base", "qwen2")}
    found |= {name: near(found["base"], folder / name, seed) for seed, name in enumerate(("cpt", "chat"), 1)}
    assert import_hf.main([f"--hf={found['cpt']}", f"--to={folder / 'cpt_run'}"]) == 0
    return {**found, "run": folder / "cpt_run"}


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that is refused."""
    capsys.readouterr()
    assert merge.main(list(arguments)) == 2
    return capsys.readouterr().err


def values(path: Path) -> dict[str, np.ndarray]:
    """All weights by Hugging Face's names."""
    one = merge_inputs.open_input(str(path))
    listed = mapping.hf_tensors(one.config)
    return {t.name: mapping.to_hf(t.weight, one.source(t.weight, t.layer, None)) for t in listed}


@pytest.fixture(scope="module")
def vector(models: dict[str, Path]) -> Path:
    """A chat vector put onto a run: base + (run − base) + 0.5 (chat − base)."""
    to = models["base"].parent / "vector"
    given = [f"--base={models['base']}", f"--models={models['run']},{models['chat']}", "--method=task_arithmetic"]
    carrier = f"--carrier={models['chat']}"
    assert merge.main([*given, "--weights=1,0.5", carrier, f"--to={to}"]) == 0
    return to


def test_a_chat_vector_is_added(vector: Path, models: dict[str, Path]) -> None:
    base, cpt, chat = (values(models[name]) for name in ("base", "cpt", "chat"))
    for name, merged in values(vector).items():
        np.testing.assert_allclose(merged, cpt[name] + 0.5 * (chat[name] - base[name]), atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def exported(vector: Path) -> Path:
    to = vector.parent / "exported"
    assert export.main([f"--checkpoint={vector}", f"--to={to}"]) == 0
    return to


def test_the_result_is_a_model_like_any_other(vector: Path, exported: Path) -> None:
    """Exported with its proof, loaded onto a mesh, and computing the loss that its probe holds."""
    found = json.loads((exported / "proof.json").read_text())
    assert found["passed"] and found["tensors"]["differing"] == []
    model = open_model(str(vector))
    params = model.load(make_mesh(MeshConfig()))
    table = params["embed"]["table"]
    assert isinstance(table, jax.Array) and len(table.devices()) == len(jax.devices())
    np.testing.assert_array_equal(np.asarray(table), values(vector)["model.embed_tokens.weight"])
    record = json.loads((vector / "probe.json").read_text())
    rows = [np.array(row) for row in record["rows"]]
    source = proof.checkpoint_source(str(vector), 0)
    head = walking.head_reader(model.config, source, at_once=True)(0, model.config.vocab_size)
    logits = np.split(walking.hidden(model.config, source, rows) @ head, np.cumsum([len(row) for row in rows])[:-1])
    assert abs(reference.mean_loss(logits, rows) - record["loss"]) < 1e-4


def test_parents_are_on_record(vector: Path, models: dict[str, Path]) -> None:
    record = json.loads((vector / "parent" / "merge.json").read_text())
    assert (record["method"], record["scale"], record["normalize"]) == ("task_arithmetic", 1.0, False)
    assert [(p["role"], p["weight"]) for p in record["parents"]] == [("base", None), ("model", 1), ("model", 0.5)]
    prints = [merge_inputs.open_input(str(models[name])).fingerprint for name in ("base", "run", "chat")]
    assert [p["fingerprint"] for p in record["parents"]] == prints and len(set(prints)) == 3
    assert record["commit"] is None or len(record["commit"]) == 40
    licences = {path.read_text() for path in (vector / "parent").glob("LICENSE*")}
    assert licences == {"Parent's licence", "Licence 1", "Licence 2"}
    meta = reading.read_meta(vector, 0)
    assert meta.vocabulary_sha256 == load_vocabulary(vector).sha256 and not meta.has_optimizer


def test_parents_are_on_the_card(vector: Path, models: dict[str, Path], exported: Path, tmp_path: Path) -> None:
    print_of = merge_inputs.open_input(str(models["chat"])).fingerprint[:16]
    found, meta = json.loads((exported / "proof.json").read_text()), reading.read_meta(vector, 0)
    for language, heading in (("en", "## Parents"), ("ja", "## 元のモデル"), ("zh", "## 父模型")):
        text = card.model_card(str(vector), meta, exporting.config_of(meta), found, language=language)
        assert heading in text and "task_arithmetic" in text and print_of in text and "LICENSE.2" in text
        assert "| chat | model | 0.5 | license: llama3 |" in text and str(vector.parent) not in text
    record = json.loads((vector / "parent" / "merge.json").read_text())
    for parent, name in zip(record["parents"], ("lab/one@12", "lab/one@34", "lab/three@5"), strict=True):
        parent["origin"] = name
    run = shutil.copytree(vector, tmp_path / "run")
    (run / "parent" / "merge.json").write_text(json.dumps(record))
    text = card.model_card(str(run), meta, exporting.config_of(meta), found)
    assert "base_model:\n- lab/one\n- lab/three\nbase_model_relation: merge\n" in text
    assert "base_model" not in [lack.part for lack in card_parts.lacks(str(run), meta, Card())]


def test_dare_is_the_same_again_and_from_a_run_or_its_folder(models: dict[str, Path], tmp_path: Path) -> None:
    results = []
    for number, cpt in enumerate(("run", "cpt", "cpt")):
        arguments = [f"--base={models['base']}", f"--models={models[cpt]},{models['chat']}", "--method=dare_ties"]
        arguments += [f"--gin.merge.seed={number // 2}", "--gin.merge.untrained=True"]  # their weights are random
        assert merge.main([*arguments, "--density=0.5", f"--to={tmp_path / str(number)}"]) == 0
        results.append(values(tmp_path / str(number)))
    first, again, other = results
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first if "proj.weight" in name)


def test_a_merge_of_merges_keeps_the_record(vector: Path, models: dict[str, Path], tmp_path: Path) -> None:
    given = [f"--models={vector},{models['base']}", "--method=slerp", "--t=0.25"]
    assert merge.main([*given, f"--to={tmp_path / 'm'}"]) == 0
    record = json.loads((tmp_path / "m" / "parent" / "merge.json").read_text())
    assert record["t"] == 0.25
    assert record["parents"][0]["merged"]["method"] == "task_arithmetic"


def adapted(base: Path, to: Path) -> Path:
    """A run of adapters on an imported model, as training in four bits leaves it."""
    meta, settings = reading.read_meta(base, 0), Lora(rank=2, alpha=4, targets=("q", "down"), base="nf4")
    shapes = lora.adapter_shapes(exporting.config_of(meta), settings)
    params = jax.tree.map(lambda s: jax.random.normal(jax.random.key(3), s.shape) * 0.3, shapes)
    record = adapters.record((str(base), 0), settings)
    save_params(str(to), 0, params, dataclasses.replace(meta, parent=record["base"], adapter=record))
    for name in ("vocabulary", "parent"):
        (to / name).symlink_to(base / name)
    return to


def test_adapters_are_merged_with_their_base_in_them(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the model that was trained, which is what evaluate and export see; both fingerprints are on record."""
    run = adapted(models["run"], tmp_path / "adapted")
    (run / "data.json").write_text('{"a": {"template": {"name": "plain", "sha256": ""}}}')
    to, other = tmp_path / "merged", models["chat"]
    assert merge.main([f"--models={run},{other}", "--weights=0.75,0.25", f"--to={to}"]) == 0
    assert "by plain; the merge has its carrier's" in capsys.readouterr().out
    child, parent = values(run), values(other)
    source = proof.checkpoint_source(str(run), 0)
    for tensor in mapping.hf_tensors(exporting.config_of(reading.read_meta(run, 0))):
        trained = mapping.to_hf(tensor.weight, source(tensor.weight, tensor.layer, None))
        np.testing.assert_array_equal(child[tensor.name], trained)
    for name, merged in values(to).items():
        np.testing.assert_allclose(merged, 0.75 * child[name] + 0.25 * parent[name], atol=1e-6, err_msg=name)
    found = json.loads((to / "parent" / "merge.json").read_text())["parents"][0]
    assert found["fingerprint"] == adapters.fingerprint(run, 0) != adapters.fingerprint(models["run"], 0)
    assert reading.read_meta(to, 0).adapter is None


def test_adapters_without_their_base_are_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(models["run"], tmp_path / "base"))
    run = adapted(base, tmp_path / "adapted")
    base.rename(tmp_path / "moved")
    message = told(capsys, f"--models={run},{models['chat']}", f"--to={tmp_path / 'to'}")
    assert "the base of the adapters" in message and "leave a link there" in message and not (tmp_path / "to").exists()


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """What is saved is asked for layer by layer, each when the one before it is on its way to the disk."""
    alive, most = [0], [0]

    class Counted(np.ndarray):
        def __array_finalize__(self, source: object) -> None:
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self) -> None:
            alive[0] -= 1

    def make(layer: int | None) -> np.ndarray:
        return np.full((64, 32), float(layer or 0), np.float32).view(Counted)

    tree = {"layers": {name: Produced(shape=(6, 64, 32), make=make, stacked=True) for name in "abc"}}
    meta = layout.CheckpointMeta(step=0, tokens=0, row=0, vocabulary_sha256="", model={}, config_hash="")
    save_params(str(tmp_path), 0, tree, meta)
    assert most[0] <= 2 and alive[0] == 0
    assert [reading.read_tensor(tmp_path, 0, "layers/b", layer)[0, 0] for layer in range(6)] == [0, 1, 2, 3, 4, 5]


def altered(folder: Path, to: Path, **fields: object) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **fields}))
    return to


def nothing_made(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if "made" in path.name]


def test_models_of_different_kinds_are_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = f"--to={tmp_path / 'made'}"
    prints = [merge_inputs.open_input(str(models[name])).fingerprint[:16] for name in ("base", "chat")]
    rope = altered(models["chat"], tmp_path / "rope", rope_theta=1e4)
    message = told(capsys, f"--models={models['base']},{rope}", to)
    assert "rope_theta: 500000.0 there, 10000.0 here" in message and all(p in message for p in prints)
    other = whole_model(tmp_path / "llama", "llama3")
    assert "qkv_bias: True there, False here" in told(capsys, f"--models={models['base']},{other}", to)
    assert nothing_made(tmp_path)


def test_different_tokenizers_are_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what ids stand for, not by the file's bytes: a chat model's file differs and means the same."""
    bigger = add_tokenizer(shutil.copytree(models["chat"], tmp_path / "bigger"), extra=3)
    message = told(capsys, f"--models={models['base']},{bigger}", f"--to={tmp_path / 'made'}")
    digests = [load_vocabulary(path).sha256[:16] for path in (models["base"], bigger)]
    assert "259 ids, the other 262" in message and all(digest in message for digest in digests)
    swapped = shutil.copytree(models["chat"], tmp_path / "swapped")
    text = json.loads((swapped / "tokenizer.json").read_text())
    text["model"]["vocab"]["A"], text["model"]["vocab"]["B"] = text["model"]["vocab"]["B"], text["model"]["vocab"]["A"]
    (swapped / "tokenizer.json").write_text(json.dumps(text))
    assert "in one" in told(capsys, f"--models={models['base']},{swapped}", f"--to={tmp_path / 'made'}")
    assert nothing_made(tmp_path)
    alike = shutil.copytree(models["chat"], tmp_path / "alike")
    text = json.loads((alike / "tokenizer.json").read_text())
    (alike / "tokenizer.json").write_text(json.dumps(text, indent=3))
    assert merge.main([f"--models={models['base']},{alike}", f"--to={tmp_path / 'made'}"]) == 0


def test_a_model_that_is_given_twice_is_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to, base = f"--to={tmp_path / 'made'}", models["base"]
    print_of = merge_inputs.open_input(str(base)).fingerprint[:16]
    assert "given twice" in told(capsys, f"--models={base},{base}/../base", to)
    assert print_of in told(capsys, f"--base={base}", f"--models={base}", "--method=ties", to)
    copy = shutil.copytree(base, tmp_path / "copy")
    assert "the same weights" in told(capsys, f"--models={base},{copy}", to)
    message = told(capsys, f"--models={models['cpt']},{models['run']}", to)
    assert "the same weights" in message and str(models["run"]) in message
    assert nothing_made(tmp_path)


def test_a_missing_shard_and_nan_are_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = f"--to={tmp_path / 'made'}"
    cut = whole_model(tmp_path / "cut", "qwen2", shard_bytes=60_000)
    sorted(cut.glob("model-*.safetensors"))[1].unlink()
    assert "the shard model-00002" in told(capsys, f"--models={models['base']},{cut}", to)
    bad = shutil.copytree(models["chat"], tmp_path / "bad")
    info = tensors.open_tensors(bad)["model.layers.1.mlp.down_proj.weight"]
    with open(info.file, "r+b") as handle:
        handle.seek(info.start + 400)
        handle.write(np.float32(np.nan).tobytes())
    message = told(capsys, f"--models={models['base']},{bad}", to)
    assert "model.layers.1.mlp.down_proj.weight" in message and "NaN" in message and str(bad) in message
    damaged = shutil.copytree(models["run"], tmp_path / "damaged")
    file = max((damaged / "checkpoints" / "0" / "params").rglob("*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    assert "damaged" in told(capsys, f"--models={models['base']},{damaged}", to)
    assert nothing_made(tmp_path)


REFUSED = {
    "weights sum to 0": (["--models={base},{chat}", "--weights=1,-1"], "sum to 0"),
    "no base": (["--models={cpt},{chat}", "--method=ties"], "no base"),
    "a base for linear": (["--base={base}", "--models={cpt},{chat}"], "linear knows no base"),
    "three for slerp": (["--models={base},{cpt},{chat}", "--method=slerp"], "3 are given"),
    "one model": (["--models={cpt}"], "none to merge with"),
    "another carrier": (["--models={base},{cpt}", "--carrier={chat}"], "not among the models"),
    "no number": (["--models={base},{cpt}", "--weights=a,b"], "not a number"),
    "no model": (["--models={base},{base}/nothing"], "no such folder"),
    "an empty folder": (["--models={base},{empty}"], "no complete checkpoint"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused(
    case: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = REFUSED[case]
    (tmp_path / "empty").mkdir()
    given = [argument.format(**models, empty=tmp_path / "empty") for argument in arguments]
    assert words in told(capsys, *given, f"--to={tmp_path / 'made'}") and nothing_made(tmp_path)


def test_an_older_target_stays_until_the_new_one_is_whole(
    vector: Path, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = shutil.copytree(vector, tmp_path / "made")
    arguments = [f"--models={models['base']},{models['chat']}", f"--to={to}"]
    assert "already there" in told(capsys, *arguments)
    environment = {**os.environ, "XLA_FLAGS": "", "T_ELAINE_KILL_AT": "merge.mid_save:9"}
    command = [sys.executable, "-m", "t_elaine.merge", *arguments, "--overwrite"]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == -9, done.stderr
    assert np.array_equal(values(to)["model.norm.weight"], values(vector)["model.norm.weight"])
    assert merge.main([*arguments, "--overwrite"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["made"] and layout.complete_steps(str(to)) == [0]
    base, chat = values(models["base"]), values(models["chat"])
    for name, merged in values(to).items():
        np.testing.assert_allclose(merged, (base[name] + chat[name]) / 2, atol=1e-6)


def test_tied_embeddings_are_merged_once(tmp_path: Path) -> None:
    one = whole_model(tmp_path / "one", "llama32_tied")
    two = near(one, tmp_path / "two", 1)
    assert merge.main([f"--models={one},{two}", f"--to={tmp_path / 'made'}"]) == 0
    config = exporting.config_of(reading.read_meta(tmp_path / "made", 0))
    assert config.tied_embeddings and config.vocab_size == FAMILIES["llama32_tied"]["vocab_size"]
    assert "head/table" not in reading.tensors(tmp_path / "made", 0)
