"""Finds known passages of a fixed number of words or characters in folded texts, every one and no other.

Windows are looked up by a polynomial rolling hash modulo 2^64, computed for all of them at once: a bit table turns most
away, a sorted array the rest. What passes is compared letter by letter with the known passage, so that a collision of
hashes can make no hit. What passages mean, and which text they come from, stands in data/overlap.py.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from t_elaine.data.folding import Letters, spread

WORDS, CHARACTERS = "words", "characters"
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_MAX_BITS = 26  # 8 MB: a table of bits larger than the cache is slower than what it saves
Range = tuple[np.ndarray, np.ndarray]
"""Starts and stops, int64 [ranges]."""
_COMPARED = 4_000_000  # letters compared at a time


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """Letters with hashes of everything that begins at the first: `sums` uint64 [n+1]; `starts` of words int64."""

    letters: Letters
    sums: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Grams:
    """Known passages, each given by its first `width` words or characters and compared over its whole length.

    Attributes:
        unit: WORDS or CHARACTERS.
        width: of what is hashed, in units.
        letters: the letters that passages are parts of.
        hashes: uint64 [grams], ascending.
        starts, stops: int64 [grams], of each passage in `letters`.
        bits: uint8, one bit for each value that a hash's upper bits can take; `shift` brings them down.
        mask: of a hash's bits that are looked at; all of them but in tests of collisions.
    """

    unit: str
    width: int
    letters: Letters
    hashes: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    bits: np.ndarray
    shift: int
    mask: int


def hashed(letters: Letters) -> Hashed:
    """Sums of hashes from the first letter on, and where words begin."""
    sums = np.zeros(len(letters.values) + 1, np.uint64)
    np.cumsum(_mixed(letters.values.astype(np.uint64)) * _powers(_BASE, len(letters.values)), out=sums[1:])
    return Hashed(letters=letters, sums=sums, starts=np.flatnonzero(letters.begins))


def windows(text: Hashed, unit: str, width: int, mask: int = 2**64 - 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hash (uint64), start and stop (int64, in letters) of every run of `width` units, those across texts included."""
    total = len(text.letters.values)
    if unit == CHARACTERS:
        starts = np.arange(max(0, total - width + 1))
        stops = starts + width
        made = (text.sums[width:] - text.sums[: len(starts)]) * _powers(_INVERSE, len(starts))
    else:
        ends = np.append(text.starts[1:], total) if len(text.starts) else text.starts
        each = _mixed((text.sums[ends] - text.sums[text.starts]) * _powers(_INVERSE, total)[text.starts])
        sums = np.zeros(len(each) + 1, np.uint64)
        np.cumsum(each * _powers(_BASE, len(each)), out=sums[1:])
        count = max(0, len(each) - width + 1)
        starts, stops = text.starts[:count], ends[width - 1 :][:count]
        made = (sums[width:] - sums[:count]) * _powers(_INVERSE, count) if count else sums[:0]
    made = _mixed(made)
    return made if mask == 2**64 - 1 else made & np.uint64(mask), starts, stops


