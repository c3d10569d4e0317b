"""Small tasks for the tests of prepare: their functions must be importable by worker processes. No tests."""

import json
import sys
from pathlib import Path
from typing import Any

from t_elaine.data.sources import Source
from t_elaine.data.texts import Preprocessor, Task

FORBIDDEN = ("jax", "gin", "seqio", "tensorflow", "transformers", "torch")


def shout(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "text": fields["text"].upper()}


def whisper(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "text": fields["text"].lower()}


def refuse_third(fields: dict[str, Any]) -> dict[str, Any]:
    if fields.get("id", "").endswith("3"):
        raise ValueError("a third one")
    return fields


def refuse_all(fields: dict[str, Any]) -> dict[str, Any]:
    raise ValueError("no page number")


def stumble(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "text": fields["boddy"] if fields["id"] == "en7" else fields["text"]}


def give_text(fields: dict[str, Any]) -> dict[str, Any]:
    return fields["text"]


def name_modules(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "text": " ".join(["modules:", *(name for name in FORBIDDEN if name in sys.modules)])}


def rows(count: int, language: str = "en", start: int = 0) -> list[dict[str, Any]]:
    words = {"en": "The patient number {} had a fever.", "ja": "患者{}号は発熱した。", "zh": "患者{}号发热。"}[language]
    return [{"id": f"{language}{i}", "text": words.format(i) * (1 + i % 7)} for i in range(start, start + count)]


def write_rows(path: Path, content: list[dict[str, Any]], bad: dict[int, str] | None = None) -> Path:
    """JSON Lines; `bad` puts other text in place of rows (index → line)."""
    lines = [(bad or {}).get(i) or json.dumps(row, ensure_ascii=False) for i, row in enumerate(content)]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def source(path: Path | str, name: str = "s", **changes: Any) -> Source:
    fields = {"language": "en", "category": "textbook", "licence": "CC0-1.0", "url": "https://example.org"}
    return Source(name=name, files=(str(path),), **(fields | changes))


def task(name: str, *sources: Source, preprocessors: tuple[Preprocessor, ...] = ()) -> Task:
    return Task(name=name, sources=sources, preprocessors=preprocessors)
