"""What two models wrote to the same questions, those first where only one of them is right; bounded.

The questions' texts are read from the exams' files if they are still there and the same; without them the page shows
what was written and the questions' names.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t_elaine import paths
from t_elaine.reporting.entrants import Entrant, Row

MOST, LONGEST = 6, 700  # questions of an exam, characters of a text
AGAIN = "official-rescored"  # the very answers of `official`
KINDS = ("only the first is right", "only the second is right", "both right", "both wrong")


def shown(models: Sequence[Entrant], suites_dir: str = "", most: int = MOST) -> list[dict[str, Any]]:
    """Exam by exam: {"suite", "language", "protocol", "counts", "questions"}.

    Args:
        models: one, or two that are shown beside each other.
        suites_dir: folder of the published exams, if their files are not where they were.
        most: questions of each exam.
    """
    found: list[dict[str, Any]] = []
    for row in models[0].rows:
        others = [_same(row, model) for model in models[1:2]]
        if not row["items"] or row["protocol"] == AGAIN or None in others:
            continue
        texts = question_texts(row, models[0].result, suites_dir)
        groups = ordered(row, *(other for other in others if other))
        found.append(
            {
                "suite": row["suite"],
                "language": row["language"],
                "protocol": row["protocol"],
                "open": all(one["language"] != row["language"] for one in found),
                "counts": [(KINDS[kind], sum(1 for k, _ in groups if k == kind)) for kind in range(4)]
                if others
                else [],
                "questions": [_question(kind, items, texts, bool(others)) for kind, items in chosen(groups, most)],
            }
        )
    return found


def _same(row: Row, model: Entrant) -> Row | None:
    key = ("suite", "protocol", "suite_sha256", "protocol_sha256")
    return next((one for one in model.rows if all(one.get(k) == row.get(k) for k in key)), None)


def ordered(row: Row, other: Row | None = None) -> list[tuple[int, list[Row]]]:
    """(kind, the item in one or both): those that only one has right first, then those with unlike answers."""
    second = {item["line"]: item for item in other["items"]} if other else {}
    found = []
    for item in row["items"]:
        pair = [item, *([second[item["line"]]] if item["line"] in second else [])]
        if other and len(pair) < 2:
            continue
        rights = [one["right"] for one in pair]
        kind = (2 if rights[0] else 3) if len(set(rights)) == 1 else (0 if rights[0] else 1)
        found.append((kind, pair))
    return sorted(found, key=lambda one: (one[0] > 1, len({item["answer"] for item in one[1]}) == 1))


def chosen(groups: Sequence[tuple[int, list[Row]]], most: int) -> list[tuple[int, list[Row]]]:
    """So many of them: gained and lost ones in turn, then the others."""
    gained, lost, rest = ([one for one in groups if (one[0] == 0, one[0] == 1, one[0] > 1)[i]] for i in range(3))
    turns = [one for pair in zip(gained, lost, strict=False) for one in pair]
    more = gained[len(turns) // 2 :] + lost[len(turns) // 2 :]
    return [*turns, *more, *rest][:most]


def _question(kind: int, items: Sequence[Row], texts: Mapping[int, Row], two: bool) -> dict[str, Any]:
    text = texts.get(items[0]["line"], {})
    gold = items[0]["gold"]
    return {
        "id": items[0]["id"],
        "kind": KINDS[kind] if two else ("right", "wrong")[kind % 2],
        "question": cut(str(text.get("question", ""))),
        "choices": [cut(str(choice), 200) for choice in text.get("choices", ())][:10],
        "gold": gold if isinstance(gold, str) else ", ".join(map(str, gold)),
        "answers": [{**item, "answer": None if item["answer"] is None else cut(item["answer"])} for item in items],
    }


def cut(text: str, longest: int = LONGEST) -> str:
    """The text's beginning, with … where it goes on."""
    return text if len(text) <= longest else text[:longest].rstrip() + " …"


def question_texts(row: Row, result: Mapping[str, Any], suites_dir: str = "") -> dict[int, Row]:
    """Line → item of the exam's file; empty where no file with this content is found."""
    places = [result.get("exam_files", {}).get(row["suite"], ""), *_usual(row["suite"], suites_dir)]
    for path in map(Path, filter(None, places)):
        if path.is_file():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == row.get("suite_sha256"):
                return _records(content)
    return {}


def _records(content: bytes) -> dict[int, Row]:
    """Line → question and options; lines of another layout are left out."""
    found: dict[int, Row] = {}
    for number, line in enumerate(content.decode("utf-8-sig").split("\n"), 1):
        try:
            record = json.loads(line)
            options = record.get("choices") or list((record.get("options") or {}).values())
            found[number] = {"question": record.get("problem_text") or record["question"], "choices": options}
        except (ValueError, KeyError, AttributeError):
            continue
    return found


def _usual(suite: str, suites_dir: str) -> list[str]:
    """Where the shipped and the published exams lie."""
    if suite.startswith("samples/"):
        return [str(paths.shipped("data_tasks") / suite / "exam.jsonl")]
    known = json.loads((paths.shipped("data_tasks") / "benchmarks.json").read_bytes())["suites"]
    return [f"{suites_dir}/{suite}/{known[suite]['file']}"] if suites_dir and suite in known else []
