"""Which cell of a published table a score may stand in, and an exam's subjects: facts about the tables, no figures.

A score enters a table only where exam, protocol and items are the table's own. The tables: ELAINE's card, the
leaderboard of JMedLLM's authors, MMedLM's README.
"""

from collections.abc import Mapping
from typing import Any

from t_elaine.evaluation import benchmarks, jmedllm, mmedbench, official
from t_elaine.evaluation.sitting import Sitting

# The table of each template: one has accuracies, the other BLEU-1 and ROUGE-1 alone.
MMEDBENCH = {mmedbench.ANSWER: "accuracy", mmedbench.RATIONALE: "rationale"}
ELAINE = "https://github.com/aistairc/medLLM_QA_benchmark"


def row(sitting: Sitting) -> dict[str, str] | None:
    """{"table", "column"} of the table that the score stands in; None where protocol, exam or items are others.

    MMedBench's files cannot be told from others here: as many items as its figures are of must do.
    """
    family, _, template = sitting.protocol.partition(":")
    if family == mmedbench.NAME:
        column = sitting.exam.name.partition("/")[2]
        sized = len(sitting.items) == sitting.rules.data["items"][column]
        return {"table": f"mmedlm/mmedbench_{MMEDBENCH[template]}", "column": column} if sized else None
    if not sitting.exam.published or not whole(sitting):
        return None
    if family == official.NAME and benchmarks.named(sitting.exam.name).repository == ELAINE:
        language, _, column = sitting.exam.name.partition("/")
        return {"table": f"elaine/{language}", "column": column}
    igakuqa = sitting.exam.name in ("ja/IgakuQA", "en/IgakuQA")
    if family == jmedllm.NAME and igakuqa and template in sitting.rules.data["published"]:
        return {"table": "jmedllm/no_shuffle", "column": f"IgakuQA {sitting.exam.language}"}
    return None


def whole(sitting: Sitting) -> bool:
    """All is asked that the protocol asks of the exam."""
    shown = sitting.shots if sitting.protocol == official.NAME else 0
    return len(sitting.items) + sum(sitting.excluded.values()) + shown == len(sitting.exam.items)


def subjects(sha256: str) -> Mapping[str, Mapping[str, Any]]:
    """Subjects of the exam whose file has this digest, by the name that a published table has for them.

    Each: {"subject", "lines": [first, last]}; none for most exams.
    """
    known = benchmarks.published(sha256)
    return known.subjects if known else {}


def of_subject(subject: Mapping[str, Any], line: int) -> bool:
    """Whether the item at a line of the file belongs to it."""
    first, last = subject["lines"]
    return bool(first <= line <= last)