def make_grams(
    text: Hashed, unit: str, width: int, starts: np.ndarray, stops: np.ndarray, mask: int = 2**64 - 1
) -> tuple[Grams, np.ndarray]:
    """Passages of `text` with those of equal letters taken together.

    Args:
        text: what passages are parts of.
        unit, width: as in `Grams`; every passage has at least so many units.
        starts, stops: int64 [passages], in letters.
        mask: see `Grams`.

    Returns:
        the grams, and int64 [passages], which gram each passage is.
    """
    found, places, _ = windows(text, unit, width, mask)
    hashes = found[np.searchsorted(places, starts)]
    of, firsts = np.full(len(starts), -1), list[int]()
    left = np.argsort(hashes, kind="stable")
    while len(left):  # a second round only where two unlike passages have one hash
        _, first, group = np.unique(hashes[left], return_index=True, return_inverse=True)
        chosen = left[first][group]
        equal = same(text.letters, (starts[left], stops[left]), text.letters, (starts[chosen], stops[chosen]), unit)
        of[left[equal]] = len(firsts) + group[equal]
        firsts += left[first].tolist()
        left = left[~equal]
    kept = np.array(firsts, np.int64)
    order = np.argsort(hashes[kept], kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    kept = kept[order]
    parts: dict[str, Any] = {
        "letters": text.letters,
        "hashes": hashes[kept],
        "starts": starts[kept],
        "stops": stops[kept],
    }
    return _with_bits(unit=unit, width=width, mask=mask, **parts), rank[of]


def only(grams: Grams, kept: np.ndarray) -> Grams:
    """Some of the grams, in their order. kept: bool [grams]."""
    parts = {name: getattr(grams, name)[kept] for name in ("hashes", "starts", "stops")}
    return _with_bits(unit=grams.unit, width=grams.width, mask=grams.mask, letters=grams.letters, **parts)


def _with_bits(hashes: np.ndarray, **parts: Any) -> Grams:
    shift = 64 - min(_MAX_BITS, max(10, len(hashes).bit_length() + 6))
    marked = np.zeros(1 << (64 - shift), np.uint8)
    marked[(hashes >> np.uint64(shift)).view(np.int64)] = 1
    return Grams(hashes=hashes, bits=np.packbits(marked, bitorder="little"), shift=shift, **parts)


def find(grams: Grams, text: Hashed) -> tuple[np.ndarray, np.ndarray]:
    """Every place where a gram stands in one of the texts: (gram int64 [hits], first letter int64 [hits])."""
    made, starts, _ = windows(text, grams.unit, grams.width, grams.mask)
    upper = (made >> np.uint64(grams.shift)).view(np.int64)
    passed = np.flatnonzero((grams.bits[upper >> 3] >> (upper & 7).astype(np.uint8)) & 1)
    made, starts = made[passed], starts[passed]
    low = np.searchsorted(grams.hashes, made)
    known = low < len(grams.hashes)
    known[known] = grams.hashes[low[known]] == made[known]
    low, starts, made = low[known], starts[known], made[known]
    counts = np.searchsorted(grams.hashes, made, side="right") - low
    gram, starts = spread(low, counts), np.repeat(starts, counts)
    stops = starts + grams.stops[gram] - grams.starts[gram]
    ends = text.letters.ends
    inside = stops <= np.append(ends, 0)[np.searchsorted(ends, starts, side="right")]
    gram, starts, stops = gram[inside], starts[inside], stops[inside]
    equal = same(text.letters, (starts, stops), grams.letters, (grams.starts[gram], grams.stops[gram]), grams.unit)
    return gram[equal], starts[equal]


def same(a: Letters, a_range: Range, b: Letters, b_range: Range, unit: str) -> np.ndarray:
    """bool [ranges]: whether ranges of letters are equal; of words, whether they are cut alike too."""
    (a_starts, a_stops), (b_starts, b_stops) = a_range, b_range
    equal = (a_stops - a_starts) == (b_stops - b_starts)
    most = max(1, _COMPARED // int((a_stops - a_starts).max(initial=1)))
    for low in range(0, len(a_starts), most):
        some = low + np.flatnonzero(equal[low : low + most])
        if not len(some):
            continue
        lengths = a_stops[some] - a_starts[some]
        left, right = spread(a_starts[some], lengths), spread(b_starts[some], lengths)
        alike = a.values[left] == b.values[right]
        if unit == WORDS:
            alike &= a.begins[left] == b.begins[right]
        equal[some] = np.logical_and.reduceat(alike, np.cumsum(lengths) - lengths)
        if unit == WORDS:  # the last word ends there in both
            equal[some] &= _ends_word(a, a_stops[some]) & _ends_word(b, b_stops[some])
    return equal


def _ends_word(letters: Letters, stops: np.ndarray) -> np.ndarray:
    return np.append(letters.begins, True)[stops]


def _mixed(values: np.ndarray) -> np.ndarray:
    made = values * _MIX
    made ^= made >> np.uint64(32)
    made *= _MIX
    return made


def _powers(base: int, count: int) -> np.ndarray:
    """uint64 [count]: 1, base, base², … modulo 2^64."""
    return _power_table(base, 1 << max(10, count - 1).bit_length())[:count]


@functools.lru_cache(maxsize=8)
def _power_table(base: int, count: int) -> np.ndarray:
    made = np.full(count, base, np.uint64)
    made[0] = 1
    return np.cumprod(made)
