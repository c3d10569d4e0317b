"""From what was measured to the result file's content: bits-per-byte by store, language and category; exam scores.

Every figure stands with its interval, child beside parent, and their paired difference. No model runs here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t_elaine.evaluation import contamination, protocols, published, scoring
from t_elaine.evaluation.bits_per_byte import Held
from t_elaine.evaluation.items import LETTERS, spread
from t_elaine.evaluation.options import ExamScores
from t_elaine.evaluation.runner import LIKELIHOOD, Judged, Material
from t_elaine.evaluation.scoring import Interval
from t_elaine.evaluation.suites import Suite

SIDES = ("child", "parent")
# Questions whose text and options stand in the result, for the report to show.
SAMPLES = 4
# The category of text that a model should not forget; it never counts as a language's gain.
GENERAL = "general"


def result(
    judged: Sequence[Judged],
    material: Material,
    identity: dict[str, Any],
    contaminated: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The result file's content.

    Args:
        judged: the child, and the parent if there is one.
        material: what they were judged on.
        identity: `runner.identity`'s; "resamples" and "seed" are read from it.
        contaminated: of `contamination.look`, a suite each; empty: not looked for.
    """
    draws = {"resamples": int(identity["resamples"]), "seed": int(identity["seed"])}
    exams = [
        {
            **exam_row(suite, [one.exams[i] for one in judged], material.protocol.headline, draws),
            "protocol": LIKELIHOOD,
            "protocol_sha256": material.protocol.sha256,
            "prompts_sha256": protocols.prompts_sha256(material.protocol, suite.language, suite.questions),
            "suite_sha256": suite.sha256,
        }
        for i, suite in enumerate(material.suites)
    ]
    for exam, found in zip(exams, contaminated, strict=bool(contaminated)):
        exam["contamination"] = contamination.row(exam, found, compared, draws)
    return {
        "format": identity["format"],
        "identity": identity,
        "models": {side: one.model.describe() for side, one in zip(SIDES, judged, strict=False)},
        "bits_per_byte": bits_rows([one.held for one in judged], draws),
        "exams": exams,
        "protocol": {"sha256": material.protocol.sha256, **material.protocol.templates},
    }


def bits_rows(sides: Sequence[Sequence[Held]], draws: dict[str, int]) -> list[dict[str, Any]]:
    """One row a store, a language, a language's general text, and a category of a language; `level` says which.

    Rows of level "language" leave general text out: what was gained and what was forgotten are told apart.
    """
    if not sides[0]:
        return []
    keys = [(held.store, language, category) for held in sides[0] for language, category in held.groups]
    nats = [np.concatenate([held.nats for held in side]) for side in sides]
    counts = {name: np.concatenate([getattr(held, name) for held in sides[0]]) for name in ("tokens", "bytes")}
    unpredicted = {held.store: held.unpredicted for held in sides[0]}
    levels: tuple[tuple[str, Callable[[tuple[str, str, str]], tuple[str, ...]]], ...] = (
        ("store", lambda key: (key[0],)),
        ("language", lambda key: () if key[2] == GENERAL else (key[1],)),
        ("general", lambda key: (key[1],) if key[2] == GENERAL else ()),
        ("category", lambda key: (key[1], key[2])),
    )
    rows = []
    for level, of in levels:
        for name in sorted({of(key) for key in keys} - {()}):
            members = np.array([of(key) == name for key in keys])
            row: dict[str, Any] = {"level": level} | dict(zip(_columns(level), name, strict=True))
            if level == "store":
                row["unpredicted"] = unpredicted[name[0]]
            row |= {"documents": int(members.sum())} | {k: int(v[members].sum()) for k, v in counts.items()}
            row |= compared([side[members] / np.log(2) for side in nats], counts["bytes"][members], draws)
            rows.append(row)
    return rows


def _columns(level: str) -> tuple[str, ...]:
    return {"store": ("store",), "category": ("language", "category")}.get(level, ("language",))


