"""Two models item by item: which answers were gained, which lost, and whether chance alone would do it.

Works on results as `evaluate` writes them. The test is McNemar's, exact and two-sided (McNemar 1947; binomial over the
items where only one of the two is right); p-values of one protocol's exams are also given after Holm (1979). The
difference has a paired bootstrap interval. Asks no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t_elaine.evaluation import scoring

LIKELIHOOD = "likelihood"
# A score's figures that must be equal, or the two were not asked the same; and what to call them.
SAME = {"suite_sha256": "another file of the exam", "protocol_sha256": "other templates", "sampling": "other sampling"}


@dataclass(frozen=True, kw_only=True)
class Score:
    """A model's answers to one exam under one protocol. `right`: by item; `how`: what must be the same in both."""

    suite: str
    language: str
    protocol: str
    right: Mapping[str, bool]
    how: Mapping[str, Any]


def scores(result: Mapping[str, Any], side: str) -> list[Score]:
    """All scores of one side ("child" or "parent") of a result; items reported apart are left out."""
    found = [
        Score(
            suite=row["suite"],
            language=row["language"],
            protocol=row["protocol"],
            right={f"{one['line']}": one["right"] for one in row["items"] if not one.get("part")},
            how={key: row.get(key) for key in SAME},
        )
        for row in result.get("generated", {}).get(side, ())
    ]
    return found + [_likelihood(result, exam, side) for exam in result["exams"] if side in exam["items"][0]]


def _likelihood(result: Mapping[str, Any], exam: Mapping[str, Any], side: str) -> Score:
    way = exam["headline"]
    return Score(
        suite=exam["suite"],
        language=exam["language"],
        protocol=LIKELIHOOD,
        right={str(one["id"]): one[side][way]["choice"] == one["gold"] for one in exam["items"]},
        how={
            "suite_sha256": result["identity"].get("exams", {}).get(exam["suite"]),
            "protocol_sha256": result["protocol"]["sha256"],
        },
    )


def compare(
    first: Sequence[Score], second: Sequence[Score], *, resamples: int = 2000, seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """{"rows": exams that both answered, "left_out": those that cannot be compared, with "why"}.

    Args:
        first, second: gains are the first's: items that it has right and the second has not.
        resamples, seed: of the bootstrap.
    """
    others = {(one.suite, one.protocol): one for one in second}
    rows, left_out = [], []
    for one in first:
        other = others.pop((one.suite, one.protocol), None)
        why = "asked of one of the two only" if other is None else unlike(one, other)
        if other is None or why:
            left_out.append({"suite": one.suite, "protocol": one.protocol, "why": why})
        else:
            rows.append(pair(one, other, resamples, seed))
    left_out += [{"suite": s, "protocol": p, "why": "asked of one of the two only"} for s, p in others]
    for protocol in {row["protocol"] for row in rows}:
        members = [row for row in rows if row["protocol"] == protocol]
        for row, p in zip(members, holm([row["p"] for row in members]), strict=True):
            row["p_holm"] = round(p, 6)
    return {"rows": rows, "left_out": left_out}


def unlike(one: Score, other: Score) -> str:
    """Why two scores of the same name cannot be compared; "" where they can."""
    told = [words for key, words in SAME.items() if one.how.get(key) != other.how.get(key)]
    return ", ".join(told) or ("" if set(one.right) & set(other.right) else "no item that both were asked")


def pair(one: Score, other: Score, resamples: int, seed: int) -> dict[str, Any]:
    """Two scores over the items that both were asked."""
    names = [name for name in one.right if name in other.right]
    first, second = (np.array([score.right[name] for name in names], bool) for score in (one, other))
    gained, lost = first & ~second, second & ~first
    difference = scoring.difference(first, second, np.ones(len(names)), resamples, seed)
    return {
        "suite": one.suite,
        "language": one.language,
        "protocol": one.protocol,
        "questions": len(names),
        "right": [int(first.sum()), int(second.sum())],
        "difference": difference.to_dict(),
        "gained": [name for name, mark in zip(names, gained, strict=True) if mark],
        "lost": [name for name, mark in zip(names, lost, strict=True) if mark],
        "p": round(mcnemar(int(gained.sum()), int(lost.sum())), 6),
    }


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p: how likely a fair coin divides gained + lost items at least as unevenly."""
    n, fewer = gained + lost, min(gained, lost)
    ways = total = 1
    for i in range(fewer):
        ways = ways * (n - i) // (i + 1)
        total += ways
    return min(1.0, 2 * total / 2**n)  # whole numbers, so that no count is too large


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values: the smallest times their number, the next times one less, and never below the one before."""
    found, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        found[place] = least
    return found
