"""The passages by which an exam's items are known: what of a question and its options is looked for in texts.

An item is its question and options in three layouts: as they are, with letters before the options, with numbers. From
these come all runs of n words, or of n characters where most of its letters are Chinese or Japanese; items shorter than
n, and questions shorter than n, are taken whole. A run of characters counts if a third of them are Chinese or Japanese.
Labels belong to a passage but cover nothing of the item.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t_elaine.data.exam_items import ExamItem
from t_elaine.data.folding import Letters, fold, spread
from t_elaine.data.grams import CHARACTERS, WORDS, Hashed, hashed

_LABELS = ("abcdefghijklmnopqrstuvwxyz", [str(number) for number in range(1, 27)])
PLAIN, LABELLED, QUESTION = range(3)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Lengths of one unit: n of the n-grams; the shortest question and item that are taken whole."""

    unit: str
    n: int
    question: int
    item: int


@dataclass(frozen=True, kw_only=True)
class Passages:
    """Passages of items in one unit.

    Attributes:
        text: the layouts of all items one after another.
        starts, stops: int64 [passages], letters of `text`.
        units: int64 [passages], words or characters of the passage, labels included.
        item: int64 [passages], index into the items given.
        first, last: int64 [passages], units [first, last) of the item, question first, that it covers.
        layout_item: int64 [layouts], the item of each text of `text`; `plain`: bool [layouts].
    """

    text: Hashed
    starts: np.ndarray
    stops: np.ndarray
    units: np.ndarray
    item: np.ndarray
    first: np.ndarray
    last: np.ndarray
    layout_item: np.ndarray
    plain: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Folded pieces of items: questions, options, labels. `question`, `whole`: int64 [items], their units."""

    letters: Letters
    pieces: list[tuple[int, int]]
    labels: tuple[list[int], list[int]]
    unit: np.ndarray
    question: np.ndarray
    whole: np.ndarray


def measure(items: Sequence[ExamItem]) -> Measured:
    """Fold items and count their units; `pieces`: first and last piece of each item, its question first."""
    texts: list[str] = []
    pieces = []
    for item in items:
        pieces.append((len(texts), len(texts) + 1 + len(item.options)))
        texts += [item.question, *item.options]
    labels = ([len(texts) + i for i in range(26)], [len(texts) + 26 + i for i in range(26)])
    letters = fold([*texts, *_LABELS[0], *_LABELS[1]])
    bounds = np.array(pieces, np.int64).reshape(-1, 2)
    ends = np.concatenate([[0], letters.ends])
    characters, words, cjk = (
        np.concatenate([[0], np.cumsum(counted)])[ends]
        for counted in (np.ones(len(letters.values), np.int64), letters.begins, letters.cjk)
    )
    by_characters = 2 * (cjk[bounds[:, 1]] - cjk[bounds[:, 0]]) > characters[bounds[:, 1]] - characters[bounds[:, 0]]
    counts = np.where(by_characters, characters[bounds.T], words[bounds.T])
    after_question = np.where(by_characters, characters[bounds[:, 0] + 1], words[bounds[:, 0] + 1])
    return Measured(
        letters=letters,
        pieces=pieces,
        labels=labels,
        unit=np.where(by_characters, CHARACTERS, WORDS),
        question=after_question - counts[0],
        whole=counts[1] - counts[0],
    )


def passages(measured: Measured, sizes: Sizes) -> Passages:
    """All passages of the items whose unit is that of `sizes`."""
    layouts = _Layouts(measured, sizes)
    for item in np.flatnonzero(measured.unit == sizes.unit).tolist():
        layouts.add(item)
    return layouts.passages()


class _Layouts:
    """Gathers the layouts of items as ranges of letters, then cuts them into passages."""

    def __init__(self, measured: Measured, sizes: Sizes) -> None:
        self.measured, self.sizes = measured, sizes
        self.ends = [0, *measured.letters.ends.tolist()]
        self.words = np.flatnonzero(measured.letters.begins)
        self.ranges: list[tuple[int, int, bool]] = []
        self.layouts: list[tuple[int, int, int, int]] = []  # ranges so far, item, kind, units left out at the front

    def add(self, item: int) -> None:
        first, last = self.measured.pieces[item]
        question = int(self.measured.question[item])
        self._close([(i, False) for i in range(first, last)], item, PLAIN)
        if self.sizes.question <= question < self.sizes.n and last > first + 1:
            self._close([(first, False)], item, QUESTION)
        for labels in self.measured.labels if 1 < last - first <= 27 else ():
            options = [pair for k, i in enumerate(range(first + 1, last)) for pair in ((labels[k], True), (i, False))]
            self._close([(first, False), *options], item, LABELLED)

    def _close(self, pieces: list[tuple[int, bool]], item: int, kind: int) -> None:
        left_out = 0
        for i, label in pieces:
            start, stop = self.ends[i], self.ends[i + 1]
            if kind == LABELLED and not left_out and i == pieces[0][0]:
                # Of the question only what a passage can hold together with the first label.
                left_out = max(0, int(self.measured.question[item]) - self.sizes.n + 1)
                start = self._after(start, left_out)
            self.ranges.append((start, stop - start, label))
        self.layouts.append((len(self.ranges), item, kind, left_out))

    def _after(self, letter: int, units: int) -> int:
        if self.sizes.unit == CHARACTERS or not units:
            return letter + units
        return int(self.words[np.searchsorted(self.words, letter) + units])

    def passages(self) -> Passages:
        ranges, layouts = (
            np.array(self.ranges, np.int64).reshape(-1, 3),
            np.array(self.layouts, np.int64).reshape(-1, 4),
        )
        letters = self._letters(ranges, layouts)
        text = hashed(letters, self.sizes.unit)
        label = np.repeat(ranges[:, 2] == 1, ranges[:, 1])
        starts = text.starts
        unlabelled = np.concatenate([[0], np.cumsum(~label[starts])])
        of = np.searchsorted(letters.ends, starts, side="right")
        first_unit = np.searchsorted(starts, np.concatenate([[0], letters.ends[:-1]]))
        count = np.bincount(of, minlength=len(layouts))
        chosen, units, layout = self._chosen(count, first_unit, layouts)
        ends = np.append(starts, len(letters.values))
        covered = [
            layouts[layout, 3] + unlabelled[edge] - unlabelled[first_unit[layout]] for edge in (chosen, chosen + units)
        ]
        # A run without a label is the same in all layouts.
        new = (layouts[layout, 2] != LABELLED) | (covered[1] - covered[0] < units)
        cut: dict[str, Any] = {
            "starts": ends[chosen],
            "stops": ends[chosen + units],
            "units": units,
            "item": layouts[layout, 1],
            "first": covered[0],
            "last": covered[1],
        }
        if self.sizes.unit == CHARACTERS:
            # Names in Latin letters and rows of laboratory values are no sign of an item.
            cjk = np.concatenate([[0], np.cumsum(letters.cjk)])
            new &= 3 * (cjk[cut["stops"]] - cjk[cut["starts"]]) >= cut["stops"] - cut["starts"]
        kept = {name: array[new] for name, array in cut.items()}
        return Passages(text=text, layout_item=layouts[:, 1], plain=layouts[:, 2] == PLAIN, **kept)

    def _letters(self, ranges: np.ndarray, layouts: np.ndarray) -> Letters:
        """The layouts' letters; every piece begins a word."""
        source, places = self.measured.letters, spread(ranges[:, 0], ranges[:, 1])
        stops = np.cumsum(ranges[:, 1])
        begins = source.begins[places]
        begins[(stops - ranges[:, 1])[ranges[:, 1] > 0]] = True
        ends = np.concatenate([[0], stops])[layouts[:, 0]]
        return Letters(values=source.values[places], begins=begins, cjk=source.cjk[places], ends=ends)

    def _chosen(
        self, count: np.ndarray, first_unit: np.ndarray, layouts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First unit, length in units and layout of every passage."""
        n = self.sizes.n
        runs = np.where((count >= n) & (layouts[:, 2] != QUESTION), count - n + 1, 0)
        least = np.where(layouts[:, 2] == QUESTION, self.sizes.question, self.sizes.item)
        short = np.flatnonzero((count < n) & (count >= least))
        chosen = np.concatenate([spread(first_unit, runs), first_unit[short]])
        units = np.concatenate([np.full(runs.sum(), n), count[short]])
        return chosen, units, np.concatenate([np.repeat(np.arange(len(count)), runs), short])
