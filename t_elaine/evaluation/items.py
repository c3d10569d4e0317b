"""Exam items as they stand in their files, odd ones of the published files too: protocols that generate need all.

ELAINE's layout: a JSON object a line with problem_id, problem_text, choices, answer (letters), points
(aistairc/medLLM_QA_benchmark, data/). No prompt, no model here.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from t_elaine import paths
from t_elaine.errors import UserError
from t_elaine.evaluation import benchmarks

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LANGUAGES = ("en", "ja", "zh")
FIELDS = ("problem_id", "problem_text", "choices", "answer")
One = TypeVar("One")


@dataclass(frozen=True, kw_only=True)
class Item:
    """An item.

    Attributes:
        line: in its file, from 1.
        id, answer: of the type that they have there.
        rationale: why the answer is right, where the file says it and people have passed it.
    """

    line: int
    id: str | int
    text: str
    context: str | None
    choices: tuple[str, ...]
    answer: str | tuple[str, ...]
    points: int
    text_only: bool
    rationale: "Rationale | None" = None

    @property
    def letters(self) -> str:
        """Of its own options."""
        return LETTERS[: len(self.choices)]


@dataclass(frozen=True, kw_only=True)
class Rationale:
    """A text, and the language that its words are of."""

    text: str
    language: str


@dataclass(frozen=True, kw_only=True)
class Exam:
    """A file of items. `published`: it is, to the byte, one of the benchmarks."""

    name: str
    language: str
    path: str
    sha256: str
    published: bool
    items: tuple[Item, ...]


def load_exam(spec: str, suites_dir: str = "") -> Exam:
    """Read an exam whole.

    Args:
        spec: "samples/en" (or ja, zh) for the shipped questions; "en/MedQA" for a benchmark in `suites_dir`; else a
            .jsonl file, with its language in front where no folder of its path is named after it:
            "ja:exams/igaku.jsonl".
        suites_dir: folder of the published exams.

    Raises:
        UserError: no such exam, a line that is no item, or (but in a published file, whose faults belong to the
            protocols) an answer that is outside the options.
    """
    language, path = locate(spec, suites_dir)
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    known = benchmarks.published(sha256)
    items = []
    for number, line in enumerate(lines(content, str(path)), 1):
        if line.strip():
            item = _item(line, number, str(path))
            if not known:
                _check_answer(item, f"{path}:{number}")
            items.append(item)
    if not items:
        raise UserError("there is no item in it", str(path), "give a file with a JSON object a line")
    return Exam(
        name=known.name if known else exam_name(spec, path),
        language=language,
        path=str(path),
        sha256=sha256,
        published=known is not None,
        items=tuple(items),
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
    """(language, file) of an exam; see `load_exam`.

    Raises:
        UserError: there is no such exam, or its language is not known.
    """
    if spec.startswith("samples/"):
        language = spec.removeprefix("samples/")
        path = paths.shipped("data_tasks") / "samples" / language / "exam.jsonl"
        if not path.is_file():
            there = sorted(f"samples/{p.parent.name}" for p in path.parent.parent.glob("*/exam.jsonl"))
            mend = f"give one of {', '.join(there)}, or a file"
            raise UserError(f"no shipped exam is called {spec!r}", "exams", mend)
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


def spread(items: tuple[One, ...], limit: int) -> tuple[One, ...]:
    """So many items, evenly over the exam; 0 takes all."""
    if not 0 < limit < len(items):
        return items
    return tuple(items[i * len(items) // limit] for i in range(limit))


def _item(line: str, number: int, path: str) -> Item:
    where = f"{path}:{number}"
    record = record_of(line, FIELDS, where)
    _check_types(record, where)
    answer = record["answer"]
    return Item(
        line=number,
        id=record["problem_id"],
        text=record["problem_text"],
        context=record.get("context"),
        choices=tuple(record["choices"]),
        answer=answer if isinstance(answer, str) else tuple(answer),
        points=int(float(record.get("points", 1))),
        text_only=bool(record.get("text_only", True)),
    )


def record_of(line: str, fields: Sequence[str], where: str) -> dict[str, Any]:
    """A line's JSON object, which has these fields.

    Raises:
        UserError: it is none, or lacks one.
    """
    mend = f"each line is a JSON object with {', '.join(fields)}"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"this line is no JSON (is the file cut off?): {error}", where, mend) from error
    if not isinstance(record, dict):
        raise UserError("this line is no JSON object", where, mend)
    if lacking := [name for name in fields if name not in record]:
        raise UserError(f"this line lacks {', '.join(lacking)}", where, mend)
    return record


def check_fields(record: Mapping[str, Any], checks: Iterable[tuple[str, bool, str]], about: str, where: str) -> None:
    """Raise UserError for the first of (name, whether it holds, how to mend it) that does not hold."""
    for name, holds, mend in checks:
        if not holds:
            raise UserError(f"{about}{name} is {json.dumps(record[name], ensure_ascii=False)[:80]}", where, mend)


def _check_types(record: Mapping[str, Any], where: str) -> None:
    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(part, str) for part in value)

    answer, choices = record["answer"], record["choices"]
    checks = (
        ("problem_id", isinstance(record["problem_id"], str | int), "give a text or a whole number"),
        ("problem_text", isinstance(record["problem_text"], str), "give a text"),
        ("context", isinstance(record.get("context", ""), str), "give a text, or leave it out"),
        ("choices", texts(choices) and len(choices) <= len(LETTERS), f"give a list of at most {len(LETTERS)} texts"),
        ("answer", isinstance(answer, str) or texts(answer), "give a list of letters"),
        ("points", _is_number(record.get("points", 1)), "give a number, or leave it out"),
    )
    check_fields(record, checks, f"item {record['problem_id']!r}: its ", where)


def _is_number(value: Any) -> bool:
    """A number, or a text that is one: the published files have both."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _check_answer(item: Item, where: str) -> None:
    """Letters of its options; any one text where it has none."""
    letters = [] if isinstance(item.answer, str) else [letter.strip().lower() for letter in item.answer]
    if item.choices:
        fine = bool(letters) and all(len(letter) == 1 and letter in item.letters for letter in letters)
    else:
        fine = len(letters) == 1 and bool(letters[0])
    if not fine:
        what = f"item {item.id!r}: the answer {item.answer!r} is outside its {len(item.choices)} options"
        mend = f"give letters of {', '.join(item.letters)}" if item.choices else "give a list with one number"
        raise UserError(what, where, mend)
