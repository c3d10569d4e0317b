"""Finds known passages of a fixed number of words or characters in folded texts, every one and no other.

Runs of units are looked up by a polynomial rolling hash modulo 2^64, many of them at once: a bit table turns most away,
a sorted array the rest. What passes is compared letter by letter with the known passage, so that a collision of hashes
can make no hit. What passages mean, and which text they come from, stands in data/overlap.py.
"""

import functools
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from t_elaine.data.folding import Letters, spread

WORDS, CHARACTERS = "words", "characters"
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)
_MIX = np.uint64(0xD6E8FEB86659FD93)
ALL = 2**64 - 1
_MAX_BITS = 27  # 16 MB of bits
Range = tuple[np.ndarray, np.ndarray]
"""Starts and stops, int64 [ranges]."""
_COMPARED = 4_000_000  # letters compared at a time


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """Letters cut into units of one kind.

    Attributes:
        starts, stops: int64 [units], letters of each unit.
        sums: uint64 [units+1], hash of everything before a unit.
    """

    letters: Letters
    unit: str
    starts: np.ndarray
    stops: np.ndarray
    sums: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Grams:
    """Known passages, each found by its first `width` units and compared over its whole length.

    A run of `width` units holds one of every `step`-th runs of `anchor` units, wherever it begins: only these are
    looked up at first, and only where one of them is known, the runs that hold it.

    Attributes:
        letters: the letters that passages are parts of.
        hashes: uint64 [grams], ascending.
        starts, stops: int64 [grams], of each passage in `letters`.
        bits: uint8, one bit for each value of the upper bits of an anchor's hash; `shift` brings these down.
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

    @property
    def anchor(self) -> int:
        return (self.width + 1) // 2

    @property
    def step(self) -> int:
        return self.width - self.anchor + 1


def hashed(letters: Letters, unit: str, sums: np.ndarray | None = None) -> Hashed:
    """Letters with the hashes of their words, or of each of them. sums: `letter_sums`, where they are at hand."""
    total = len(letters.values)
    sums = letter_sums(letters) if sums is None else sums
    if unit == CHARACTERS:
        starts = np.arange(total + 1)
        return Hashed(letters=letters, unit=unit, starts=starts[:-1], stops=starts[1:], sums=sums)
    starts = np.flatnonzero(letters.begins)
    stops = np.append(starts[1:], total) if len(starts) else starts
    words = (sums[stops] - sums[starts]) * _powers(_INVERSE, total)[starts]
    return Hashed(letters=letters, unit=unit, starts=starts, stops=stops, sums=_sums(_mixed(words)))


def letter_sums(letters: Letters) -> np.ndarray:
    """uint64 [n+1]: hash of everything before a letter."""
    return _sums(_mixed_letters()[letters.values])


def _sums(values: np.ndarray) -> np.ndarray:
    sums = np.zeros(len(values) + 1, np.uint64)
    np.multiply(values, _powers(_BASE, len(values)), out=sums[1:])
    return np.cumsum(sums, out=sums)


def window_hashes(text: Hashed, width: int, at: np.ndarray, mask: int = ALL) -> np.ndarray:
    """uint64 [windows]: hashes of the runs of `width` units that begin at units `at`."""
    made = (text.sums[at + width] - text.sums[at]) * _powers(_INVERSE, len(text.starts))[at]
    return made & np.uint64(mask) if mask != ALL else made


def make_grams(
    text: Hashed, width: int, starts: np.ndarray, stops: np.ndarray, mask: int = ALL
) -> tuple[Grams, np.ndarray]:
    """Passages of `text` with those of equal letters taken together.

    Args:
        text: what passages are parts of.
        width: as in `Grams`; every passage has at least so many units.
        starts, stops: int64 [passages], in letters.
        mask: see `Grams`.

    Returns:
        the grams, and int64 [passages], which gram each passage is.
    """
    hashes = window_hashes(text, width, np.searchsorted(text.starts, starts), mask)
    of, firsts = np.full(len(starts), -1), list[int]()
    left = np.argsort(hashes, kind="stable")
    while len(left):  # a second round only where two unlike passages have one hash
        begins = np.append(True, hashes[left][1:] != hashes[left][:-1])
        group = np.cumsum(begins) - 1
        first = left[begins]
        chosen = first[group]
        equal = same(
            text.letters, (starts[left], stops[left]), text.letters, (starts[chosen], stops[chosen]), text.unit
        )
        of[left[equal]] = len(firsts) + group[equal]
        firsts += first.tolist()
        left = left[~equal]
    kept = np.array(firsts, np.int64)
    order = np.argsort(hashes[kept], kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    kept = kept[order]
    return _with_bits(text, width, mask, hashes[kept], starts[kept], stops[kept]), rank[of]


def only(grams: Grams, text: Hashed, kept: np.ndarray) -> Grams:
    """Some of the grams, in their order. kept: bool [grams]; text: what they were made from."""
    parts = [getattr(grams, name)[kept] for name in ("hashes", "starts", "stops")]
    return _with_bits(text, grams.width, grams.mask, *parts)


def _with_bits(text: Hashed, width: int, mask: int, hashes: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> Grams:
    parts: dict[str, Any] = {"hashes": hashes, "starts": starts, "stops": stops}
    shift = 64 - min(_MAX_BITS, max(10, len(hashes).bit_length() + 6))
    grams = Grams(
        unit=text.unit, width=width, letters=text.letters, bits=np.zeros(0, np.uint8), shift=shift, mask=mask, **parts
    )
    marked = np.zeros(1 << (64 - shift), np.uint8)
    first = np.searchsorted(text.starts, starts)
    for offset in range(grams.step):
        marked[(window_hashes(text, grams.anchor, first + offset, mask) >> np.uint64(shift)).view(np.int64)] = 1
    return replace(grams, bits=np.packbits(marked, bitorder="little"))


def find(grams: Grams, text: Hashed) -> tuple[np.ndarray, np.ndarray]:
    """Every place where a gram stands in one of the texts: (gram int64 [hits], first letter int64 [hits])."""
    at = _candidates(grams, text)
    made = window_hashes(text, grams.width, at, grams.mask)
    low = np.searchsorted(grams.hashes, made)
    known = low < len(grams.hashes)
    known[known] = grams.hashes[low[known]] == made[known]
    low, starts, made = low[known], text.starts[at[known]], made[known]
    counts = np.searchsorted(grams.hashes, made, side="right") - low
    gram, starts = spread(low, counts), np.repeat(starts, counts)
    stops = starts + grams.stops[gram] - grams.starts[gram]
    ends = text.letters.ends
    inside = stops <= np.append(ends, 0)[np.searchsorted(ends, starts, side="right")]
    gram, starts, stops = gram[inside], starts[inside], stops[inside]
    equal = same(text.letters, (starts, stops), grams.letters, (grams.starts[gram], grams.stops[gram]), grams.unit)
    return gram[equal], starts[equal]


def _candidates(grams: Grams, text: Hashed) -> np.ndarray:
    """Units at which a run may be known: those from which a known anchor is reached."""
    anchors = np.arange(0, len(text.starts) - grams.anchor + 1, grams.step)
    upper = (window_hashes(text, grams.anchor, anchors, grams.mask) >> np.uint64(grams.shift)).view(np.int64)
    passed = (grams.bits[upper >> 3] >> (upper & 7).astype(np.uint8)) & 1
    last = anchors[np.flatnonzero(passed)]
    at = (last[:, None] - np.arange(grams.step - 1, -1, -1)).ravel()
    return at[(at >= 0) & (at + grams.width <= len(text.starts))]


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


@functools.cache
def _mixed_letters() -> np.ndarray:
    return _mixed(np.arange(sys.maxunicode + 1, dtype=np.uint64))


@functools.lru_cache(maxsize=8)
def _power_table(base: int, count: int) -> np.ndarray:
    made = np.full(count, base, np.uint64)
    made[0] = 1
    return np.cumprod(made)
