"""The pairs of one split of a store, each once, in rows: for what is read of them besides training.

Which rows they stand in has no meaning; what is computed of them is kept by document.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from t_elaine.data.filling import Block, Pieces, empty_batch, fill, join
from t_elaine.data.mixture import Mixture
from t_elaine.data.order import WINDOW_TOKENS
from t_elaine.data.pair_rows import PairRows, fit, lay_reference, spans
from t_elaine.data.rows import Batch, StoreLike, pad_id


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """Pairs of a store.

    Attributes:
        store: its name.
        blocks: of the split, in file order.
        rows: the pairs in rows; their number is `count`.
        group: int32 [documents], index into the caller's groups.
        tokens: int64 [documents], trained tokens of the chosen answer within its row; 0: the pair is left out.
        length: T.
        pad: id of padding.
    """

    store: str
    blocks: Sequence[Block]
    rows: PairRows
    group: np.ndarray
    tokens: np.ndarray
    length: int
    pad: int

    @property
    def count(self) -> int:
        """Rows."""
        return int(self.rows.rows_per_epoch)

    def batches(self, rows_at_once: int, most: int) -> Iterator[tuple[Batch, Pieces]]:
        """Arrays [rows_at_once, T] and the pieces in them; the last has empty rows behind. most: rows in all."""
        for first in range(0, min(self.count, most), rows_at_once):
            numbers = np.arange(first, min(first + rows_at_once, self.count, most))
            pieces = join(self.rows.pieces(numbers, np.arange(len(numbers))))
            batch = empty_batch(len(numbers), self.length)
            fill(batch, pieces, self.blocks, self.pad)
            lay_reference(batch, pieces, None)
            missing = rows_at_once - len(numbers)
            yield {name: np.pad(array, ((0, missing), (0, 0))) for name, array in batch.items()}, pieces

    def by_document(self, found: np.ndarray, pieces: Pieces, table: np.ndarray) -> None:
        """Write what was found of the segments of a batch's rows, [rows, S], into a table [documents, 2]."""
        firsts = np.cumsum([0, *(len(block.offsets) - 1 for block in self.blocks)])
        real = np.flatnonzero(pieces.block >= 0)
        head = np.searchsorted(pieces.row, np.arange(int(pieces.row.max()) + 1))
        segment = real - head[pieces.row[real]]
        document = firsts[pieces.block[real]] + pieces.document[real]
        table[document, segment % 2] = found[pieces.row[real], segment]


def pair_sets(
    stores: Sequence[StoreLike], mixture: Mixture, groups: Sequence[tuple[str, str]], split: str
) -> list[PairSet]:
    """The pairs of a split, store by store; one without any is passed over.

    Args:
        stores: of preferences, opened.
        mixture: row length and what becomes of pairs that are longer.
        groups: (language, category) pairs that `PairSet.group` counts.
        split: which split.
    """
    found = []
    for store in stores:
        blocks = store.batches(split)
        if not sum(len(block.offsets) - 1 for block in blocks):
            continue
        numbers = np.array([list(groups).index((language, category)) for language, category in store.groups], np.int32)
        length, truncate = mixture.sequence_length, mixture.overlong == "truncate"
        rows = PairRows(blocks, numbers, seed=0, length=length, window_tokens=WINDOW_TOKENS, truncate=truncate)
        learnt = np.concatenate([spans(block) for block in blocks])
        kept = fit(np.concatenate([np.diff(block.offsets) for block in blocks]), learnt, length + 1, truncate)
        found.append(
            PairSet(
                store=store.name,
                blocks=blocks,
                rows=rows,
                group=numbers[np.concatenate([block.group for block in blocks])],
                tokens=np.maximum(np.minimum(learnt[:, 1], kept[:, 0]) - learnt[:, 0], 0),
                length=length,
                pad=pad_id(store.vocabulary),
            )
        )
    return found
