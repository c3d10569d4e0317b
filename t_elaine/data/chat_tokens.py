"""Parts of conversations → token ids and trained ranges.

Parts that are encoded apart have exact ranges. Neighbours that are encoded together, as a tokenizer's own template has
them, are told apart by the bytes of each token: one that holds the end of what is not learnt, too, is not learnt.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from t_elaine.data.chat_templates import Part

Ranges = list[tuple[int, int]]


class Encoder(Protocol):
    """What is needed of a vocabulary; `t_elaine.data.vocabulary.Vocabulary` is one."""

    @property
    def pieces(self) -> tuple[bytes, ...]: ...

    @property
    def encode_batch(self) -> Any: ...


def encode(
    conversations: Sequence[Sequence[Part]], vocabulary: Encoder, apart: bool
) -> Iterator[tuple[np.ndarray, Ranges]]:
    """(uint32 [tokens], trained [start, stop) ranges) of each conversation; all texts go to the tokenizer at once."""
    cut = [_runs(parts, apart) for parts in conversations]
    texts = ["".join(part.text for part in run) for runs in cut for run in runs if run[0].special < 0]
    encoded = iter(vocabulary.encode_batch(texts))
    for runs in cut:
        made, learnt = [], []
        for run in runs:
            if run[0].special >= 0:
                made.append(np.array([run[0].special], np.uint32))
                learnt.append(np.array([run[0].trained]))
            else:
                tokens, marks = _told(run, next(encoded), vocabulary)
                made.append(tokens)
                learnt.append(marks)
        yield np.concatenate(made), ranges(np.concatenate(learnt))


def ranges(marks: np.ndarray) -> Ranges:
    """bool [n] → [start, stop) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _runs(parts: Sequence[Part], apart: bool) -> list[list[Part]]:
    if apart:
        return [[part] for part in parts]
    runs: list[list[Part]] = []
    for part in parts:
        if runs and part.special < 0 and runs[-1][-1].special < 0:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _told(run: Sequence[Part], tokens: np.ndarray, vocabulary: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """A run's tokens, and bool [tokens], which of them are learnt."""
    if len({part.trained for part in run}) == 1:
        return tokens, np.full(len(tokens), run[0].trained)
    borders = np.cumsum([0, *(len(part.text.encode()) for part in run)])
    stops = np.cumsum([len(vocabulary.pieces[int(i)]) for i in tokens])
    if stops[-1] != borders[-1]:  # pieces that do not add up to the text (SentencePiece's first blank)
        encoded = vocabulary.encode_batch([part.text for part in run])
        marks = [np.full(len(piece), part.trained) for part, piece in zip(run, encoded, strict=True)]
        return np.concatenate(encoded), np.concatenate(marks)
    starts = np.concatenate([[0], stops[:-1]])
    first = np.searchsorted(borders, starts, side="right") - 1
    return tokens, np.array([part.trained for part in run])[first]
