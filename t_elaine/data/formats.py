"""Bytes on disk → records, one format at a time: JSON Lines, JSON array, Parquet, Arrow, CSV, text; gzip and zstd.

A record is (line, fields), `line` counted from 1 within its piece; what cannot be read is a Rejected. Damage that hides
the rest of a file (cut short, checksum) is a UserError. How rows of JSON Lines are cut stands in data/lines.py.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from t_elaine.data.lines import (
    Piece,
    codec,
    cuts_by_bytes,
    is_wide,
    lines_before,
    open_text,
    range_lines,
    row_limit,
    sniff,
    strided_lines,
    wrong_encoding,
)
from t_elaine.errors import UserError

if TYPE_CHECKING:
    from t_elaine.data.sources import Source

Record = tuple[int, dict[str, Any]]
SHOWN = 200  # characters of a bad record that are kept
# What Python's codecs say of a file that ends inside a character.
_ENDS_INSIDE = ("unexpected end of data", "incomplete multibyte sequence", "truncated data")
_SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".arrow": "arrow",
    ".feather": "arrow", ".csv": "csv", ".tsv": "csv", ".txt": "text", ".md": "text", ".text": "text",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A record set aside: `line` within its piece, the reason, and the beginning of what stood there."""

    line: int
    reason: str
    shown: str


def file_format(source: "Source", path: Path) -> str:
    """The format, stated by the source or told by the name without .gz and .zst."""
    if source.format:
        return source.format
    suffixes = [s for s in path.suffixes if s not in (".gz", ".zst")]
    found = _SUFFIXES.get(suffixes[-1].lower()) if suffixes else None
    if found is None:
        known = ", ".join(sorted(_SUFFIXES))
        raise UserError(f"no reader for {path.name}", source.name, f"set format=...; known endings: {known}")
    return found


