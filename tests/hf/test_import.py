"""`import_hf` as a command: what it makes, what it refuses, and that it leaves a whole run folder or none."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from t_elaine import import_hf
from t_elaine.checkpoints import layout, reading
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.errors import UserError
from t_elaine.hf import exporting, probe, proof, reference, walking
from tests.hf.models import add_tokenizer, contents, whole_model

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_model(tmp_path_factory.mktemp("import") / "model", "llama31")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    to = tmp_path_factory.mktemp("import") / "run"
    assert import_hf.main([f"--hf={model}", f"--to={to}"]) == 0
    return to


@pytest.fixture
def copy(tmp_path: Path, model: Path) -> Path:
    """The model, to be damaged."""
    return shutil.copytree(model, tmp_path / "copy")


def nothing_made(tmp_path: Path) -> bool:
    return not [path for path in tmp_path.iterdir() if "run" in path.name]


def test_a_folder_becomes_a_run(run: Path, model: Path) -> None:
    assert layout.complete_steps(str(run)) == [0]
    meta = reading.read_meta(run, 0)
    assert (meta.step, meta.tokens, meta.has_optimizer, meta.parent) == (0, 0, False, str(model))
    vocabulary = load_vocabulary(run)
    assert meta.vocabulary_sha256 == vocabulary.sha256 == load_vocabulary(model).sha256
    parent = contents(run / "parent")
    assert {"config.json", "LICENSE", "NOTICE.txt", "chat_template.jinja", "generation_config.json"} <= set(parent)
    del parent["origin.json"]  # ours
    assert all((model / name).read_bytes() == data for name, data in parent.items())


def test_the_probe_is_the_loss_of_our_model(run: Path) -> None:
    """What an independent program recorded is what our model computes from the checkpoint."""
    found = json.loads((run / "probe.json").read_text())
    rows = [np.array(row) for row in found["rows"]]
    assert len(rows) == 3 and all(len(row) == probe.LENGTH + 1 and row[0] == 1 for row in rows)
    config = exporting.config_of(reading.read_meta(run, 0))
    source = proof.checkpoint_source(str(run), 0)
    head = walking.head_reader(config, source, at_once=True)(0, config.vocab_size)
    logits = np.split(walking.hidden(config, source, rows) @ head, np.cumsum([len(row) for row in rows])[:-1])
    assert abs(reference.mean_loss(logits, rows) - found["loss"]) < 1e-4
    assert found["reference"].startswith("numpy")


def test_two_references_agree(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyTorch is there the loss is that of transformers, and numpy's beside it is the same."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setattr(reference, "transformers_lack", lambda parameters: "")
    assert import_hf.main([f"--hf={model}", f"--to={tmp_path / 'run'}"]) == 0
    found = json.loads((tmp_path / "run" / "probe.json").read_text())
    assert found["reference"].startswith("transformers") and len(found["losses"]) == 2
    ours, theirs = found["losses"].values()
    assert abs(ours - theirs) < 1e-5 and found["loss"] == theirs


def test_two_references_that_disagree(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that reads RoPE otherwise stops the import."""
    rows = [np.arange(3, 60), np.arange(100, 157)]

    def otherwise(folder: Path) -> tuple[str, Callable]:
        rotations = reference._rotations
        peer = reference.NumpyModel(folder)

        def logits(rows: list[np.ndarray]) -> list[np.ndarray]:
            with monkeypatch.context() as patch:
                patch.setattr(reference, "_rotations", lambda c, h, t: rotations({**c, "rope_theta": 1e4}, h, t))
                peer.config = {**peer.config, "rope_scaling": None, "rope_parameters": None}
                return peer.logits(rows)

        return "another reading", logits

    monkeypatch.setattr(reference, "transformers_logits", otherwise)
    assert probe.make_probe(model, rows, transformers=False)["loss"] > 0
    with pytest.raises(UserError, match="another reading gives these files"):
        probe.make_probe(model, rows, transformers=True)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def set_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04pickle")


