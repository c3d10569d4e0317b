"""From kept answers to a score: accuracy with its interval, beside what needs no model. No prompt is made here."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from t_elaine.evaluation import jmedllm, mmedbench, official, published, repaired, scoring
from t_elaine.evaluation.items import Item
from t_elaine.evaluation.sitting import Judge, Judged, Sitting, mean

JUDGES: Mapping[str, Judge] = {
    official.NAME: Judge(judge=official.judge, part=official.part, baselines=official.baselines),
    repaired.NAME: Judge(judge=repaired.judge, part=repaired.part, baselines=repaired.baselines),
    repaired.RESCORED: Judge(judge=repaired.judge, part=repaired.part, baselines=repaired.baselines),
    **jmedllm.judges(),
    **mmedbench.judges(),
}


def score(sitting: Sitting, answers: Mapping[int, str | None], resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """A sitting's score, as plain data; its headline figures leave out what the protocol reports apart.

    Args:
        sitting: what was asked, under the protocol that the score is named after.
        answers: by line, of all its items.
        resamples, seed: of the bootstrap.
    """
    judge = JUDGES[sitting.protocol]
    judged = [judge.judge(item, answers[item.line]) for item in sitting.items]
    often = Counter(one.prediction for one in judged).most_common(1)[0]
    texts = [answers[item.line] for item in sitting.items]
    parts: dict[str, list[int]] = {"": []}
    for place, item in enumerate(sitting.items):
        parts.setdefault(judge.part(item), []).append(place)
    by_part = {
        name: figures(judge, tuple(sitting.items[i] for i in places), [judged[i] for i in places], resamples, seed)
        for name, places in parts.items()
    }
    return {
        "suite": sitting.exam.name,
        "language": sitting.exam.language,
        "protocol": sitting.protocol,
        "protocol_sha256": sitting.rules.sha256,
        "prompts_sha256": sitting.prompts_sha256,
        "suite_sha256": sitting.exam.sha256,
        "published_suite": sitting.exam.published,
        "published_row": published.row(sitting),
        "shots": sitting.shots,
        "sampling": asdict(sitting.sampling),
        "excluded": dict(sitting.excluded),
        **by_part.pop(""),
        "apart": by_part,
        **by_subject(sitting, judge, judged, resamples, seed),
        "unparsable": round(mean(not one.parsed for one in judged), 6),
        "unanswered": [item.id for item, text in zip(sitting.items, texts, strict=True) if text is None],
        "answer_characters": round(mean(len(text or "") for text in texts), 3),
        "most_often": {"prediction": often[0], "share": round(often[1] / len(judged), 6)},
        "items": [
            {"line": item.line, "id": item.id, "gold": item.answer, **_apart(judge, item), **_told(one), "answer": text}
            for item, one, text in zip(sitting.items, judged, texts, strict=True)
        ],
    }


def _apart(judge: Judge, item: Item) -> dict[str, str]:
    """{"part"} of an item that the headline does not count."""
    return {"part": part} if (part := judge.part(item)) else {}


def _told(judged: Judged) -> dict[str, Any]:
    told = asdict(judged)
    return told if judged.marks else {name: value for name, value in told.items() if name != "marks"}


def by_subject(
    sitting: Sitting, judge: Judge, judged: Sequence[Judged], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """{"by_subject": name in a published table → figures, with the subject's own name}; nothing for most exams."""
    found = {}
    for name, subject in published.subjects(sitting.exam.sha256).items():
        places = [
            i
            for i, item in enumerate(sitting.items)
            if published.of_subject(subject, item.line) and not judge.part(item)
        ]
        told = figures(judge, tuple(sitting.items[i] for i in places), [judged[i] for i in places], resamples, seed)
        found[name] = {"subject": subject["subject"], **told}
    return {"by_subject": found} if found else {}


def figures(judge: Judge, items: tuple[Item, ...], judged: list[Judged], resamples: int, seed: int) -> dict[str, Any]:
    """Accuracy of some items and what it is to be held against; shares of 1. Of no items: their number alone."""
    if not items:
        return {"questions": 0}
    right = np.array([one.right for one in judged], np.float64)
    base = judge.baselines(items)
    interval = scoring.ratio(right, np.ones(len(right)), resamples, seed)
    marks = {name: None for one in judged for name in one.marks}
    return {
        "questions": len(items),
        "right": int(right.sum()),
        "accuracy": interval.to_dict(),
        "ceiling": round(base.ceiling, 6),
        "chance": round(base.chance, 6),
        "majority": {"answer": base.always, "accuracy": round(base.majority, 6)},
        "points": {
            "got": sum(item.points for item, one in zip(items, judged, strict=True) if one.right),
            "of": sum(item.points for item in items),
        },
        **({"marks": {name: _marked(name, judged, resamples, seed) for name in marks}} if marks else {}),
    }


def _marked(name: str, judged: Sequence[Judged], resamples: int, seed: int) -> dict[str, Any]:
    """The mean of a mark over those items that have it."""
    values = np.array([one.marks[name] for one in judged if name in one.marks], np.float64)
    return {"questions": len(values), **scoring.ratio(values, np.ones(len(values)), resamples, seed).to_dict()}
