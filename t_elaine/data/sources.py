"""What a source of text is, and its documents: checked one by one, the malformed ones set aside with a reason.

How bytes become records stands in data/formats.py. This file knows no tokenizer and no task.
"""

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t_elaine.data import formats
from t_elaine.data.formats import Piece, Rejected
from t_elaine.errors import UserError
from t_elaine.paths import is_remote

MAX_DOCUMENT_BYTES = 10_000_000
_LONG_SPACE = re.compile(r"\s{100000}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files of text of one language and category, under one licence.

    Attributes:
        name: unique within a task; stands in the store's `source` column.
        files: paths or glob patterns; `{data_root}` in them is the setting of that name.
        language: any string, for instance "en".
        category: one of the field's categories, for instance "textbook"; any string.
        licence: SPDX name or one sentence; a source without is refused.
        url: where the text comes from; a source without is refused.
        text: field that holds the text.
        id: field that holds the document's id; where a record has none, the text's hash stands in.
        format: "" tells it from the name: jsonl, json, parquet, arrow, csv, text; "tfds" only when named.
        encoding: of the files' text. UTF-8 unless named; guessing is left to people.
        unit: for text files, what a document is: "file", "line", or "paragraph" (ended by an empty line).
        split: of a TFDS source.
        private: nothing of its text is shown in reports: hashes and lengths only.
        where: keep only records whose fields have these values, as pairs (field, value).
    """

    name: str
    files: tuple[str, ...]
    language: str
    category: str
    licence: str
    url: str
    text: str = "text"
    id: str = "id"
    format: str = ""
    encoding: str = "utf-8"
    unit: str = "file"
    split: str = "train"
    private: bool = False
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    where: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Document:
    """One record of a source: `fields` as read, `line` counted from 1 within its piece (see `formats.first_line`)."""

    fields: dict[str, Any]
    line: int


def check_source(source: Source, allowed_licences: tuple[str, ...] = ()) -> None:
    """Refuse a source without licence or URL, or whose licence is not among the allowed ones (where any are named)."""
    for name in ("licence", "url", "language", "category"):
        if not getattr(source, name).strip():
            raise UserError(f"source {source.name!r} states no {name}", source.name, f"give it {name}=...")
    if allowed_licences and source.licence not in allowed_licences:
        what = f"source {source.name!r} has licence {source.licence!r}, which is not among the allowed ones"
        raise UserError(what, f"allowed_licences={list(allowed_licences)}", "add the licence or leave the source out")


def find_files(source: Source, data_root: str) -> list[Path]:
    """The source's files, sorted. A pattern that matches nothing is an error, not an empty source."""
    if source.format == "tfds":
        return [Path(name) for name in source.files]
    found: list[Path] = []
    for pattern in source.files:
        if "{data_root}" in pattern and not data_root:
            mend = "set data_root to the folder that holds the corpora"
            raise UserError(f"source {source.name!r} reads {pattern}, and data_root is not set", source.name, mend)
        path = pattern.replace("{data_root}", data_root.rstrip(os.sep) or os.sep)
        if is_remote(path):
            mend = "copy it to a disk first: gcloud storage cp"
            raise UserError(f"source {source.name!r} reads {path}; texts are read from a disk", source.name, mend)
        # A name that exists is taken as it stands, even where it holds characters of a pattern.
        matches = [path] if os.path.isfile(path) else sorted(p for p in glob.glob(path) if os.path.isfile(p))
        if not matches:
            raise UserError(f"source {source.name!r} has no file {path}", source.name, "check the path, or data_root")
        found += [Path(match) for match in matches]
    return sorted(dict.fromkeys(found))


def read_piece(source: Source, piece: Piece) -> Iterator[Document | Rejected]:
    """The records of one piece of a source's files, in order.

    Raises:
        UserError: the file cannot be read to its end (cut short, damaged) or has another encoding than stated.
    """
    for record in formats.read(source, piece):
        if isinstance(record, Rejected):
            yield record
            continue
        line, fields = record
        if all(str(fields.get(name)) == value for name, value in source.where):
            yield Document(fields=fields, line=line)


def check_text(fields: dict[str, Any], source: Source) -> str:
    """The reason why a record cannot become a document, or "" if it can."""
    if source.text not in fields:
        return f"missing field {source.text!r}"
    text = fields[source.text]
    if not isinstance(text, str):
        return f"field {source.text!r} is {type(text).__name__}, not text"
    if not text.strip():
        return "empty text"
    if len(text) > source.max_document_bytes or len(text) * 4 > source.max_document_bytes < utf8_length(text):
        return f"larger than {source.max_document_bytes} bytes"
    if "\0" in text:
        return "NUL character"
    if not text.isascii() and not _encodable(text):
        return "invalid UTF-8 (half of a surrogate pair)"
    if len(text) > 100_000 and _LONG_SPACE.search(text):
        return "more than 100000 white-space characters in a row"
    return ""


def utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b over the UTF-8 bytes: the identity of a text, for the validation split and for duplicates."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")
