"""Pieces of documents → the arrays of a batch, in a few numpy calls for many rows.

A piece is a run of one document's tokens that stands in one row, or padding. The pieces of a row make exactly T+1
tokens. Which piece stands where is decided in `packing.py`; this file only lays them out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

Spans = tuple[np.ndarray, np.ndarray, np.ndarray]
# Rows laid out at once: their buffers stay in a core's cache (8 rows of 8192 tokens are 1.5 MB).
CHUNK_TOKENS = 1 << 16


class Block(Protocol):
    """What a row needs of a store's record batch; `t_elaine.data.store.DocBatch` is one."""

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def group(self) -> np.ndarray: ...
    @property
    def bytes(self) -> np.ndarray: ...
    @property
    def trained(self) -> Spans | None: ...


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Pieces in row order, one element each.

    Attributes:
        row: int64, the row's place in the batch, ascending.
        block: int64, index into the list of blocks; -1 is padding.
        start: int64, first token in `block.tokens` (padding: 0).
        length: int64 > 0.
        first: int64, position of the piece's first token in its document.
        document: int64, number of the document in its block.
        group: int32, group of its tokens (padding: 0).
    """

    row: np.ndarray
    block: np.ndarray
    start: np.ndarray
    length: np.ndarray
    first: np.ndarray
    document: np.ndarray
    group: np.ndarray

    def take(self, index: np.ndarray | slice) -> "Pieces":
        return Pieces(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def join(parts: Sequence[Pieces]) -> Pieces:
    """All pieces of `parts`, sorted by row; pieces of one row keep the order of `parts`."""
    every = Pieces(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Pieces)})
    if len(parts) == 1 or not len(every.row):
        return every
    return every.take(np.argsort(every.row, kind="stable"))


def empty_batch(rows: int, length: int) -> dict[str, np.ndarray]:
    """Unwritten arrays [rows, length] of a batch (see `fill`)."""
    dtypes = {"weights": np.float32}
    names = ("tokens", "targets", "segments", "positions", "weights", "groups")
    return {name: np.empty((rows, length), dtypes.get(name, np.int32)) for name in names}


def fill(batch: dict[str, np.ndarray], pieces: Pieces, blocks: Sequence[Block], pad: int) -> None:
    """Write the rows of a batch.

    Args:
        batch: arrays [R, T] (`empty_batch`): tokens, targets, segments (1, 2, … within the row; 0 padding), positions
            (from 0 in every piece), groups (group of the target's document), all int32, and weights float32: 1 where
            the target is to be learnt, 0 where it belongs to another piece than the input, to padding, or to no
            trained span of its document.
        pieces: the pieces of rows 0 … R-1; each row's lengths sum to T+1.
        blocks: what `pieces.block` counts.
        pad: token id of padding.
    """
    rows, length = batch["tokens"].shape
    step = max(1, CHUNK_TOKENS // (length + 1))
    bounds = np.searchsorted(pieces.row, np.arange(0, rows + step, step).clip(max=rows))
    padding = np.full(length + 1, pad, np.uint32)
    for i, low in enumerate(range(0, rows, step)):
        part = {name: array[low : low + step] for name, array in batch.items()}
        _fill_chunk(part, pieces.take(slice(bounds[i], bounds[i + 1])), low, blocks, padding)


def _fill_chunk(
    batch: dict[str, np.ndarray], pieces: Pieces, low: int, blocks: Sequence[Block], padding: np.ndarray
) -> None:
    rows, length = batch["tokens"].shape
    _copy_tokens(batch, pieces, blocks, padding)
    row, lengths = pieces.row - low, pieces.length
    # Starts and stops of the pieces in a buffer of rows of T+1 tokens.
    stops = np.cumsum(lengths)
    starts = stops - lengths
    head = np.searchsorted(row, np.arange(rows))
    tail = np.append(head[1:], len(row)) - 1
    real = pieces.block >= 0
    segment = np.where(real, np.arange(1, len(row) + 1) - head[row], 0).astype(np.int32)

    # Inputs leave out the last token of a row, targets the first.
    inputs, targets = lengths.copy(), lengths.copy()
    inputs[tail] -= 1
    targets[head] -= 1
    input_starts = starts - row
    batch["segments"].reshape(-1)[:] = np.repeat(segment, inputs)
    np.subtract(
        np.arange(rows * length, dtype=np.int32),
        np.repeat(input_starts.astype(np.int32), inputs),
        out=batch["positions"].reshape(-1),
    )
    batch["groups"].reshape(-1)[:] = np.repeat(pieces.group, targets)

    weights = batch["weights"].reshape(-1)
    weights.fill(1)
    last = input_starts + lengths - 1
    weights[last[np.arange(len(row)) != tail[row]]] = 0
    for start, size in zip(input_starts[~real].tolist(), inputs[~real].tolist(), strict=True):
        weights[start : start + size] = 0
    _weigh_spans(weights, pieces, input_starts, blocks)


def _copy_tokens(batch: dict[str, np.ndarray], pieces: Pieces, blocks: Sequence[Block], padding: np.ndarray) -> None:
    rows, length = batch["tokens"].shape
    buffer = np.empty(rows * (length + 1), np.uint32)
    columns = (pieces.block.tolist(), pieces.start.tolist(), (pieces.start + pieces.length).tolist())
    slices = [(blocks[b].tokens if b >= 0 else padding)[i:j] for b, i, j in zip(*columns, strict=True)]
    np.concatenate(slices, out=buffer)
    tokens = buffer.view(np.int32).reshape(rows, length + 1)
    batch["tokens"][:] = tokens[:, :-1]
    batch["targets"][:] = tokens[:, 1:]


def _weigh_spans(weights: np.ndarray, pieces: Pieces, input_starts: np.ndarray, blocks: Sequence[Block]) -> None:
    """Weight 0 for the targets of documents that name trained spans, except within these."""
    for i, (start, stop) in _trained_pieces(pieces, blocks):
        length, first, at = int(pieces.length[i]), int(pieces.first[i]), int(input_starts[i])
        # The input at `at + j` has as target the document's token `first + j + 1`.
        keep = np.zeros(length - 1, bool)
        for a, b in zip((start - first - 1).tolist(), (stop - first - 1).tolist(), strict=True):
            keep[max(a, 0) : max(b, 0)] = True
        weights[at : at + length - 1][~keep] = 0


def _trained_pieces(pieces: Pieces, blocks: Sequence[Block]) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    used = np.unique(pieces.block)
    marked = [b for b in used.tolist() if b >= 0 and blocks[b].trained is not None]
    if not marked:
        return
    for i in np.flatnonzero(np.isin(pieces.block, marked)).tolist():
        spans = blocks[int(pieces.block[i])].trained
        if spans is not None:
            offsets, starts, stops = spans
            low, high = int(offsets[pieces.document[i]]), int(offsets[pieces.document[i] + 1])
            yield i, (starts[low:high], stops[low:high])
