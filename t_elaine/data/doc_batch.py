"""One record batch of a shard as numpy arrays that point into the file: documents, groups, trained spans.

It opens no file.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

Spans = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class DocBatch:
    """One record batch: `docs` documents, `n` tokens. `tokens` and `offsets` point into the memory-mapped file.

    Attributes:
        tokens: uint32 [n].
        offsets: int64 [docs+1]; document i is tokens[offsets[i]:offsets[i+1]].
        group: int32 [docs], index into `Store.groups`.
        bytes: int64 [docs], UTF-8 bytes of the original text.
        text_hash: uint64 [docs].
        trained: None (all tokens of all documents), or (offsets int64 [docs+1], starts, stops int64 [spans]), positions
            within the document.
        ids: function that reads the documents' ids, list[str] [docs].
        sources: function that reads the documents' source names, list[str] [docs].
    """

    tokens: np.ndarray
    offsets: np.ndarray
    group: np.ndarray
    bytes: np.ndarray
    text_hash: np.ndarray
    trained: Spans | None
    ids: Callable[[], list[str]] = field(repr=False)
    sources: Callable[[], list[str]] = field(repr=False)

    @property
    def docs(self) -> int:
        return len(self.offsets) - 1

    def spans(self, i: int) -> list[tuple[int, int]] | None:
        """Trained [start, stop) of document i; None: all of it."""
        if self.trained is None:
            return None
        offsets, starts, stops = self.trained
        span = slice(offsets[i], offsets[i + 1])
        return list(zip(starts[span].tolist(), stops[span].tolist(), strict=True))


def doc_batch(batch: pa.RecordBatch, groups: list[tuple[str, str]]) -> DocBatch:
    tokens = batch.column("tokens")
    return DocBatch(
        tokens=tokens.values.to_numpy(zero_copy_only=True),
        offsets=tokens.offsets.to_numpy(zero_copy_only=True),
        group=_group(batch, groups),
        bytes=batch.column("bytes").to_numpy(),
        text_hash=batch.column("text_hash").to_numpy(),
        trained=_trained(batch.column("trained"), tokens.offsets.to_numpy()),
        ids=lambda: batch.column("id").to_pylist(),
        sources=lambda: batch.column("source").to_pylist(),
    )


def _group(batch: pa.RecordBatch, groups: list[tuple[str, str]]) -> np.ndarray:
    language, category = batch.column("language"), batch.column("category")
    index = {pair: i for i, pair in enumerate(groups)}
    # -1: a pair that no document has.
    table = np.array(
        [[index.get((a, b), -1) for b in category.dictionary.to_pylist()] for a in language.dictionary.to_pylist()],
        np.int32,
    )
    return table[language.indices.to_numpy(), category.indices.to_numpy()]


def _trained(column: pa.Array, token_offsets: np.ndarray) -> Spans | None:
    if column.null_count == len(column):
        return None
    spans = column.values
    starts, stops = (spans.field(name).to_numpy().astype(np.int64) for name in ("start", "stop"))
    if not column.null_count:
        return column.offsets.to_numpy().astype(np.int64), starts, stops
    # A document without spans among some that have them: one span over all of it.
    whole = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
    old = column.offsets.to_numpy().astype(np.int64)
    counts = np.where(whole, 1, np.diff(old))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    new_starts, new_stops = np.zeros(offsets[-1], np.int64), np.zeros(offsets[-1], np.int64)
    new_stops[offsets[:-1][whole]] = np.diff(token_offsets)[whole]
    kept = np.ones(offsets[-1], bool)
    kept[offsets[:-1][whole]] = False
    new_starts[kept], new_stops[kept] = starts, stops
    return offsets, new_starts, new_stops
