"""Rows of one source: which documents' pieces make its n-th row, for any n, without having made the rows before it.

`split` (pre-training): a source is an endless stream of epochs; each is all its documents in a seeded order. Stream row
r holds the stream's tokens [r·T, r·T + T]: T+1 tokens, one shared with the next row, across epoch borders too. So every
token of the stream is the target of exactly one row, and none is lost or padded. The rows that begin in one window
(`order.py`) are visited in a seeded order, so that the pieces of one long document do not fill one batch. A continued
piece gets no BOS; its positions start at 0 again: attention cannot see what stood before, and RoPE is relative.

`whole` (chat): several whole documents share a row of T+1 tokens, none is split. Best-fit decreasing over the
histogram of a window's lengths (Johnson 1974; on histograms Krell et al. 2021, arXiv 2107.02027) fixes the shapes of
the rows once for all epochs, so that a window's number of rows never changes and row n is found by division. An epoch
deals the documents of equal length anew to the places of that length and shuffles the rows.

Positioning costs one window's index (tens of milliseconds), whatever n is. Opening costs one look at each block's total
for `split`, at each document's length for `whole`. Nothing here knows of mixtures, batches or hosts.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from t_elaine.data.filling import Block, Pieces
from t_elaine.data.order import WINDOW_TOKENS, Epochs, fold, permutation, windows

# Windows whose index is kept: the one in use, its neighbour across a border, and one that is being left.
KEPT_WINDOWS = 3
_WINDOW_ORDER, _DOCUMENTS, _ROWS = range(3)


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Documents of a window, arrays [n]: length in tokens, first token and number in their block, block, group."""

    length: np.ndarray
    start: np.ndarray
    document: np.ndarray
    block: np.ndarray
    group: np.ndarray

    def take(self, index: np.ndarray) -> "Documents":
        return Documents(
            length=self.length[index],
            start=self.start[index],
            document=self.document[index],
            block=self.block[index],
            group=self.group[index],
        )


def read_documents(blocks: Sequence[Block], numbers: np.ndarray, groups: np.ndarray) -> Documents:
    """The documents of the blocks `numbers`, in that order. groups: int32, the blocks' group → the mixture's group."""
    counts = [len(blocks[b].offsets) - 1 for b in numbers]
    offsets = [np.asarray(blocks[b].offsets) for b in numbers]
    return Documents(
        length=np.concatenate([np.diff(o) for o in offsets]),
        start=np.concatenate([o[:-1] for o in offsets]).astype(np.int64),
        document=np.concatenate([np.arange(n, dtype=np.int32) for n in counts]),
        block=np.repeat(numbers.astype(np.int32), counts),
        group=groups[np.concatenate([blocks[b].group for b in numbers])].astype(np.int32),
    )


def first_learnt(blocks: Sequence[Block], numbers: np.ndarray) -> np.ndarray:
    """int64 [documents]: the first token that each document of blocks teaches; one without any: beyond all rows."""
    firsts = []
    for trained, documents in ((blocks[b].trained, len(blocks[b].offsets) - 1) for b in numbers):
        first = np.zeros(documents, np.int64)
        if trained is not None:
            offsets, starts, _ = trained
            first[:] = np.iinfo(np.int64).max
            some = np.flatnonzero(np.diff(offsets))
            first[some] = starts[offsets[some]]
        firsts.append(first)
    return np.concatenate(firsts)


def block_totals(blocks: Sequence[Block]) -> tuple[list[int], list[int]]:
    """(tokens, documents) of each block, from the two ends of its offsets."""
    tokens = [int(b.offsets[-1]) - int(b.offsets[0]) for b in blocks]
    return tokens, [len(b.offsets) - 1 for b in blocks]


@dataclass(frozen=True)
class _SplitWindow:
    documents: Documents
    edges: np.ndarray  # stream positions of the documents' starts [n+1]
    first_row: int
    row_order: np.ndarray


