"""Exams in ELAINE's layout: one JSON object a line with problem_id, problem_text, choices, answer (letters), points.

Reads questions and says which ones cannot be scored and why; it knows no prompt and no model.
Layout: aistairc/medLLM_QA_benchmark, data/.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t_elaine import paths
from t_elaine.errors import UserError
from t_elaine.evaluation import benchmarks

LETTERS = "abcdefghij"
LANGUAGES = ("en", "ja", "zh")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question. `gold`: indices of the right options, ascending; `points`: what the examiners give for it."""

    id: str
    text: str
    choices: tuple[str, ...]
    gold: tuple[int, ...]
    points: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One exam. `skipped`: reason → questions left out; `sha256`: digest of the file `path` as it is."""

    name: str
    language: str
    questions: tuple[Question, ...]
    skipped: dict[str, int]
    sha256: str
    path: str = ""


def load_suite(spec: str, limit: int = 0, suites_dir: str = "") -> Suite:
    """Load an exam.

    Args:
        spec: "samples/en" (or ja, zh) for the shipped questions; "en/MedQA" for a benchmark in `suites_dir`; else a
            .jsonl file, with its language in front where no folder of its path is named after it:
            "ja:exams/igaku.jsonl".
        limit: take only so many scorable questions, spread evenly over the file; 0 takes all.
        suites_dir: folder of the published exams.

    Raises:
        UserError: no such file, a line that is no question, no language, or nothing that can be scored.
    """
    language, path = locate(spec, suites_dir)
    content = path.read_bytes()
    questions, skipped = [], Counter[str]()
    for number, line in enumerate(lines(content, str(path)), 1):
        if not line.strip():
            continue
        found = _question(line, f"{path}:{number}")
        if isinstance(found, str):
            skipped[found] += 1
        else:
            questions.append(found)
    if not questions:
        mend = f"reasons: {dict(skipped) or 'it is empty'}"
        raise UserError("no question of this exam can be scored", str(path), mend)
    if 0 < limit < len(questions):
        questions = [questions[i * len(questions) // limit] for i in range(limit)]
    return Suite(
        name=exam_name(spec, path),
        language=language,
        questions=tuple(questions),
        skipped=dict(sorted(skipped.items())),
        sha256=hashlib.sha256(content).hexdigest(),
        path=str(path),
    )


def exam_name(spec: str, path: Path) -> str:
    """What tables call it."""
    return spec if spec.startswith("samples/") or spec in benchmarks.benchmarks() else path.stem


def lines(content: bytes, where: str) -> list[str]:
    """Lines of a file of JSON Lines; U+2028 and its like end none.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"this is not UTF-8 (is the file cut off?): {error}", f"{where}:{line}", "copy it again"
        ) from error


def locate(spec: str, suites_dir: str = "") -> tuple[str, Path]:
    """(language, file) of an exam; see `load_suite`.

    Raises:
        UserError: there is no such exam, or its language is not known.
    """
    if spec.startswith("samples/"):
        language = spec.removeprefix("samples/")
        path = paths.shipped("data_tasks") / "samples" / language / "exam.jsonl"
        if not path.is_file():
            there = sorted(f"samples/{p.parent.name}" for p in path.parent.parent.glob("*/exam.jsonl"))
            mend = f"give one of {', '.join(there)}, or a file"
            raise UserError(f"no shipped exam is called {spec!r}", "evaluate.exams", mend)
        return language, path
    language, colon, rest = spec.partition(":")
    named = bool(colon) and language in LANGUAGES
    path = Path(rest if named else spec)
    if spec in benchmarks.benchmarks() or not (named or path.suffix or path.exists()):
        found = benchmarks.named(spec)
        return found.language, benchmarks.find(found, suites_dir)
    if not path.is_file():
        mend = "give samples/en, samples/ja, samples/zh, a benchmark such as en/MedQA, or a .jsonl file"
        raise UserError(f"no such exam: {path}", "exams", mend)
    if not named:
        folders = [part for part in path.parts[:-1] if part in LANGUAGES]
        if not folders:
            raise UserError(f"the language of {path} is not known", "exams", f"write it in front: ja:{path}")
        language = folders[-1]
    return language, path


def _question(line: str, where: str) -> Question | str:
    """The question, or the reason why it cannot be scored by options."""
    try:
        record = json.loads(line)
        text, choices, answer = str(record["problem_text"]), record["choices"], record["answer"]
        identity = str(record["problem_id"])
    except (ValueError, KeyError, TypeError) as error:
        mend = "each line is a JSON object with problem_id, problem_text, choices and answer"
        raise UserError(f"this line is no exam question: {error!r}", where, mend) from error
    if not isinstance(choices, list) or len(choices) < 2:
        return "no choices"
    if len(choices) > len(LETTERS):
        return "too many choices"
    if not isinstance(answer, list) or not answer:
        return "no answer letters"
    gold = [LETTERS.find(str(letter).strip().lower()) for letter in answer]
    if any(len(str(letter).strip()) != 1 for letter in answer) or min(gold) < 0 or max(gold) >= len(choices):
        return "answer letters outside the choices"
    if len(set(gold)) == len(choices):
        return "every choice is right"
    return Question(
        id=identity,
        text=_with_context(record, text),
        choices=tuple(str(choice) for choice in choices),
        gold=tuple(sorted(set(gold))),
        points=float(record.get("points") or 1),
    )


def _with_context(record: Mapping[str, Any], text: str) -> str:
    """PubMedQA's questions come with the abstract that they are about."""
    context = record.get("context")
    return f"{context}\n{text}" if isinstance(context, str) and context else text
