"""Texts as letters alone, so that two copies of a passage are equal whatever their layout.

A text is put into NFKC and case-folded; format characters (soft hyphens, zero-width spaces) are dropped; white space,
punctuation, symbols and control characters only end words. Letters, digits and marks are kept, with a note of which
begin a word. Simplified and traditional characters stay apart. What is compared with what stands in data/overlap.py.

`unicodedata.normalize` reads 13 MB/s of Japanese; a table over code points reads ten times as much. The table is right
wherever no character joins with the one before it; those places alone are normalised by `unicodedata`.
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Bits of a table entry above the 21 of a code point.
_KIND, _EXPANDS, _JOINS = 24, 1 << 26, 1 << 27
DROPPED, SEPARATOR, WORD, CJK = range(4)
_VALUE = (1 << 21) - 1
_ASSIGNED = (range(0x32400), range(0xE0000, 0xE0200))
_CJK = ((0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x20000, 0x323AF))


@dataclass(frozen=True, kw_only=True)
class Letters:
    """Folded texts, one after another.

    Attributes:
        values: uint32 [n], code points of letters, digits and marks.
        begins: bool [n], whether a letter begins a word; runs of Chinese and Japanese characters are words.
        cjk: bool [n], Han, hiragana or katakana.
        ends: int64 [texts], where each text ends.
    """

    values: np.ndarray
    begins: np.ndarray
    cjk: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Table:
    """Code point → folded code point with flags; the texts of those that become several; a pattern for joined ones."""

    entries: np.ndarray
    expansions: dict[int, str]
    joined: re.Pattern[str]


def fold(texts: Sequence[str]) -> Letters:
    """Fold texts; no word and no letter belongs to two of them."""
    table = folding_table()
    points, ends = _points(texts)
    folded = table.entries[points]
    flags = int(np.bitwise_or.reduce(folded)) if len(folded) else 0
    if flags & _JOINS:
        points, ends = _points(_joined(texts, ends, np.flatnonzero(folded & _JOINS), table))
        folded = table.entries[points]
        flags = int(np.bitwise_or.reduce(folded))
    if flags & _EXPANDS:
        folded, ends = _expanded(points, folded, ends, table)
    kinds = ((folded >> _KIND) & 3).astype(np.uint8)
    if (kinds == DROPPED).any():
        kept = kinds != DROPPED
        ends = np.concatenate([[0], np.cumsum(kept)])[ends]
        folded, kinds = folded[kept], kinds[kept]
    before = np.empty_like(kinds)
    before[:1], before[1:] = SEPARATOR, kinds[:-1]
    where = np.flatnonzero(kinds >= WORD)
    return Letters(
        values=folded[where] & _VALUE,
        begins=(kinds != before)[where],
        cjk=(kinds == CJK)[where],
        ends=np.searchsorted(where, ends).astype(np.int64),
    )


def _points(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Code points of texts with a line end after each, and where each ends, the line end included."""
    joined = "\n".join([*texts, ""])
    ends = np.cumsum([len(text) + 1 for text in texts], dtype=np.int64)
    return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32), ends


def _joined(texts: Sequence[str], ends: np.ndarray, flagged: np.ndarray, table: Table) -> list[str]:
    """The texts with every character that joins with what stands before it normalised together with that."""
    made = list(texts)
    for i in np.unique(np.searchsorted(ends, flagged, side="right")).tolist():
        made[i] = table.joined.sub(lambda found: unicodedata.normalize("NFKC", found.group()).casefold(), made[i])
    return made


def _expanded(points: np.ndarray, folded: np.ndarray, ends: np.ndarray, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Code points that become several (½, ㎎, ﬁ), or none, written out."""
    where = np.flatnonzero(folded & _EXPANDS)
    words = [table.expansions[point] for point in points[where].tolist()]
    lengths = np.ones(len(points), np.int64)
    lengths[where] = [len(word) for word in words]
    stops = np.cumsum(lengths)
    made = np.repeat(folded, lengths)
    if words:
        filled = table.entries[np.frombuffer("".join(words).encode("utf-32-le"), np.uint32)]
        made[spread(stops[where] - lengths[where], lengths[where])] = filled & ~np.uint32(_EXPANDS | _JOINS)
    return made, stops[ends - 1] if len(ends) else ends


def spread(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64: start, start+1, … of each range in turn."""
    stops = np.cumsum(lengths)
    total = int(stops[-1]) if len(stops) else 0
    return np.arange(total) + np.repeat(starts - (stops - lengths), lengths)


@functools.cache
def folding_table() -> Table:
    """The table of this Python's Unicode version; about a third of a second, once in a process."""
    seconds = _seconds()
    entries = np.full(sys.maxunicode + 1, SEPARATOR << _KIND, np.uint32)
    expansions: dict[int, str] = {}
    joins: list[int] = []
    for span in _ASSIGNED:
        for point in span:
            text = chr(point)
            normal = unicodedata.normalize("NFKC", text)
            result = normal.casefold()
            if unicodedata.combining(text) or point in seconds or unicodedata.combining(normal[:1] or "a"):
                joins.append(point)
            flags = _JOINS if joins and joins[-1] == point else 0
            if len(result) != 1:
                entries[point], expansions[point] = flags | _EXPANDS, result
            else:
                entries[point] = flags | (_kind(ord(result)) << _KIND) | ord(result)
    marks = "".join(re.escape(chr(point)) for point in joins)
    return Table(entries=entries, expansions=expansions, joined=re.compile(f".?[{marks}]+", re.DOTALL))


def _seconds() -> set[int]:
    """Code points that NFKC may join with the one before them: vowel signs, voicing marks, Hangul jamo."""
    found = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}
    for point in _ASSIGNED[0]:
        parts = unicodedata.decomposition(chr(point)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            found.add(int(parts[1], 16))
    wide = {point for point in range(0xFF61, 0xFFDD) if ord(unicodedata.normalize("NFKC", chr(point))[0]) in found}
    return found | wide


def _kind(point: int) -> int:
    category = unicodedata.category(chr(point))
    if category == "Cf":
        return DROPPED
    if category[0] not in "LMN":
        return SEPARATOR
    return CJK if any(low <= point <= high for low, high in _CJK) else WORD