BAD = {
    "truncated weights": (lambda f: cut(f / "model.safetensors"), "header promises"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "a legacy pickle": (only_a_pickle, r"legacy pickles (pytorch_model.bin"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "a cut config": (lambda f: cut(f / "config.json"), "config.json cannot be read"),
    "another architecture": (set_config(architectures=["MixtralForCausalLM"], model_type="mixtral"), "mixtral"),
    "another activation": (set_config(hidden_act="gelu"), "gelu"),
    "biases in the mlp": (set_config(mlp_bias=True), "mlp_bias"),
    "another RoPE": (set_config(rope_scaling={"rope_type": "yarn", "factor": 4.0}), "yarn"),
    "another shape": (set_config(intermediate_size=96), "has shape"),
    "another depth": (set_config(num_hidden_layers=4), "are missing"),
    "a larger vocabulary": (set_config(vocab_size=384), "has shape"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no vocabulary"),
    "a cut tokenizer": (lambda f: cut(f / "tokenizer.json"), "tokenizer.json cannot be read"),
    "a tokenizer too large": (lambda f: add_tokenizer(f, extra=62), "the tokenizer has 321 ids"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_models_are_refused(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    damage, words = BAD[kind]
    damage(copy)
    assert import_hf.main([f"--hf={copy}", f"--to={tmp_path / 'run'}"]) == 2
    text = capsys.readouterr().err
    assert words in text and "Traceback" not in text, text
    assert [line.partition(":")[0] for line in text.strip().splitlines()] == ["error", "where", "mend"]
    assert str(copy) in text and nothing_made(tmp_path)


def test_paths_that_lead_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_hf.main([f"--hf={tmp_path / 'no' / 'such' / 'folder'}", f"--to={tmp_path / 'run'}"]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("not a folder")
    assert import_hf.main([f"--hf={tmp_path / 'file'}", f"--to={tmp_path / 'run'}"]) == 2
    assert "mend: " in capsys.readouterr().err
    assert nothing_made(tmp_path)


def test_a_folder_has_no_revision(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_hf.main([f"--hf={model}", f"--to={tmp_path / 'run'}", "--revision=main"]) == 2
    assert "no revision" in capsys.readouterr().err and nothing_made(tmp_path)


def test_a_vocabulary_of_ones_own(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--vocabulary stands in for the folder's; one with ids that the embedding lacks is refused."""
    shutil.move(copy / "tokenizer.json", tmp_path / "tokenizer.json")
    arguments = [f"--hf={copy}", f"--vocabulary={tmp_path / 'tokenizer.json'}", f"--to={tmp_path / 'run'}"]
    add_tokenizer(tmp_path, extra=62)
    assert import_hf.main(arguments) == 2
    assert "321 ids" in capsys.readouterr().err and nothing_made(tmp_path)
    add_tokenizer(tmp_path, extra=61)  # as many ids as the embedding has rows
    assert import_hf.main(arguments) == 0
    assert load_vocabulary(tmp_path / "run").size == 320


def test_a_loss_worse_than_guessing_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a tokenizer of the right size but another model's looks like."""
    arguments = [f"--hf={model}", f"--to={tmp_path / 'run'}"]
    found = {"rows": [], "loss": 9.0, "reference": "set by the test"}
    monkeypatch.setattr(probe, "make_probe", lambda *_: found)
    assert import_hf.main(arguments) == 2
    assert "this model's tokenizer" in capsys.readouterr().err and nothing_made(tmp_path)
    assert import_hf.main([*arguments, "--gin.import_hf.untrained=True"]) == 0
    found["loss"] = 5.7
    assert import_hf.main([*arguments, "--overwrite"]) == 0


def test_a_target_that_is_there(run: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = shutil.copytree(run, tmp_path / "target")
    before = contents(to)
    assert import_hf.main([f"--hf={model}", f"--to={to}"]) == 2
    assert "already there" in capsys.readouterr().err and contents(to) == before
    assert import_hf.main([f"--hf={tmp_path / 'wrong'}", f"--to={to}", "--overwrite"]) == 2
    assert contents(to) == before, "a failed import cost the older run"
    assert import_hf.main([f"--hf={model}", f"--to={to}", "--overwrite"]) == 0
    assert json.loads((to / "probe.json").read_text()) == json.loads(before["probe.json"])


POINTS = (
    "import_hf.before_save",
    "checkpoint.mid_save",
    "import_hf.before_rename",
    "import_hf.between_renames",
    "import_hf.after_rename",
)
MARKS = {"import_hf.between_renames": [], "checkpoint.mid_save": pytest.mark.slow}


@pytest.mark.parametrize("point", [pytest.param(p, marks=MARKS.get(p, pytest.mark.full)) for p in POINTS])
def test_a_kill_leaves_a_whole_run_or_none(run: Path, model: Path, tmp_path: Path, point: str) -> None:
    """Killed over an older import: that one, or the new one, is whole; the same command then ends well."""
    to = tmp_path / "target"
    older = "between" in point or "after" in point
    if older:
        shutil.copytree(run, to)
    arguments = [f"--hf={model}", f"--to={to}", *(["--overwrite"] if older else [])]
    environment = {**os.environ, "T_ELAINE_KILL_AT": point, "XLA_FLAGS": ""}
    killed = subprocess.run(
        [sys.executable, "-m", "t_elaine.import_hf", *arguments], cwd=REPOSITORY, env=environment, check=False
    )
    assert killed.returncode == -9, "the point was not reached"
    if older:
        kept = to if to.exists() else tmp_path / ".target.replaced"
        assert layout.complete_steps(str(kept)) == [0] and (kept / "probe.json").exists()
    else:
        assert not to.exists()
    assert import_hf.main(arguments) == 0
    assert layout.complete_steps(str(to)) == [0] and list(tmp_path.iterdir()) == [to]
    assert (to / "probe.json").read_text() == (run / "probe.json").read_text()
