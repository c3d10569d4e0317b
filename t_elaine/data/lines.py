"""The bytes of a file, uncompressed and in the stated encoding, and its rows: lines that end at "\\n" only.

U+2029 and its like may stand inside a row. What a row means is the business of data/formats.py.
"""

import codecs
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import pyarrow as pa

from t_elaine.errors import UserError

if TYPE_CHECKING:
    from t_elaine.data.sources import Source

_SNIFF = 1 << 16
# Encodings in which the byte 0x0A may be half of another character.
_WIDE = ("utf-16", "utf-32", "utf_16", "utf_32", "utf16", "utf32")
_GUESSES = ("gb18030", "cp932", "euc_jp", "big5", "latin-1")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Part `part` of `parts` of a file: a byte range of plain JSON Lines, else every `parts`-th record or row group."""

    file: str
    part: int = 0
    parts: int = 1


def cuts_by_bytes(source: "Source", piece: Piece) -> bool:
    """Whether pieces of a file of rows are byte ranges, found without reading what stands before them."""
    return Path(piece.file).suffix not in (".gz", ".zst") and not is_wide(source)


def is_wide(source: "Source") -> bool:
    """Whether lines cannot be cut before decoding."""
    return source.encoding.lower().startswith(_WIDE)


def lines_before(piece: Piece) -> int:
    """How many lines of the file stand before a byte range."""
    if not piece.part:
        return 0
    start, _ = _range(piece)
    count = 0
    with open(piece.file, "rb") as file:
        while start > 0 and (block := file.read(min(start, 1 << 22))):
            count, start = count + block.count(b"\n"), start - len(block)
    return count


def open_bytes(path: Path) -> BinaryIO:
    """The uncompressed bytes of a file. Both decompressors raise at a stream that ends too early."""
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 1 << 20)  # type: ignore[type-var]
    return open(path, "rb", buffering=1 << 20)


def open_text(source: "Source", path: Path, newline: str | None) -> io.TextIOWrapper:
    encoding = codec(source)
    return io.TextIOWrapper(open_bytes(path), "utf-8-sig" if encoding == "utf-8" else encoding, newline=newline)


def codec(source: "Source") -> str:
    try:
        return codecs.lookup(source.encoding).name
    except LookupError as error:
        mend = 'use a name that Python knows: "utf-8", "gb18030", "cp932", "utf-16"'
        raise UserError(f"unknown encoding {source.encoding!r}", source.name, mend) from error


def wrong_encoding(source: "Source", path: Path, detail: str) -> UserError:
    with open_bytes(path) as file:
        head = file.read(_SNIFF)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        fits = ["utf-16"]
    else:
        fits = [name for name in _GUESSES if name != codec(source) and _decodes(head, name)]
    hint = f'set encoding="{fits[0]}" if that is what it is' if fits else "name its encoding"
    return UserError(f"{path.name} is not {source.encoding}: {detail}", str(path), f"{hint}, or re-code the file")


def _decodes(head: bytes, encoding: str) -> bool:
    """Whether bytes, cut anywhere, read as `encoding`."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(head, final=False)
    except UnicodeDecodeError:
        return False
    return True


def sniff(source: "Source", path: Path, encoding: str) -> None:
    """Refuse a file of another encoding at once, instead of setting aside each of its rows."""
    with open_bytes(path) as file:
        head = file.read(_SNIFF)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise wrong_encoding(source, path, "it begins with the mark of UTF-16")
    rows = head.split(b"\n")[:-1] or [head]
    foreign = [row for row in rows if not row.isascii()]
    bad = sum(not _decodes(row, encoding) for row in foreign)
    if bad > len(foreign) / 2 and (bad >= 3 or bad == len(rows)):
        raise wrong_encoding(source, path, f"{bad} of the first {len(foreign)} rows with other than ASCII letters")


def row_limit(source: "Source") -> int:
    return 4 * source.max_document_bytes + (1 << 16)  # escapes (\u3042) make a row longer than its text


def _lines(file: BinaryIO, limit: int) -> Iterator[tuple[bytes | None, int]]:
    """(row, its length); None for a row longer than `limit`, which is passed over without holding it."""
    while row := file.readline(limit):
        length = len(row)
        if length < limit or row.endswith(b"\n"):
            yield row, length
            continue
        while (more := file.readline(limit)) and not more.endswith(b"\n"):
            length += len(more)
        yield None, length + len(more)


def strided_lines(piece: Piece, source: "Source") -> Iterator[tuple[int, bytes | None]]:
    with open_bytes(Path(piece.file)) as file:
        for i, (row, _) in enumerate(_lines(file, row_limit(source))):
            if i % piece.parts == piece.part:
                yield i + 1, row


def _range(piece: Piece) -> tuple[int, int]:
    """[start, stop) of the piece in bytes, moved forward to the next line start: each line is in exactly one piece."""
    size = Path(piece.file).stat().st_size
    with open(piece.file, "rb") as file:
        ends = []
        for part in (piece.part, piece.part + 1):
            place = size * part // piece.parts
            if 0 < place < size:
                file.seek(place - 1)
                while (row := file.readline(1 << 20)) and not row.endswith(b"\n"):
                    pass
                place = file.tell()
            ends.append(place)
    return ends[0], ends[1]


def range_lines(piece: Piece, source: "Source") -> Iterator[tuple[int, bytes | None]]:
    place, stop = _range(piece)
    with open_bytes(Path(piece.file)) as file:
        file.seek(place)
        for i, (row, length) in enumerate(_lines(file, row_limit(source))):
            if place >= stop:
                return
            place += length
            yield i + 1, row
