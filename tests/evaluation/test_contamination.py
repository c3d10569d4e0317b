"""With every exam stand the questions seen in training and the score without them; what is not known is said."""

import hashlib
import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from t_elaine.data.overlap import Overlap
from t_elaine.data.store import open_store, write_manifest
from t_elaine.evaluate import evaluate
from t_elaine.evaluation import contamination, table
from t_elaine.evaluation.engines import open_model
from t_elaine.evaluation.suites import load_suite
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import MeshConfig
from tests.evaluation.making import make_run, make_store, make_vocabulary

SETTINGS = {
    "sequence_length": 256,
    "batch_rows": 8,
    "resamples": 100,
    "mesh": MeshConfig(fsdp=8),
    "compute": ComputeConfig(dtype="float32", remat="none", loss_chunk=64),
}
QUESTION = "Which of the {} chambers of the heart sends blood with oxygen to all of the body's organs, day {}?"


def write_exam(path: Path, count: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    words = ["four", "inner", "lower", "upper", "right", "left", "large", "small"]
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            question = f"{' '.join(words[i:] + words[:i])} {QUESTION.format(words[i], i)}"
            options = [f"chamber {words[(i + k) % 8]}" for k in range(3)]
            item = {"problem_id": i, "problem_text": question, "choices": options, "answer": ["abc"[i % 3]]}
            file.write(json.dumps(item) + "\n")
    return path


def question(exam: Path, i: int) -> str:
    return json.loads(exam.read_text(encoding="utf-8").splitlines()[i])["problem_text"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on a store with two questions of the exam, one of them cut short."""
    folder = tmp_path_factory.mktemp("contaminated")
    vocabulary = make_vocabulary(folder / "vocabulary")
    make_run(folder / "run", vocabulary)
    exam = write_exam(folder / "en" / "heart.jsonl")
    texts = [f"Notes. {question(exam, 2).upper()}", " ".join(question(exam, 5).split()[:14]), "The heart beats."]
    store = make_store(folder / "store", vocabulary, {("en", "textbook"): texts})
    manifest = open_store(store).manifest
    for shard in manifest["shards"]:
        (store / shard["file"]).rename(store / "train-00000-of-00001.arrow")
        shard |= {"file": "train-00000-of-00001.arrow", "split": "train"}
    write_manifest(store, manifest)
    record(folder / "run", store)
    return folder


def record(run: Path, store: Path) -> None:
    digest = hashlib.sha256((store / "manifest.json").read_bytes()).hexdigest()
    content = {"store": {"folder": str(store), "manifest_sha256": digest}}
    (run / "data.json").write_text(json.dumps(content), encoding="utf-8")


def evaluated(place: Path, name: str, **more: object) -> dict:
    arguments = {"checkpoint": str(place / "run"), "exams": (str(place / "en" / "heart.jsonl"),), "name": name}
    assert evaluate(**arguments, **SETTINGS, **more) == 0
    return json.loads((place / "run" / "evaluation" / f"{name}.json").read_text(encoding="utf-8"))


def test_scores_stand_with_and_without_what_was_seen(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluated(place, "seen")
    exam = result["exams"][0]
    found = exam["contamination"]
    assert found["known"] and set(found["items"]) == {"2", "5"}
    assert found["items"]["2"]["question"] == 1.0 and 0 < found["items"]["5"]["question"] < 0.7
    assert found["items"]["2"]["stores"]["store"]["examples"] == ["doc-0"]
    assert (found["seen"], found["unseen"]) == (2, 6)
    for way, scores in found["scores"].items():
        kept = [item for item in exam["items"] if item["id"] not in ("2", "5")]
        right = sum(item["child"][way]["choice"] == item["gold"] for item in kept) / 6
        assert scores["child"]["value"] == pytest.approx(right, abs=1e-6)
    printed = " ".join(capsys.readouterr().out.split())
    assert "seen in the texts trained on: 2 of 8 questions" in printed and "without them" in printed
    row = contamination.markdown(result).splitlines()[-1]
    assert row.startswith("| heart |") and row.endswith("| 6 |")


def test_a_share_can_be_asked_for(place: Path) -> None:
    found = evaluated(place, "share", overlap=Overlap(share=0.9))["exams"][0]["contamination"]
    assert (found["seen"], found["unseen"]) == (1, 7) and not found["items"]["5"]["seen"]


def test_what_was_found_is_kept_beside_the_result(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, suite = open_model(str(place / "run")), load_suite(str(place / "en" / "heart.jsonl"))
    trained = contamination.trained_on(model, ())
    folder, said = str(place / "run" / "evaluation"), list[str]()
    first = contamination.look(trained, [suite], Overlap(), folder, 1, said.append)
    os.rename(place / "store", place / "gone")
    try:
        assert contamination.look(trained, [suite], Overlap(), folder, 1, said.append) == first
        other = contamination.look(trained, [suite], Overlap(words=14), folder, 1, said.append)
    finally:
        os.rename(place / "gone", place / "store")
    assert first[0]["known"] and not other[0]["known"] and "not there any more" in other[0]["why"]


def test_a_merged_model_has_read_what_those_it_is_made_of_have(place: Path, tmp_path: Path) -> None:
    vocabulary = make_vocabulary(tmp_path / "vocabulary")
    merged, bare = (make_run(tmp_path / name, vocabulary) for name in ("merged", "bare"))
    (merged / "parent").mkdir(exist_ok=True)
    unknown = "what the model it began from had read is not known"
    for others, base in (((place / "run", place / "run"), ""), ((place / "run", bare), unknown)):
        record = {"parents": [{"path": str(path)} for path in others]}
        (merged / "parent" / "merge.json").write_text(json.dumps(record), encoding="utf-8")
        found = contamination.trained_on(open_model(str(merged)), ())
        assert [one.name for one in found.places] == ["store"] and (found.why, found.base) == ("", base)


def test_what_is_not_known_is_said(place: Path, tmp_path: Path) -> None:
    vocabulary = make_vocabulary(tmp_path / "vocabulary")
    bare = open_model(str(make_run(tmp_path / "run", vocabulary)))
    trained = contamination.trained_on(bare, ())
    assert trained.why.startswith("not known") and trained.places == ()
    row = contamination.look(trained, [load_suite(str(place / "en" / "heart.jsonl"))], Overlap(), str(tmp_path))[0]
    exam = {"contamination": row, "questions": 8, "headline": "text", "items": [], "scores": {}}
    assert contamination.sentence(exam, str) == f"questions seen in training: {trained.why}"
    assert contamination.trained_on(bare, (), wanted=False).why == "not looked for"


def test_texts_can_be_named(place: Path, tmp_path: Path) -> None:
    text = question(place / "en" / "heart.jsonl", 7)
    (tmp_path / "raw.jsonl").write_text(json.dumps({"id": "r", "text": text}) + "\n", encoding="utf-8")
    found = evaluated(place, "named", trained_on=(str(tmp_path / "raw.jsonl"),))["exams"][0]["contamination"]
    assert set(found["items"]) == {"7"} and found["stores"]["raw.jsonl"]["documents"] == 1


def test_a_result_without_it_is_shown_as_before() -> None:
    out = io.StringIO()
    table.show({"models": {"child": {}}, "bits_per_byte": [], "exams": []}, Console(file=out))
    assert contamination.sentence({"questions": 3}, str) == ""
