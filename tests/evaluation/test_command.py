"""The command: a result file with parent beside child, kept, refused and replaced as it should be."""

import json
import shutil
from pathlib import Path

import pytest

from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.errors import UserError
from t_elaine.evaluate import evaluate
from t_elaine.evaluation import runner
from t_elaine.hf.exporting import export_checkpoint
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import MeshConfig
from tests.evaluation.making import make_place, make_store, make_vocabulary

SMALL = {"sequence_length": 256, "limit": 4, "batch_rows": 8, "resamples": 100}
SETTINGS = SMALL | {
    "mesh": MeshConfig(fsdp=8),
    "compute": ComputeConfig(dtype="float32", remat="none", loss_chunk=64),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_place(tmp_path_factory.mktemp("command"))
    arguments = {"parent": str(folder / "parent"), "stores": (str(folder / "held"),)}
    assert evaluate(checkpoint=str(folder / "child"), **arguments, **SETTINGS) == 0
    return folder


def read(place: Path, name: str = "step-7") -> dict:
    return json.loads((place / "child" / "evaluation" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_result_holds_child_parent_and_difference(place: Path) -> None:
    result = read(place)
    assert result["models"]["child"]["step"] == 7 and result["models"]["parent"]["step"] == 0
    levels = {
        (row["level"], row.get("store"), row.get("language"), row.get("category")) for row in result["bits_per_byte"]
    }
    assert {
        ("store", "held", None, None),
        ("language", None, "ja", None),
        ("general", None, "zh", None),
        ("category", None, "zh", "general"),
    } <= levels
    for row in result["bits_per_byte"]:
        gap = row["child"]["value"] - row["parent"]["value"]
        assert row["difference"]["value"] == pytest.approx(gap, abs=3e-6)
        if row["documents"] >= 5:
            assert row["child"]["low"] <= row["child"]["value"] <= row["child"]["high"]
        assert row["child"]["value"] != row["parent"]["value"]
    assert [exam["suite"] for exam in result["exams"]] == ["samples/en", "samples/ja", "samples/zh"]
    for exam in result["exams"]:
        assert exam["questions"] == 4 and len(exam["items"]) == 4 and len(exam["samples"]) == 4
        assert exam["first_prompt_ids"]["child"].count(0) == 1, "one BOS"


def test_an_exported_folder_scores_as_the_run_that_it_came_from(place: Path, tmp_path: Path) -> None:
    encode = load_vocabulary(place / "vocabulary").encode_batch
    export_checkpoint(str(place / "child"), str(tmp_path / "hf"), encode, transformers=False)
    arguments = {"checkpoint": str(tmp_path / "hf"), "stores": (str(place / "held"),), "exams": ()}
    with pytest.raises(UserError, match="no run folder"):
        evaluate(**arguments, **SETTINGS)
    assert evaluate(**arguments, **SETTINGS, to=str(tmp_path / "results"), name="hf") == 0
    found = json.loads((tmp_path / "results" / "hf.json").read_text(encoding="utf-8"))
    assert found["models"]["child"]["kind"] == "hf"
    for row, of_run in zip(found["bits_per_byte"], read(place)["bits_per_byte"], strict=True):
        assert row["child"]["value"] == pytest.approx(of_run["child"]["value"], abs=2e-6)


def test_a_damaged_export_is_not_scored(place: Path, tmp_path: Path) -> None:
    encode = load_vocabulary(place / "vocabulary").encode_batch
    export_checkpoint(str(place / "child"), str(tmp_path / "hf"), encode, transformers=False)
    weights = tmp_path / "hf" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model.safetensors is damaged or was changed: its sha256"):
        evaluate(checkpoint=str(tmp_path / "hf"), stores=(str(place / "held"),), to=str(tmp_path / "out"), **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_the_same_again_is_read_and_not_computed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place / "child" / "evaluation" / "step-7.json").stat().st_mtime_ns
    arguments = {"parent": str(place / "parent"), "stores": (str(place / "held"),)}
    evaluate(checkpoint=str(place / "child"), **arguments, **SETTINGS)
    printed = capsys.readouterr().out
    assert "scoring" not in printed and "bits per byte" in printed
    assert max(len(line) for line in printed.splitlines()) <= 80, "wider than a terminal"
    assert (place / "child" / "evaluation" / "step-7.json").stat().st_mtime_ns == before


def test_another_evaluation_does_not_overwrite_unasked(place: Path) -> None:
    before = read(place)
    other = SETTINGS | {"limit": 2}
    arguments = {"checkpoint": str(place / "child"), "exams": ("samples/en",)}
    with pytest.raises(UserError, match=r"different: models, stores, prompts_begin, exams, limit"):
        evaluate(**arguments, **other)
    assert read(place) == before
    assert evaluate(**arguments, **other, name="small") == 0
    assert "parent" not in read(place, "small")["models"]
    again = other | {"seed": 1}
    assert evaluate(**arguments, **again, name="small", overwrite=True) == 0
    assert read(place, "small")["identity"]["seed"] == 1


def test_what_does_not_fit_together_is_refused(place: Path, tmp_path: Path) -> None:
    vocabulary = make_vocabulary(tmp_path / "other")
    text = (tmp_path / "other" / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "other" / "tokenizer.json").write_text(text + " ", encoding="utf-8")
    other = make_store(tmp_path / "held", load_vocabulary(vocabulary.path))
    with pytest.raises(UserError, match="the store was made with the vocabulary"):
        evaluate(checkpoint=str(place / "child"), stores=(str(other),), exams=(), name="x", **SETTINGS)
    with pytest.raises(UserError, match="nothing to judge by"):
        evaluate(checkpoint=str(place / "child"), exams=(), **SETTINGS)
    with pytest.raises(UserError, match="no such run folder"):
        evaluate(checkpoint=str(tmp_path / "nowhere"), **SETTINGS)


def test_a_damaged_store_is_refused_before_anything_is_scored(place: Path, tmp_path: Path) -> None:
    held = tmp_path / "held"
    shutil.copytree(place / "held", held)
    shard = next(held.glob("validation-*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="is damaged: its sha256"):
        evaluate(checkpoint=str(place / "child"), stores=(str(held),), to=str(tmp_path / "out"), **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_scored(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "judge", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as caught:
        evaluate(checkpoint=str(place / "child"), to=str(tmp_path / "file" / "out"), **SETTINGS)
    assert caught.value.where.startswith(str(tmp_path / "file"))
