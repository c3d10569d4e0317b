"""An engine that only replays a script: odd answers from the asking to the score, and what stands beside a score."""

import json
from pathlib import Path

import pytest

from t_elaine.evaluation import exams
from t_elaine.evaluation.items import load_exam
from tests.evaluation.test_official import ODD, exam, record, write


def replaying(answers: list[str | None]):
    """An engine that gives the prompts these answers, the last prompt first."""
    return lambda sitting: lambda prompts, sampling: reversed(list(zip(range(len(prompts)), answers, strict=True)))


def test_odd_answers_from_the_engine_to_the_score(tmp_path: Path) -> None:
    """The table of odd answers that was measured with the published parser."""
    write(tmp_path / "exam.jsonl", [record(i) for i in range(5 + len(ODD))])
    asked = exams.sittings([load_exam(f"en:{tmp_path / 'exam.jsonl'}")], ["official"])
    said = [answer for answer, _, _ in ODD]
    row, again = exams.take(asked, replaying(said), str(tmp_path / "kept"), {"engine": "script"})
    assert [(one["answer"], one["prediction"], one["right"]) for one in row["items"]] == ODD
    assert row["right"] == sum(right for _, _, right in ODD) and row["protocol"] == "official"
    assert row["unanswered"] == [5 + said.index(None)]
    assert row["unparsable"] == pytest.approx(sum(p not in {"a", "b", "ⓐ"} for _, p, _ in ODD) / len(ODD), abs=1e-6)
    assert row["answer_characters"] == pytest.approx(sum(len(one or "") for one in said) / len(said), abs=1e-3)
    assert row["accuracy"]["low"] < row["accuracy"]["value"] < row["accuracy"]["high"]
    assert (row["ceiling"], row["chance"], row["majority"]) == (1.0, 0.5, {"answer": "a", "accuracy": 1.0})
    assert len(row["prompts_sha256"]) == len(row["protocol_sha256"]) == 64 and row["published_row"] is None
    assert again["protocol"] == "official-rescored" and again["prompts_sha256"] == row["prompts_sha256"]
    (kept,) = (tmp_path / "kept").iterdir()
    assert [json.loads(line)["id"] for line in kept.read_text().split("\n")[:2]] == [4 + len(ODD), 3 + len(ODD)]


def test_scores_enter_published_tables_whole_only(shared_data: Path, tmp_path: Path) -> None:
    mmlu = exam(shared_data, "en/MMLU")
    asked = [
        exams.sittings([mmlu], [name], limit)[0] for name, limit in (("official", 0), ("official", 9), ("repaired", 0))
    ]
    rows = [
        exams.take([one], replaying(["d"] * len(one.items)), str(tmp_path), {"limit": i}, resamples=10)[0]
        for i, one in enumerate(asked)
    ]
    table = {"table": "elaine/en", "column": "MMLU"}
    assert [row["published_row"] for row in rows] == [table, None, None]
    counts = [[one["questions"] for one in row["by_subject"].values()] for row in rows]
    assert counts[0] == [265, 100, 130, 272, 144, 173], "the first five of anatomy are demonstrations"
    assert counts[2] == [265, 100, 135, 272, 144, 95], "78 questions of college medicine come again"
    assert sum(one["right"] for one in rows[0]["by_subject"].values()) == rows[0]["right"] == 352
