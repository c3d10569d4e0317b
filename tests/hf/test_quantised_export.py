"""export --quantize: GGUF files beside the weights, judged beside the float model; none is left that is unsound."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t_elaine import export, import_hf, quantised
from t_elaine.errors import UserError
from t_elaine.hf import gguf_reading, reference
from tests.hf import models
from tests.hf.test_gguf import SHAPES

pytest.importorskip("gguf", reason="the package gguf is not installed: pip install gguf")

SMALL = ["documents = 1", "questions = 2", "prompts = 1", "new_tokens = 6", "length = 128", "exams = ('samples/en',)"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a tiny Llama whose rows divide into blocks, its tokenizer a real one."""
    base = tmp_path_factory.mktemp("quantised")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.FAMILIES, "tied", SHAPES["tied"])
        patch.setattr(reference, "transformers_lack", lambda parameters: "not tried")
        models.whole_model(base / "hf", "tied")
        assert import_hf.main([f"--hf={base / 'hf'}", f"--to={base / 'Llama 3 tiny'}"]) == 0
    return base / "Llama 3 tiny"


def exported(run: Path, out: Path, *flags: str) -> int:
    small = [f"--gin.QuantisedCheck.{line.replace(' = ', '=')}" for line in SMALL]
    return export.main([f"--checkpoint={run}", f"--to={out}", "--gin.export.check=@QuantisedCheck()", *small, *flags])


def test_files_and_what_they_cost(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert exported(run, out, "--quantize=f32,q4_0", "--gin.export.card=@Card()", "--gin.Card.draft=True") == 0
    told = capsys.readouterr().out
    proof = json.loads((out / "proof.json").read_text())
    exact, coarse = proof["gguf"]["f32"], proof["gguf"]["q4_0"]
    assert exact["tensors"]["worst"] == 0 and 0.3 < coarse["tensors"]["worst"] <= 1
    for row in exact["bits_per_byte"]:
        assert row["difference"]["value"] == 0 and row["quantised"] == row["float"]
    assert any(row["difference"]["value"] != 0 for row in coarse["bits_per_byte"])
    assert {row["level"] for row in coarse["bits_per_byte"]} == {"store", "language"}
    assert exact["exams"][0]["answers_changed"] == 0 and coarse["exams"][0]["questions"] == 2
    assert all(one["as_float"] == len(one["ids"]) == 6 for one in exact["greedy"]) and len(exact["greedy"]) == 3
    assert exact["held_out"] == "shipped sample documents" and "q4_0: 0." in told
    for entry in (exact, coarse):
        assert (out / entry["file"]).stat().st_size == entry["bytes"]
    fields = gguf_reading.open_gguf(out / coarse["file"]).fields
    assert fields["general.name"] == "Llama 3 tiny" and len(fields["tokenizer.ggml.tokens"]) == 320
    assert "model-q4_0.gguf" in (out / "README.ja.md").read_text(encoding="utf-8")
    assert (out / "lm_eval" / "elaine_igakuqa_text.yaml").is_file()


def test_a_file_that_is_not_the_model_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gguf

    sound = gguf.quants.quantize
    monkeypatch.setattr(quantised.judging, "measure", lambda *_: None)
    monkeypatch.setattr(gguf.quants, "quantize", lambda data, kind: sound(np.asarray(data * np.float32(1.2)), kind))
    assert exported(run, tmp_path / "out", "--quantize=q8_0") == 2
    assert "tensors are farther from the weights than q8_0 allows" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "told"), [("q4_k_m", "llama-quantize"), ("int3", "some of f32"), ("", None)])
def test_names_are_checked_before_any_work(name: str, told: str | None) -> None:
    if told is None:
        assert quantised.check_names([name]) == ()
        return
    with pytest.raises(UserError) as caught:
        quantised.check_names([name])
    assert told in caught.value.mend


def test_an_existing_target_stays(run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    assert exported(run, tmp_path / "out", "--quantize=q8_0") == 2
    assert "already there" in capsys.readouterr().err and list((tmp_path / "out").iterdir()) == []
