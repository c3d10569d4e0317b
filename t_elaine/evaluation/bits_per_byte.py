"""Held-out bits-per-byte of token stores: how many bits a model needs for each byte of text it never saw.

    bits-per-byte = sum of -log2 p(token | what stands before it in its piece) / UTF-8 bytes of the original texts

Special tokens (BOS, EOS, chat marks) are in the context but not in the sum. A document longer than a row is cut as in
training: pieces of T+1 tokens that advance by T, so that each token but the first is a target once; a continued piece
gets no BOS and its positions start at 0 again. Where no BOS stands before a document, its first token cannot be
predicted: `unpredicted` counts such tokens. For a store of conversations only the trained tokens count, and the
denominator is the bytes of those tokens. Two vocabularies give comparable figures; two rules of cutting do not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import log
from typing import Any

import numpy as np

from t_elaine.data.store import DocBatch, Store
from t_elaine.errors import UserError
from t_elaine.evaluation.engines import Scorer, score
from t_elaine.evaluation.parts import NONE, Parts
from t_elaine.evaluation.progress import Done

# Documents that are packed together and kept together.
WINDOW_TOKENS = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Document:
    """One held-out document. `scored`: bool [n], which tokens count; None: all that are not special."""

    tokens: np.ndarray
    scored: np.ndarray | None
    group: tuple[str, str]
    bytes: int
    text_hash: int


@dataclass(frozen=True, kw_only=True)
class Held:
    """What is measured on a store, a row a document.

    Attributes:
        store: the store's name.
        groups: (language, category) of each document.
        nats: float64 [docs], summed negative log-likelihood.
        tokens: int64 [docs], tokens in that sum.
        bytes: int64 [docs].
        unpredicted: tokens of text without anything before them.
    """

    store: str
    groups: list[tuple[str, str]]
    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    unpredicted: int


def documents(store: Store, split: str, limit: int = 0) -> list[Document]:
    """The held-out documents of a store.

    Args:
        store: opened.
        split: "validation" or "train".
        limit: only so many: those with the smallest text hashes, a sample that does not depend on file order. 0: all.

    Raises:
        UserError: the store holds no document in that split.
    """
    if store.pairs:
        mend = "give stores of documents or conversations; what a run learned of pairs stands in its metrics.jsonl"
        raise UserError("the store holds preferences: its pairs are no text to be read on", str(store.folder), mend)
    found = [document for batch in store.batches(split) for document in _documents(batch, store.groups)]
    if not found:
        mend = "prepare it with a larger validation_share"
        if split != "validation":
            mend = "give a smaller validation_share, or evaluate.split = 'validation'"
        count = sum(batch.docs for name in ("train", "validation") for batch in store.batches(name))
        mend = f"the store has {count} documents: {mend}"
        raise UserError(f"the store holds no document in its {split} split", str(store.folder), mend)
    if 0 < limit < len(found):
        chosen = sorted(range(len(found)), key=lambda i: (found[i].text_hash, i))[:limit]
        found = [found[i] for i in sorted(chosen)]
    return found


def _documents(batch: DocBatch, groups: Sequence[tuple[str, str]]) -> Iterator[Document]:
    for i in range(batch.docs):
        tokens = batch.tokens[batch.offsets[i] : batch.offsets[i + 1]]
        scored = None
        if batch.trained is not None:
            offsets, starts, stops = batch.trained
            scored = np.zeros(len(tokens), bool)
            for span in range(offsets[i], offsets[i + 1]):
                scored[starts[span] : stops[span]] = True
        group = groups[batch.group[i]]
        yield Document(
            tokens=tokens, scored=scored, group=group, bytes=int(batch.bytes[i]), text_hash=int(batch.text_hash[i])
        )


def cut(tokens: np.ndarray, length: int) -> list[np.ndarray]:
    """Pieces of at most length+1 tokens that overlap by one: every token but the first is a target exactly once."""
    return [tokens[i : i + length + 1].astype(np.int32) for i in range(0, max(1, len(tokens) - 1), length)]


def measure(
    engine: Scorer,
    store_name: str,
    held: Sequence[Document],
    special: np.ndarray,
    byte_lengths: np.ndarray,
    done: Done = lambda tokens: None,
    parts: Parts = NONE,
) -> Held:
    """Score documents.

    Args:
        engine: the model.
        store_name: for the result.
        held: what to score.
        special: bool [size], which ids are special.
        byte_lengths: int32 [size], bytes of each id; used for documents of which only spans count.
        done: told the targets of each batch.
        parts: what an earlier start found, a window of documents each.
    """
    found: dict[str, list[Any]] = {"nats": [], "tokens": [], "bytes": [], "unpredicted": []}
    for first, window in _windows(held):
        targets = sum(len(piece) - 1 for document in window for piece in cut(document.tokens, engine.length))
        part = f"{store_name}, documents from {first}"
        make = partial(_window, engine, window, special, byte_lengths, done, part)
        for name, values in parts.take(part, make, targets, done).items():
            found[name] += values
    return Held(
        store=store_name,
        groups=[document.group for document in held],
        nats=np.array(found["nats"], np.float64),
        tokens=np.array(found["tokens"], np.int64),
        bytes=np.array(found["bytes"], np.int64),
        unpredicted=sum(found["unpredicted"]),
    )


def _window(
    engine: Scorer, window: Sequence[Document], special: np.ndarray, byte_lengths: np.ndarray, done: Done, part: str
) -> dict[str, list[Any]]:
    """Nats, tokens, bytes and unpredicted tokens of each document; `part`: what errors call the window."""
    found: dict[str, list[Any]] = {"nats": [], "tokens": [], "bytes": [], "unpredicted": []}
    pieces = [cut(document.tokens, engine.length) for document in window]
    flat = [(i, j, piece) for i, of_one in enumerate(pieces) for j, piece in enumerate(of_one)]
    names = [f"{part}: its document {i}, piece {j}" for i, j, _ in flat]
    results = score(engine, [piece for _, _, piece in flat], done, names)
    for document, of_one in zip(window, pieces, strict=True):
        nll = np.concatenate([next(results) for _ in of_one]).astype(np.float64)
        counted = ~special[document.tokens]
        if document.scored is not None:
            counted &= document.scored
        whole = document.scored is None
        found["unpredicted"].append(int(counted[:1].sum()))
        found["nats"].append(float(nll[counted[1:]].sum()))
        found["tokens"].append(int(counted[1:].sum()))
        found["bytes"].append(document.bytes if whole else int(byte_lengths[document.tokens[1:][counted[1:]]].sum()))
    return found


def _windows(held: Sequence[Document]) -> Iterator[tuple[int, list[Document]]]:
    first, window, tokens = 0, list[Document](), 0
    for i, document in enumerate(held):
        if window and tokens + len(document.tokens) > WINDOW_TOKENS:
            yield first, window
            first, window, tokens = i, [], 0
        window.append(document)
        tokens += len(document.tokens)
    if window:
        yield first, window


def bits(nats: float, size: int) -> float:
    """Bits per byte of summed nats."""
    return nats / log(2) / size