class SplitRows:
    """Rows of the `split` packing of one source.

    Attributes:
        tokens: tokens of an epoch.
        rows_per_epoch: rows of an epoch (a fraction: rows run on across epochs).
        tokens_per_row: T, the new tokens that a row brings.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        groups: np.ndarray,
        *,
        seed: int,
        length: int,
        window_tokens: int = WINDOW_TOKENS,
    ) -> None:
        """blocks: the source's; groups: its group → the mixture's; seed: the source's; length: T."""
        totals, documents = block_totals(blocks)
        self._blocks, self._groups, self._seed, self._length = blocks, groups, seed, length
        self._windows = windows(totals, documents, seed, window_tokens)
        self._epochs = Epochs([sum(totals[b] for b in w.tolist()) for w in self._windows], fold(seed, _WINDOW_ORDER))
        self._window = lru_cache(maxsize=KEPT_WINDOWS)(self._open_window)
        self.tokens = self._epochs.total
        self.rows_per_epoch = self.tokens / length
        self.tokens_per_row = float(length)
        self.dropped = self.truncated = 0

    def _open_window(self, epoch: int, place: int) -> _SplitWindow:
        order, edges = self._epochs.edges(epoch)
        number, low, high = int(order[place]), int(edges[place]), int(edges[place + 1])
        documents = read_documents(self._blocks, self._windows[number], self._groups)
        documents = documents.take(permutation(fold(self._seed, _DOCUMENTS, epoch, number), len(documents.length)))
        starts = np.empty(len(documents.length) + 1, np.int64)
        starts[0] = low
        np.cumsum(documents.length, out=starts[1:])
        starts[1:] += low
        # The rows that begin in this window.
        first, last = -(-low // self._length), -(-high // self._length)
        return _SplitWindow(documents, starts, first, permutation(fold(self._seed, _ROWS, epoch, number), last - first))

    def _stream_rows(self, numbers: np.ndarray) -> np.ndarray:
        """Stream row that is visited n-th."""
        rows = np.empty_like(numbers)
        for at, epoch, place in self._epochs.locate(numbers * self._length):
            window = self._window(epoch, place)
            rows[at] = window.first_row + window.row_order[numbers[at] - window.first_row]
        return rows

    def pieces(self, numbers: np.ndarray, rows: np.ndarray) -> list[Pieces]:
        """Pieces of the rows `numbers` (int64 [n]) of this source, to stand in rows `rows` (int64 [n]) of a batch."""
        starts = self._stream_rows(numbers) * self._length
        stops = starts + self._length + 1
        found = []
        while len(rows):
            # What a row needs of the window in which it begins; the rest, in the next round, of the windows after it.
            for at, epoch, place in self._epochs.locate(starts):
                window = self._window(epoch, place)
                found.append(
                    cut(window.documents, window.edges, starts[at], np.minimum(stops[at], window.edges[-1]), rows[at])
                )
                starts[at] = window.edges[-1]
            left = starts < stops
            starts, stops, rows = starts[left], stops[left], rows[left]
        return found


def cut(documents: Documents, edges: np.ndarray, starts: np.ndarray, stops: np.ndarray, rows: np.ndarray) -> Pieces:
    """Pieces of the ranges [starts, stops) of a stream of documents, range i to stand in row rows[i].

    edges: stream positions at which the documents start, and the last one's end, int64 [documents+1].
    """
    low = np.searchsorted(edges, starts, side="right") - 1
    high = np.searchsorted(edges, stops, side="left")
    index, owner = ranges(low, high - low)
    first = np.maximum(edges[index], starts[owner])
    length = np.minimum(edges[index + 1], stops[owner]) - first
    if not length.all():  # empty documents
        kept = length > 0
        index, owner, first, length = index[kept], owner[kept], first[kept], length[kept]
    within = first - edges[index]
    return Pieces(
        row=rows[owner],
        block=documents.block[index].astype(np.int64),
        start=documents.start[index] + within,
        length=length,
        first=within,
        document=documents.document[index].astype(np.int64),
        group=documents.group[index],
    )


def ranges(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(starts[0], starts[0]+1, … counts[0] numbers, then starts[1] …; the range that each number belongs to)."""
    owner = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return np.arange(len(owner)) - before[owner] + starts[owner], owner


Shape = tuple[tuple[int, ...], int]


def best_fit(histogram: np.ndarray, capacity: int) -> list[Shape]:
    """Best-fit-decreasing packing of lengths into rows.

    Args:
        histogram: int [capacity+1], how many documents have each length; histogram[0] is ignored.
        capacity: tokens of a row.

    Returns:
        (lengths in a row, number of such rows), deterministic.
    """
    room: list[int] = []  # what is left in open rows, ascending
    shapes: dict[int, list[Shape]] = {}

    def put(shape: tuple[int, ...], rows: int, left: int) -> None:
        if left not in shapes:
            shapes[left] = []
            insort(room, left)
        shapes[left].append((shape, rows))

    for length in np.flatnonzero(histogram)[::-1].tolist():
        count = int(histogram[length]) if length else 0
        while count:
            at = bisect_left(room, length)
            if at == len(room):
                # Of a new row's room, no other open row has as little that suffices: fill it with this length.
                many, rest = divmod(count, capacity // length)
                if many:
                    per_row = capacity // length
                    put((length,) * per_row, many, capacity - per_row * length)
                if rest:
                    put((length,) * rest, 1, capacity - rest * length)
                break
            left = room[at]
            shape, rows = shapes[left].pop()
            used = min(rows, count)
            if rows > used:
                shapes[left].append((shape, rows - used))
            if not shapes[left]:
                del shapes[left], room[at]
            put((*shape, length), used, left - length)
            count -= used
    return [shape for left in room for shape in shapes[left]]


@dataclass(frozen=True)
class _WholeWindow:
    documents: Documents  # in the order of the rows' places
    edges: np.ndarray  # first place of each row [rows+1]
    row_order: np.ndarray


class WholeRows:
    """Rows of the `whole` packing of one source.

    Attributes:
        tokens: tokens of the documents that are kept, an epoch.
        rows_per_epoch: rows of an epoch.
        tokens_per_row: tokens in a row on average, padding left out.
        dropped, truncated: documents longer than T+1 tokens that are left out, or cut to T+1 (but for those that would
            lose all that they teach: these are left out).
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        groups: np.ndarray,
        *,
        seed: int,
        length: int,
        window_tokens: int = WINDOW_TOKENS,
        truncate: bool = False,
    ) -> None:
        """blocks: the source's; groups: its group → the mixture's; seed: the source's; length: T.

        truncate: cut documents of more than T+1 tokens at the end, instead of leaving them out.
        """
        totals, documents = block_totals(blocks)
        self._blocks, self._groups, self._seed, self._capacity = blocks, groups, seed, length + 1
        self._truncate = truncate
        self._windows = windows(totals, documents, seed, window_tokens)
        self.tokens = self.dropped = self.truncated = 0
        rows = []
        for window in self._windows:
            lengths = np.concatenate([np.diff(blocks[b].offsets) for b in window])
            fitting = self._fitting(lengths, window)
            rows.append(sum(count for _, count in best_fit(self._histogram(fitting), self._capacity)))
            self.tokens += int(fitting.sum())
            self.dropped += int((fitting < np.minimum(lengths, 1)).sum())
            self.truncated += int(((fitting > 0) & (fitting < lengths)).sum())
        self._epochs = Epochs(rows, fold(seed, _WINDOW_ORDER))
        self._window = lru_cache(maxsize=KEPT_WINDOWS)(self._open_window)
        self.rows_per_epoch = float(self._epochs.total)
        self.tokens_per_row = self.tokens / max(1, self._epochs.total)

    def _fitting(self, lengths: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Lengths that the documents of blocks take up in a row; 0: left out, as one cut before what it teaches."""
        if not self._truncate:
            return np.where(lengths > self._capacity, 0, lengths)
        return np.where(first_learnt(self._blocks, numbers) < self._capacity, np.minimum(lengths, self._capacity), 0)

    def _histogram(self, fitting: np.ndarray) -> np.ndarray:
        return np.bincount(fitting, minlength=self._capacity + 1)

    def _open_window(self, epoch: int, place: int) -> _WholeWindow:
        number = int(self._epochs.edges(epoch)[0][place])
        documents = read_documents(self._blocks, self._windows[number], self._groups)
        lengths = self._fitting(documents.length, self._windows[number])
        shapes = best_fit(self._histogram(lengths), self._capacity)
        shuffled = permutation(fold(self._seed, _DOCUMENTS, epoch, number), len(lengths))
        shuffled = shuffled[lengths[shuffled] > 0]
        # Places and documents, both sorted by length: the i-th place of a length gets the i-th document of that length.
        places = np.concatenate([np.tile(np.array(shape), rows) for shape, rows in shapes])
        dealt = np.empty(len(places), np.int64)
        dealt[np.argsort(places, kind="stable")] = shuffled[np.argsort(lengths[shuffled], kind="stable")]
        counts = np.repeat([len(shape) for shape, _ in shapes], [rows for _, rows in shapes])
        edges = np.concatenate([[0], np.cumsum(counts)])
        order = permutation(fold(self._seed, _ROWS, epoch, number), len(counts))
        return _WholeWindow(documents.take(dealt), edges, order)

    def pieces(self, numbers: np.ndarray, rows: np.ndarray) -> list[Pieces]:
        """Pieces of the rows `numbers` (int64 [n]) of this source, to stand in rows `rows` (int64 [n]) of a batch."""
        found = []
        for at, epoch, place in self._epochs.locate(numbers):
            window = self._window(epoch, place)
            row = window.row_order[numbers[at] - self._epochs.edges(epoch)[1][place]]
            index, owner = ranges(window.edges[row], window.edges[row + 1] - window.edges[row])
            found.append(self._laid(window.documents.take(index), rows[at][owner]))
            length = np.bincount(found[-1].row, found[-1].length, int(rows.max()) + 1)[rows[at]]
            found.append(padding(rows[at], self._capacity - length.astype(np.int64)))
        return found

    def _laid(self, documents: Documents, rows: np.ndarray) -> Pieces:
        """Pieces of whole documents, document i to stand in row rows[i]."""
        zeros = np.zeros(len(rows), np.int64)
        return Pieces(
            row=rows,
            block=documents.block.astype(np.int64),
            start=documents.start,
            length=np.minimum(documents.length, self._capacity),
            first=zeros,
            document=documents.document.astype(np.int64),
            group=documents.group,
        )


def padding(rows: np.ndarray, counts: np.ndarray) -> Pieces:
    """Pieces of `counts` padding tokens for `rows`."""
    rows, counts = rows[counts > 0], counts[counts > 0]
    zeros = np.zeros(len(rows), np.int64)
    return Pieces(
        row=rows, block=zeros - 1, start=zeros, length=counts, first=zeros, document=zeros, group=zeros.astype(np.int32)
    )
