"""Where the tokens lie in an Arrow file: byte ranges, read from its footer and the head of each record batch.

Arrow tells its readers arrays, not places; to fetch tokens alone from an object store one must know the places. Of the
two FlatBuffers tables only the few fields that lead there are read (Arrow columnar format 1.0, File.fbs, Message.fbs).
"""

import struct
from collections.abc import Callable, Iterable, Sequence

from t_elaine.errors import UserError

MAGIC = b"ARROW1"
TAIL = 1 << 16  # of a file, read at once: a footer of a thousand batches
HEAD = 1 << 17  # of a record batch: its record and, mostly, all offsets
TOKENS = 3  # fourth buffer of a batch: tokens' validity and offsets, then their values' validity and values
Range = tuple[int, int]
Read = Callable[[Sequence[Range]], Iterable[bytes]]


def layout(read: Read, size: int, where: str) -> tuple[list[Range], list[tuple[int, bytes]]]:
    """(byte range of each batch's tokens, [(place, bytes)]: all bytes of the file but those).

    Args:
        read: byte ranges of the file → their bytes, many at once.
        size: bytes of the file.
        where: for messages.

    Raises:
        UserError: it is no whole Arrow file of a token store.
    """
    try:
        first = max(0, size - TAIL)
        (tail,) = read([(first, size)])
        length = struct.unpack_from("<i", tail, len(tail) - 10)[0]
        if tail[-6:] != MAGIC or not 0 < length <= size - 10:
            raise ValueError("it has no footer")
        start = size - 10 - length
        if start < first:
            (tail,) = read([(start, size)])
            first = start
        blocks = _blocks(tail[start - first : -10])
        tops = list(read([(a, min(a + HEAD, stop)) for a, _, stop in blocks]))
        tokens = [_tokens(top, a, body) for top, (a, body, _) in zip(tops, blocks, strict=True)]
        known = [(first, tail), *((a, top) for (a, _, _), top in zip(blocks, tops, strict=True))]
        return tokens, known + _rest(read, size, tokens, known)
    except (struct.error, ValueError, IndexError) as error:
        what = f"it cannot be read as an Arrow file: {error}"
        raise UserError(what, where, "it is damaged or cut short: copy or prepare the store again") from error


def _rest(read: Read, size: int, tokens: list[Range], known: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """What lies between the tokens and is not known yet."""
    taken = sorted([*tokens, *((a, a + len(content)) for a, content in known)])
    gaps, place = [], 0
    for start, stop in taken:
        if start > place:
            gaps.append((place, start))
        place = max(place, stop)
    if place < size:
        gaps.append((place, size))
    return list(zip([a for a, _ in gaps], read(gaps), strict=True))


def _blocks(footer: bytes) -> list[tuple[int, int, int]]:
    """(start of the record, start of the body, end) of each record batch."""
    at = _field(footer, _root(footer), 3)
    if at is None:
        return []
    vector = at + _u32(footer, at)
    found = []
    for i in range(_u32(footer, vector)):
        offset, record, body = struct.unpack_from("<qi4xq", footer, vector + 4 + 24 * i)
        found.append((offset, offset + record, offset + record + body))
    return found


def _tokens(top: bytes, start: int, body: int) -> Range:
    """The byte range of the tokens, from the record of a batch that starts at `start`."""
    message = top[8:] if top[:4] == b"\xff\xff\xff\xff" else top[4:]
    at = _field(message, _root(message), 2)
    if at is None:
        raise ValueError(f"no record batch at byte {start}")
    batch = at + _u32(message, at)
    buffers = _field(message, batch, 2)
    if buffers is None or _field(message, batch, 3) is not None:
        raise ValueError("its batches are compressed or empty")
    vector = buffers + _u32(message, buffers)
    offset, length = struct.unpack_from("<qq", message, vector + 4 + 16 * TOKENS)
    return body + offset, body + offset + length


def _root(table: bytes) -> int:
    return _u32(table, 0)


def _u32(content: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", content, at)[0])


def _field(content: bytes, table: int, number: int) -> int | None:
    """Place of a table's field; None where it has its default value."""
    vtable = table - struct.unpack_from("<i", content, table)[0]
    size = struct.unpack_from("<H", content, vtable)[0]
    if 4 + 2 * number >= size:
        return None
    offset = struct.unpack_from("<H", content, vtable + 4 + 2 * number)[0]
    return table + offset if offset else None
