"""MMedBench's results as the four files that its leaderboard takes (MAGIC-AI4Med/MMedLM, SubmissionTutorial.md).

Beside them a leaderboard wants a description of the model, which is not made here. Languages that were not asked have
empty cells.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from t_elaine import paths
from t_elaine.evaluation import mmedbench
from t_elaine.evaluation.sitting import Sitting, load_rules

COLUMNS = ("Language", "ModelInput", "ModelOutput", "GT_Answer")
METRICS = {
    **{f"BLEU-{order}": f"bleu_{order}" for order in range(1, 5)},
    "ROUGE-1": "rouge_1",
    "ROUGE-2": "rouge_2",
    "ROUGE-L": "rouge_l",
}


def folder(path: str) -> str:
    """Of the files that belong to the result at `path`."""
    return f"{path.removesuffix('.json')}-mmedbench"


def write(path: str, sittings: Sequence[Sitting], rows: Sequence[Mapping[str, Any]]) -> str:
    """Write them beside a result, if MMedBench was asked.

    Args:
        path: of the result.
        sittings: what was asked.
        rows: scores (`grading.score`) of one model.

    Returns:
        the folder; "" where MMedBench was not asked.
    """
    made = files(sittings, rows)
    if not made:
        return ""
    paths.make_folder(folder(path))
    for name, lines in made.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        paths.write_text(paths.join(folder(path), name), text.getvalue())
    return folder(path)


def files(sittings: Sequence[Sitting], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """Lines of cells by file name; nothing where MMedBench was not asked."""
    scored = {(row["suite"], row["protocol"]): row for row in rows}
    asked = {
        template: {
            one.exam.name.partition("/")[2]: (one, scored[one.exam.name, one.protocol])
            for one in sittings
            if one.protocol == f"{mmedbench.NAME}:{template}"
        }
        for template in (mmedbench.ANSWER, mmedbench.RATIONALE)
    }
    if not any(asked.values()):
        return {}
    languages = list(load_rules(mmedbench.NAME).data["languages"])
    chosen, reasoned = asked[mmedbench.ANSWER], asked[mmedbench.RATIONALE]
    accuracy = [_percent(chosen[name][1]["accuracy"]) if name in chosen else "" for name in languages]
    return {
        "multi_choice_results.csv": [list(COLUMNS), *_results(chosen, passed=False)],
        "rationale_results.csv": [list(COLUMNS), *_results(reasoned, passed=True)],
        "accuracy_metric.csv": [languages, accuracy],
        "rationale_similarity_metric.csv": [
            ["Metric", *languages],
            *([metric, *(_mark(reasoned, name, mark) for name in languages)] for metric, mark in METRICS.items()),
        ],
    }


def _results(asked: Mapping[str, tuple[Sitting, Mapping[str, Any]]], passed: bool) -> list[list[str]]:
    """A line an item; `passed`: those alone whose reason people have passed, and that reason for the gold."""
    lines = []
    for language, (sitting, row) in asked.items():
        for item, prompt, told in zip(sitting.items, sitting.prompts, row["items"], strict=True):
            gold = ",".join(item.answer).upper()
            if passed and item.rationale is None:
                continue
            lines.append(
                [language, prompt, told["answer"] or "", item.rationale.text if passed and item.rationale else gold]
            )
    return lines


def _mark(asked: Mapping[str, tuple[Sitting, Mapping[str, Any]]], language: str, mark: str) -> str:
    marks = asked[language][1].get("marks", {}) if language in asked else {}
    return _percent(marks[mark]) if mark in marks else ""


def _percent(value: Mapping[str, Any]) -> str:
    return f"{100 * value['value']:.2f}"
