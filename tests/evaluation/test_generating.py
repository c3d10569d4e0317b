"""Exams under the protocols that generate, from the file to the score, with our own engine and a tiny random model."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from t_elaine.errors import UserError
from t_elaine.evaluation import exams, generating
from t_elaine.evaluation.items import load_exam
from t_elaine.generation.engine import generate
from t_elaine.generation.requests import Request
from tests.evaluation.test_official import record, write
from tests.generation import tiny

BOS = 1
POSITIONS = 1024


def encode(texts: list[str]) -> list[np.ndarray]:
    """One token a character."""
    return [np.array([3 + ord(letter) % 90 for letter in text], np.uint32) for text in texts]


CODER = SimpleNamespace(eos=2, encode_batch=encode)


def records(count: int = 9) -> list[dict]:
    return [record(i) for i in range(count)]


def test_an_exam_from_the_file_to_its_scores(tmp_path: Path) -> None:
    long = record(7, problem_text="x" * POSITIONS)
    write(tmp_path / "exam.jsonl", [*records(7), long, record(8, answer=["b"])])
    exam = load_exam(f"en:{tmp_path / 'exam.jsonl'}")
    engine = tiny.engine(max_position=POSITIONS)
    told = list[int]()
    ours = generating.in_process(engine, CODER, [BOS], [2], told.append)
    asked = exams.sittings([exam], ("official", "repaired"))
    folder = str(tmp_path / "answers")
    rows = exams.take(asked, lambda sitting: ours, folder, {"model": "tiny"}, resamples=20)
    assert [row["protocol"] for row in rows] == ["official", "official-rescored", "repaired"]
    assert [(row["questions"], row["unanswered"]) for row in rows] == [(4, [7]), (4, [7]), (9, [7])]
    assert rows[0]["items"][2] == {
        "line": 8,
        "id": 7,
        "gold": ("a",),
        "prediction": "NA",
        "right": False,
        "parsed": False,
        "answer": None,
    }
    for sitting, row in zip(asked, (rows[0], rows[2]), strict=True):
        for item, prompt in zip(row["items"], sitting.prompts, strict=True):
            if item["answer"] is not None:
                tokens = np.concatenate([[BOS], *encode([prompt])])
                (alone,) = generate(engine, [Request(tokens=tokens, sampling=sitting.sampling, end_ids=(2,))])
                assert item["answer"] == alone.text and len(alone.tokens) <= sitting.sampling.max_new
    assert sum(told) > 0
    files = {path.name: path.read_text().count("\n") for path in Path(folder).iterdir()}
    assert files == {rows[0]["answers"]: 4, rows[2]["answers"]: 9} and rows[0]["answers"] == rows[1]["answers"]
    json.dumps(rows, allow_nan=False)

    def never(sitting: exams.Sitting) -> exams.Write:
        return lambda prompts, sampling: pytest.fail("all answers are kept")

    assert exams.take(asked, never, folder, {"model": "tiny"}, resamples=20) == rows


def test_protocols_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path / "exam.jsonl", records())
    exam = load_exam(f"en:{tmp_path / 'exam.jsonl'}")
    for name in ("offical", "likelihood", "official-rescored"):
        with pytest.raises(UserError, match=f"no protocol that generates is called '{name}'"):
            exams.sittings([exam], (name,))


def test_ends_of_the_published_evaluation(tmp_path: Path) -> None:
    folders = [str(tmp_path / "nothing"), str(tmp_path)]
    assert generating.published_ends(folders, CODER) == (2,)
    for ends, wanted in ((7, (2, 7)), ([7, 5], (2, 5, 7)), (None, (2,))):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), encoding="utf-8")
        assert generating.published_ends(folders, CODER) == wanted
