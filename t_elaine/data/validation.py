"""Held-out rows for evaluators: the same rows at every evaluation, each document once, the last row padded.

Rows are cut as in training (T+1 tokens, overlapping by one), from the documents of one group of one store in file
order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t_elaine.data.filling import empty_batch, fill, join
from t_elaine.data.packing import cut, padding, read_documents
from t_elaine.data.rows import Batch, StoreLike, check_stores, pad_id
from t_elaine.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """Held-out text of one store and one (language, category).

    Attributes:
        rows: arrays [rows, T] as in a training batch; `groups` counts the caller's list of groups.
        documents, tokens, bytes: what the rows hold; bytes are those of the documents' original text.
        left_out: documents beyond `max_tokens`.
    """

    store: str
    group: tuple[str, str]
    rows: Batch
    documents: int
    tokens: int
    bytes: int
    left_out: int


def validation_rows(
    stores: Sequence[StoreLike],
    length: int,
    groups: Sequence[tuple[str, str]],
    *,
    max_tokens: int | None = None,
    split: str = "validation",
) -> Iterator[ValidationSet]:
    """Fixed rows by store and group, in the order of the stores; groups without a document are passed over.

    Args:
        stores: opened stores.
        length: T.
        groups: (language, category) pairs that the arrays `groups` count (`Loader.groups`).
        max_tokens: of each store and group, take the first documents up to this many tokens (at least one document).
        split: which split.

    Raises:
        UserError: two stores of one name, of different vocabularies, or of preferences.
    """
    check_stores(stores)
    for store in stores:
        if store.pairs:
            what = f"store {store.name!r} holds preferences: its pairs are no text to be read on"
            raise UserError(what, store.name, "give stores of documents or conversations")
        numbers = np.array([list(groups).index((language, category)) for language, category in store.groups], np.int32)
        for i, group in enumerate(store.groups):
            found = _group_rows(store, i, numbers, length, max_tokens, split)
            if found is not None:
                yield ValidationSet(store=store.name, group=(group[0], group[1]), **found)


def _group_rows(
    store: StoreLike, group: int, numbers: np.ndarray, length: int, max_tokens: int | None, split: str
) -> dict[str, Any] | None:
    blocks = store.batches(split)
    if not blocks:
        return None
    documents = read_documents(blocks, np.arange(len(blocks)), numbers)
    chosen = np.flatnonzero((documents.group == numbers[group]) & (documents.length > 0))
    if not len(chosen):
        return None
    held = len(chosen)
    if max_tokens is not None:
        fits = int(np.searchsorted(np.cumsum(documents.length[chosen]), max_tokens, side="right"))
        chosen = chosen[: max(1, fits)]
    size = np.concatenate([b.bytes for b in blocks])[chosen]
    documents = documents.take(chosen)
    edges = np.concatenate([[0], np.cumsum(documents.length)])
    tokens = int(edges[-1])
    # The last token has no successor, so a row that would hold it alone as an input is not begun.
    rows = max(1, -(-(tokens - 1) // length))
    starts = np.arange(rows, dtype=np.int64) * length
    stops = np.minimum(starts + length + 1, tokens)
    pieces = cut(documents, edges, starts, stops, np.arange(rows))
    batch = empty_batch(rows, length)
    filler = padding(np.arange(rows), starts + length + 1 - stops)
    fill(batch, join([pieces, filler]), blocks, pad_id(store.vocabulary))
    return {
        "rows": batch,
        "documents": len(chosen),
        "tokens": tokens,
        "bytes": int(size.sum()),
        "left_out": held - len(chosen),
    }