def compared(sides: Sequence[np.ndarray], below: np.ndarray, draws: dict[str, int]) -> dict[str, Any]:
    """{"child": interval, "parent": interval, "difference": child - parent}, the last two where there is a parent."""
    row: dict[str, Any] = {}
    if not below.sum():
        return row
    for name, values in zip(SIDES, sides, strict=False):
        row[name] = scoring.ratio(values, below, **draws).to_dict()
    if len(sides) == 2:
        row["difference"] = scoring.difference(sides[0], sides[1], below, **draws).to_dict()
    return row


def exam_row(suite: Suite, sides: Sequence[ExamScores], headline: str, draws: dict[str, int]) -> dict[str, Any]:
    """One exam: accuracies by way of scoring, chance and majority, some questions whole, all questions in short."""
    golds = [question.gold for question in suite.questions]
    always, share = scoring.majority(golds)
    chosen = [_choices(side, golds) for side in sides]
    scores = {}
    for name in sides[0].scores:
        right = [np.array([c == g for c, g in zip(side[name], golds, strict=True)], np.float64) for side in chosen]
        scores[name] = compared(right, np.ones(len(golds)), draws)
    return {
        "suite": suite.name,
        "language": suite.language,
        "questions": len(golds),
        "skipped": suite.skipped,
        "headline": headline,
        "ceiling": 1.0,  # options alone are scored, and every question has a right one
        "chance": round(scoring.chance([len(q.choices) for q in suite.questions], golds), 6),
        "majority": {"answer": _letters(always), "accuracy": round(share, 6)},
        "scores": scores,
        **_by_subject(suite, chosen, headline, draws),
        "prompts_cut": {side: exam.cut for side, exam in zip(SIDES, sides, strict=False)},
        "first_prompt_ids": {side: exam.first_prompt_ids for side, exam in zip(SIDES, sides, strict=False)},
        "samples": [_sample(suite, i, chosen, headline) for i in spread(tuple(range(len(golds))), SAMPLES)],
        "items": [_item(suite, i, sides, chosen) for i in range(len(golds))],
    }


def _by_subject(
    suite: Suite, chosen: Sequence[dict[str, list[tuple[int, ...]]]], headline: str, draws: dict[str, int]
) -> dict[str, Any]:
    """{"by_subject": name in a published table → questions and accuracy by the headline's way}; {} for most exams."""
    found = {}
    for name, subject in published.subjects(suite.sha256).items():
        places = [i for i, one in enumerate(suite.questions) if published.of_subject(subject, one.line)]
        right = [
            np.array([side[headline][i] == suite.questions[i].gold for i in places], np.float64) for side in chosen
        ]
        told = compared(right, np.ones(len(places)), draws)
        found[name] = {"subject": subject["subject"], "questions": len(places), **told}
    return {"by_subject": found} if found else {}


def _choices(side: ExamScores, golds: Sequence[tuple[int, ...]]) -> dict[str, list[tuple[int, ...]]]:
    return {
        name: [scoring.choose(options, len(gold)) for options, gold in zip(questions, golds, strict=True)]
        for name, questions in side.scores.items()
    }


def _letters(indices: Sequence[int]) -> str:
    return ",".join(LETTERS[i] for i in indices)


def _sample(suite: Suite, i: int, chosen: Sequence[dict[str, list[tuple[int, ...]]]], headline: str) -> dict[str, Any]:
    question = suite.questions[i]
    return {
        "id": question.id,
        "question": question.text,
        "choices": list(question.choices),
        "gold": _letters(question.gold),
        **{side: _letters(one[headline][i]) for side, one in zip(SIDES, chosen, strict=False)},
    }


def _item(
    suite: Suite, i: int, sides: Sequence[ExamScores], chosen: Sequence[dict[str, list[tuple[int, ...]]]]
) -> dict[str, Any]:
    item: dict[str, Any] = {"id": suite.questions[i].id, "gold": _letters(suite.questions[i].gold)}
    for name, side, choice in zip(SIDES, sides, chosen, strict=False):
        item[name] = {
            way: {"choice": _letters(choice[way][i]), "scores": [round(value, 5) for value in side.scores[way][i]]}
            for way in side.scores
        }
    return item


__all__ = ["Interval", "bits_rows", "compared", "exam_row", "result"]
