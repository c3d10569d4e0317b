"""The seeded order of documents: permutations that are functions of integers, and windows of blocks to shuffle within.

Nothing here depends on a library's random generator, whose stream may change from version to version. A permutation of
n items is the argsort of n hashed counters; the hash (SplitMix64's finaliser, Steele et al. 2014) is a bijection, so no
two keys are equal and every sorting algorithm gives the same order.

Blocks (a store's record batches) are dealt once into windows of about `window_tokens` tokens, in an order fixed by the
source's seed. An epoch visits the windows in an order of its own and shuffles all documents of a window together. So
the order needs no more memory than one window's documents, a host reads one window's blocks at a time (an object store
sees large sequential reads, known ahead), and neighbours in a row still come from blocks all over the store.

This file knows nothing of rows, mixtures or tokens' values.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
# Documents of about 512 tokens fill a window's tokens and its documents together; shorter ones are bounded by number.
WINDOW_TOKENS = 1 << 27
TOKENS_PER_DOCUMENT = 512


def source_seed(seed: int, name: str) -> int:
    """64-bit seed of a source: a function of the run's seed and the source's name only, not of the other sources."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8], "little")


def fold(seed: int, *values: int) -> int:
    """64-bit seed derived from `seed` and a path of integers, such as (epoch, window)."""
    for value in values:
        seed = _finalise(_finalise(seed + _GOLDEN) + value * _GOLDEN)
    return seed


def _finalise(z: int) -> int:
    z &= _MASK
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)


def keys(seed: int, n: int) -> np.ndarray:
    """n distinct pseudo-random uint64."""
    z = np.arange(n, dtype=np.uint64)
    z *= np.uint64(_GOLDEN)
    z += np.uint64(seed)
    z ^= z >> np.uint64(30)
    z *= np.uint64(_MIX_1)
    z ^= z >> np.uint64(27)
    z *= np.uint64(_MIX_2)
    z ^= z >> np.uint64(31)
    return z


def permutation(seed: int, n: int) -> np.ndarray:
    """A permutation of range(n), int64."""
    return np.argsort(keys(seed, n))


def windows(tokens: Sequence[int], documents: Sequence[int], seed: int, window_tokens: int) -> list[np.ndarray]:
    """Deal blocks into windows: block numbers (int64 arrays), each block that holds a token in exactly one window.

    Args:
        tokens, documents: per block.
        window_tokens: a window is closed at this many tokens, or at a document for each 512 of them.
    """
    limit = max(1, window_tokens // TOKENS_PER_DOCUMENT)
    found: list[np.ndarray] = []
    open_window: list[int] = []
    sum_tokens = sum_documents = 0
    for block in permutation(seed, len(tokens)).tolist():
        if not tokens[block]:
            continue
        open_window.append(block)
        sum_tokens += tokens[block]
        sum_documents += documents[block]
        if sum_tokens >= window_tokens or sum_documents >= limit:
            found.append(np.array(open_window))
            open_window, sum_tokens, sum_documents = [], 0, 0
    if open_window:
        found.append(np.array(open_window))
    return found


class Epochs:
    """An endless sequence of epochs; each visits all windows once, in an order of its own.

    Positions count whatever `sizes` counts (tokens or rows) from the start of epoch 0.
    """

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        """sizes: int per window; seed: 64-bit."""
        self.sizes, self.total = np.asarray(sizes, np.int64), int(np.sum(sizes))
        self._seed = seed
        self.edges = lru_cache(maxsize=8)(self._edges)

    def _edges(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(windows in the epoch's order int64 [W], positions at which they start int64 [W+1])."""
        order = permutation(fold(self._seed, epoch), len(self.sizes))
        edges = np.zeros(len(order) + 1, np.int64)
        np.cumsum(self.sizes[order], out=edges[1:])
        return order, edges + epoch * self.total

    def locate(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, int, int]]:
        """Group positions (int64 [n]) by window: (indices into `positions`, epoch, the window's place in the epoch)."""
        epochs = positions // self.total
        for epoch in np.unique(epochs).tolist():
            inside = np.flatnonzero(epochs == epoch)
            # side="right": of windows that start together the last one, which is the one that is not empty.
            places = np.searchsorted(self.edges(epoch)[1], positions[inside], side="right") - 1
            for place in np.unique(places).tolist():
                yield inside[places == place], epoch, place