def read(source: "Source", piece: Piece) -> Iterator[Record | Rejected]:
    """The records of a piece.

    Raises:
        UserError: damaged or truncated file, unknown format, another encoding than the source states.
    """
    path = Path(piece.file)
    kind = file_format(source, path)
    try:
        match kind:
            case "jsonl":
                yield from _read_jsonl(source, piece)
            case "json":
                yield from _every(_read_json_array(source, path), piece)
            case "csv":
                yield from _every(_read_csv(source, path), piece)
            case "text":
                yield from _every(_read_text(source, path), piece)
            case "parquet":
                yield from _read_parquet(path, piece)
            case "arrow":
                yield from _every(_read_arrow(path), piece)
            case "tfds":
                from t_elaine.data.tasks import read_tfds  # TensorFlow lives there only

                yield from _every(read_tfds(piece.file, source.split), piece)
            case _:
                raise UserError(
                    f"unknown format {kind!r}", source.name, "use jsonl, json, csv, text, parquet, arrow or tfds"
                )
    except UnicodeDecodeError as error:
        if error.reason in _ENDS_INSIDE:  # all that stands before it is whole, so the encoding is the stated one
            what = f"{path.name} ends in the middle of a character"
            raise UserError(what, str(path), "the file is cut short: copy it again") from error
        raise wrong_encoding(source, path, f"{error.reason} at byte {error.start}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise UserError(f"cannot open {path.name}: {error.strerror}", str(path), "check the path") from error
        what = f"{path.name} cannot be read to its end: {error}"
        raise UserError(what, str(path), "the file is damaged or cut short: copy it again") from error


def first_line(source: "Source", piece: Piece) -> int:
    """How many lines of the file stand before the piece: the line in the piece + this = the line in the file."""
    cut = file_format(source, Path(piece.file)) == "jsonl" and cuts_by_bytes(source, piece)
    return lines_before(piece) if cut else 0


def is_splittable(source: "Source", path: Path) -> bool:
    """Whether pieces of the file are found without reading what stands before them."""
    kind = file_format(source, path)
    return kind == "parquet" or (kind == "jsonl" and cuts_by_bytes(source, Piece(file=str(path))))


def _every(records: Iterator[Record | Rejected], piece: Piece) -> Iterator[Record | Rejected]:
    """Every `parts`-th record, by the place at which it stands in the file."""
    return (r for i, r in enumerate(records) if i % piece.parts == piece.part) if piece.parts > 1 else records


def _read_jsonl(source: "Source", piece: Piece) -> Iterator[Record | Rejected]:
    path, encoding = Path(piece.file), codec(source)
    if is_wide(source):
        for line, text in enumerate(open_text(source, path, "\n"), 1):
            if (line - 1) % piece.parts == piece.part and text.strip():
                yield _parse(line, text, path)
        return
    sniff(source, path, encoding)
    for line, row in range_lines(piece, source) if cuts_by_bytes(source, piece) else strided_lines(piece, source):
        if row is None:
            yield Rejected(line=line, reason=f"larger than {source.max_document_bytes} bytes", shown="")
            continue
        try:
            text = row.decode(encoding)
        except UnicodeDecodeError as error:
            if error.reason in _ENDS_INSIDE and not row.endswith(b"\n"):
                raise _cut_short(path) from error
            shown = row.decode(encoding, "replace")[:SHOWN]
            yield Rejected(line=line, reason=f"invalid {source.encoding}: {error.reason}", shown=shown)
            continue
        if text.strip():
            yield _parse(line, text.removeprefix("\ufeff"), path)


def _cut_short(path: Path) -> UserError:
    """Only a file's last row can lack its line end; is it broken too, then what came after it is missing as well."""
    mend = "the file is cut short: copy it again (or take that row out, if nothing came after it)"
    return UserError(f"{path.name} ends in the middle of a row", str(path), mend)


def _parse(line: int, text: str, path: Path) -> Record | Rejected:
    try:
        fields = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        if not text.endswith("\n") and isinstance(error, json.JSONDecodeError):
            raise _cut_short(path) from error
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        return Rejected(line=line, reason=f"bad JSON: {reason}", shown=text[:SHOWN])
    if not isinstance(fields, dict):
        return Rejected(line=line, reason=f"a JSON {type(fields).__name__}, not an object", shown=text[:SHOWN])
    return line, fields


def _read_json_array(source: "Source", path: Path) -> Iterator[Record | Rejected]:
    """Objects of one JSON array, parsed one after the other; `line` is where the object begins."""
    text = open_text(source, path, "\n").read()
    decoder, place, line, counted = json.JSONDecoder(), _skip(text, 0), 1, 0
    if text[place : place + 1] != "[":
        mend = 'give format="jsonl" if every line is an object'
        raise UserError(
            f"{path.name} is not a JSON array: it begins with {text[place : place + 20]!r}", str(path), mend
        )
    place = _skip(text, place + 1)
    while text[place : place + 1] != "]":
        line, counted = line + text.count("\n", counted, place), place
        try:
            fields, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            what = f"{path.name} is not whole JSON: {error.msg} at line {error.lineno}"
            mend = "the file is damaged or cut short: mend it or copy it again"
            raise UserError(what, f"{path}:{error.lineno}", mend) from error
        if isinstance(fields, dict):
            yield line, fields
        else:
            reason = f"a JSON {type(fields).__name__}, not an object"
            yield Rejected(line=line, reason=reason, shown=text[counted : min(place, counted + SHOWN)])
        place = _skip(text, place)
        if text[place : place + 1] == ",":
            place = _skip(text, place + 1)
        elif text[place : place + 1] != "]":
            at = text.count("\n", 0, place) + 1
            raise UserError(f"{path.name} is not whole JSON at line {at}", f"{path}:{at}", "the file is cut short")


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _read_csv(source: "Source", path: Path) -> Iterator[Record | Rejected]:
    """Rows of a CSV file with a header; `line` is where the row ends. Tab-separated where the name says .tsv."""
    csv.field_size_limit(max(row_limit(source), 1 << 20))
    reader = csv.reader(open_text(source, path, ""), delimiter="\t" if ".tsv" in path.suffixes else ",")
    header = next(reader, [])
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Rejected(line=reader.line_num, reason=f"bad CSV: {error}", shown="")
            continue
        if len(row) != len(header):
            reason = f"{len(row)} fields, the header has {len(header)}"
            yield Rejected(line=reader.line_num, reason=reason, shown=",".join(row)[:SHOWN])
        else:
            yield reader.line_num, dict(zip(header, row, strict=True))


def _read_text(source: "Source", path: Path) -> Iterator[Record]:
    """Documents of a text file under the field the source names; line ends become "\\n"."""
    file = open_text(source, path, None)
    if source.unit == "file":
        yield 1, {source.text: file.read(), source.id: path.name}
        return
    if source.unit not in ("line", "paragraph"):
        raise UserError(f"unknown unit {source.unit!r}", source.name, 'use "file", "line" or "paragraph"')
    block: list[str] = []
    for line, row in enumerate(file, 1):
        if source.unit == "line":
            if row.strip():
                yield line, {source.text: row.removesuffix("\n")}
        elif row.strip():
            block.append(row)
        elif block:
            yield line - len(block), {source.text: "".join(block).removesuffix("\n")}
            block = []
    if block:
        yield line - len(block) + 1, {source.text: "".join(block).removesuffix("\n")}


def _read_parquet(path: Path, piece: Piece) -> Iterator[Record | Rejected]:
    """Rows of the row groups of this piece; `line` is the row's number in the file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        first = 1
        for group in range(file.num_row_groups):
            if group % piece.parts == piece.part:
                line = first
                for batch in file.iter_batches(1024, row_groups=[group]):
                    yield from _rows(batch, line)
                    line += batch.num_rows
            first += file.metadata.row_group(group).num_rows


def _read_arrow(path: Path) -> Iterator[Record | Rejected]:
    line = 1
    with pa.memory_map(str(path)) as file:
        head = file.read(6)
        file.seek(0)
        reader = pa.ipc.open_file(file) if head == b"ARROW1" else pa.ipc.open_stream(file)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if head == b"ARROW1" else reader
        for batch in batches:
            yield from _rows(batch, line)
            line += batch.num_rows


def _rows(batch: pa.RecordBatch, line: int) -> Iterator[Record | Rejected]:
    """Rows as dictionaries. Text that is no UTF-8 rejects its row alone, so text columns are read as bytes first."""
    columns: dict[str, list[Any]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        columns[name] = (column.cast(pa.large_binary()) if text else column).to_pylist()
    for i in range(batch.num_rows):
        fields = {name: values[i] for name, values in columns.items()}
        try:
            yield line + i, {k: v.decode() if isinstance(v, bytes) else v for k, v in fields.items()}
        except UnicodeDecodeError as error:
            shown = repr(error.object[:SHOWN])
            yield Rejected(line=line + i, reason=f"invalid utf-8: {error.reason}", shown=shown[:SHOWN])
