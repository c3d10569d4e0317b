"""Scores of exams that were answered in text, without the items that stand in the texts trained on.

What stands in those texts is `contamination`'s; which answers are right is read from the scores. No model, no prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from t_elaine.evaluation import grading
from t_elaine.evaluation.contamination import HALF
from t_elaine.evaluation.items import Exam
from t_elaine.evaluation.sitting import Judged, Sitting


def put(result: dict[str, Any], sittings: Sequence[Sitting], found: Sequence[dict[str, Any]]) -> None:
    """Put it into a result: beside each score of `generated`, and where each item stands under "overlap"."""
    if sittings:
        draws = {name: int(result["identity"][name]) for name in ("resamples", "seed")}
        join(result["generated"], sittings, found, draws)
        result["overlap"] = {
            sitting.exam.name: one["items"] for sitting, one in zip(sittings, found, strict=True) if one["known"]
        }


def join(
    generated: Mapping[str, Sequence[dict[str, Any]]],
    sittings: Sequence[Sitting],
    found: Sequence[dict[str, Any]],
    draws: Mapping[str, int],
) -> None:
    """Put beside each score what was seen of its items, and the score on the others.

    Args:
        generated: side → scores (`grading.score`); each gets "contamination".
        sittings: what was asked.
        found: of `contamination.look`, one for each sitting's exam.
        draws: resamples and seed of the bootstrap.
    """
    exams = {_name(sitting.exam): (sitting.exam, one) for sitting, one in zip(sittings, found, strict=True)}
    for rows in generated.values():
        for row in rows:
            key = row["suite"], row["suite_sha256"]
            if key in exams and row["protocol"] in grading.JUDGES:
                row["contamination"] = beside(row, *exams[key], draws)


def _name(exam: Exam) -> tuple[str, str]:
    return exam.name, exam.sha256


def beside(row: Mapping[str, Any], exam: Exam, found: dict[str, Any], draws: Mapping[str, int]) -> dict[str, Any]:
    """What was seen of a score's items: {"known", "why", "base", …, "seen", "half", "unseen", "items", "without"}.

    `seen`, `half` and `unseen` count those items that the headline counts, and `without` has its figures; `items` are
    all that were asked and seen, with the share of the question.
    """
    if not found["known"]:
        return found
    judge = grading.JUDGES[row["protocol"]]
    items = {item.line: item for item in exam.items}
    shares = {name: one["question"] for name, one in found["items"].items() if one["seen"]}
    asked = [one for one in row["items"] if not judge.part(items[one["line"]])]
    left = [one for one in asked if str(one["id"]) not in shares]
    judged = [Judged(**{name: one[name] for name in ("prediction", "right", "parsed")}) for one in left]
    seen = [shares[str(one["id"])] for one in asked if str(one["id"]) in shares]
    return {
        **found,
        "items": {str(one["id"]): shares[str(one["id"])] for one in row["items"] if str(one["id"]) in shares},
        "seen": len(seen),
        "half": sum(share >= HALF for share in seen),
        "unseen": len(left),
        "without": grading.figures(judge, tuple(items[one["line"]] for one in left), judged, **draws),
    }
