"""Rows of a store of preferences: `whole` packing in which every document is two dialogues, side by side.

Pair p of a row (from 0) is the row's segments 2p+1, the chosen dialogue, and 2p+2, the rejected one; each has positions
from 0 and sees itself alone. A batch has one array more, `reference`: at the first token of each segment the sum of the
log-probabilities that the run's start gives the segment's trained tokens, 0 elsewhere (`pair_reference` reads them).
"""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from t_elaine.data.filling import Block, Pieces
from t_elaine.data.packing import Documents, WholeRows
from t_elaine.errors import UserError

REFERENCE = "reference"


def spans(block: Block) -> np.ndarray:
    """int64 [documents, 4]: first and last+1 trained token of the chosen dialogue (where it ends), then the rejected's.

    Raises:
        UserError: a document has not exactly two ranges.
    """
    documents = len(block.offsets) - 1
    counts = None if block.trained is None else np.diff(block.trained[0])
    if block.trained is None or counts is None or (counts != 2).any():
        raise UserError("a preference without two trained ranges", "a store of preferences", "prepare it again")
    offsets, starts, stops = block.trained
    at = slice(int(offsets[0]), int(offsets[-1]))
    return np.stack([starts[at], stops[at]], axis=1).reshape(documents, 4).astype(np.int64)


def fit(length: np.ndarray, spans: np.ndarray, capacity: int, truncate: bool) -> np.ndarray:
    """Tokens that the two dialogues of each pair take up in a row: int64 [pairs, 2]; 0, 0 where a pair is left out.

    A pair that is longer than a row is left out, or both dialogues are cut at their ends to the same length, the
    greatest with which they fit (a shorter one stays whole); one that would lose a whole answer is left out always.

    Args:
        length: tokens of each document.
        spans: as `spans` gives them.
        capacity: tokens of a row.
        truncate: cut pairs that are too long.
    """
    chosen, rejected = spans[:, 1], length - spans[:, 1]
    short, half = np.minimum(chosen, rejected), capacity // 2
    limit = np.where(short <= half, capacity - short, half)
    kept = np.stack([np.minimum(chosen, limit), np.minimum(rejected, limit)], axis=1)
    learnt = np.stack([spans[:, 0], spans[:, 2] - spans[:, 1]], axis=1)
    fits = (learnt < kept).all(axis=1) & (truncate | (length <= capacity))
    return np.where(fits[:, None], kept, 0)


class PairRows(WholeRows):
    """`WholeRows` of preferences; `dropped` and `truncated` count pairs."""

    def _fitting(self, lengths: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        found = np.concatenate([spans(self._blocks[b]) for b in numbers])
        return fit(lengths, found, self._capacity, self._truncate).sum(axis=1)

    def _laid(self, documents: Documents, rows: np.ndarray) -> Pieces:
        found = np.empty((len(rows), 4), np.int64)
        for number in np.unique(documents.block).tolist():
            here = documents.block == number
            found[here] = spans(self._blocks[number])[documents.document[here]]
        kept = fit(documents.length, found, self._capacity, self._truncate)
        border = found[:, 1]
        first = np.stack([0 * border, border], axis=1)
        whole = super()._laid(documents, rows)
        twice = Pieces(**{f.name: np.repeat(getattr(whole, f.name), 2) for f in fields(Pieces)})
        both = {"start": first.reshape(-1) + twice.start, "length": kept.reshape(-1), "first": first.reshape(-1)}
        return Pieces(**{**twice.__dict__, **both})


def lay_reference(batch: dict[str, np.ndarray], pieces: Pieces, table: Sequence[np.ndarray] | None) -> None:
    """Add `reference`, float32 [R, T], to the rows of a batch.

    Args:
        batch: as `filling.fill` left it.
        pieces: of its rows.
        table: float32 [documents, 2] (chosen, rejected) of each block; None: zeros.
    """
    laid = np.zeros(batch["tokens"].shape, np.float32)
    if table is not None:
        stops = np.cumsum(pieces.length)
        column = stops - pieces.length - pieces.row * (batch["tokens"].shape[1] + 1)
        for i in np.flatnonzero(pieces.block >= 0).tolist():
            side = int(pieces.first[i] > 0)
            laid[pieces.row[i], column[i]] = table[pieces.block[i]][pieces.document[i], side]
    batch[REFERENCE] = laid
