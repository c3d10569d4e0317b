"""Questions of exams as plain texts, read from files in ELAINE's layout, for finding them in other texts.

All items of a file are read, those that cannot be scored too. A context (PubMedQA's abstract) is no part of an item.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t_elaine.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ExamItem:
    """A question with its options."""

    id: str
    question: str
    options: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ExamItems:
    """The items of one suite; `digest`: sha256 of their ids and texts."""

    name: str
    items: tuple[ExamItem, ...]

    @property
    def digest(self) -> str:
        content = [[item.id, item.question, *item.options] for item in self.items]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def find_suites(places: Sequence[str]) -> list[Path]:
    """The .jsonl files of folders (at any depth) and files, in a fixed order.

    Raises:
        UserError: a place is not there, or is a folder without such files.
    """
    found: list[Path] = []
    for place in places:
        path = Path(place)
        files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            what = f"no exam in {place}" if path.is_dir() else f"no such exam: {place}"
            raise UserError(what, "exams", "give .jsonl files in ELAINE's layout, or a folder of them")
        found += files
    return list(dict.fromkeys(found))


def read_suite(path: Path, name: str = "") -> ExamItems:
    """All items of one file.

    Raises:
        UserError: a line is no item; its file and line are named.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"this line is not UTF-8: {error.reason}", f"{path}:{line}", "copy the file again") from error
    items = [_item(line, f"{path}:{n}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not items:
        raise UserError("this exam is empty", str(path), "copy the file again")
    return ExamItems(name=name or path.stem, items=tuple(items))


def _item(line: str, where: str) -> ExamItem:
    mend = "each line is a JSON object with problem_id, problem_text (text) and choices (a list of texts)"
    try:
        record = json.loads(line)
        identity, question, options = record["problem_id"], record["problem_text"], record.get("choices") or []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"this line is no exam question: {error!r}", where, mend) from error
    if not isinstance(question, str) or not isinstance(options, list):
        raise UserError("problem_text is no text, or choices is no list", where, mend)
    return ExamItem(id=str(identity), question=question, options=tuple(str(option) for option in options))
