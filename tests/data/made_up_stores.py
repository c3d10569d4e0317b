"""Made-up stores for the tests of rows: documents whose tokens tell which document and position they come from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Token = document · PER + position, so that any token names its place.
PER = 1000


@dataclass(frozen=True)
class FakeBlock:
    tokens: np.ndarray
    offsets: np.ndarray
    group: np.ndarray
    bytes: np.ndarray
    trained: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class FakeStore:
    name: str
    blocks: Sequence[FakeBlock]
    groups: Sequence[tuple[str, str]] = (("en", "textbook"), ("ja", "web text"))
    split: str = "train"
    pairs: bool = False
    vocabulary: dict[str, Any] = field(default_factory=lambda: {"sha256": "v" * 64, "pad": 7, "eos": 2, "size": 10**6})

    def batches(self, split: str = "train") -> Sequence[FakeBlock]:
        return self.blocks if split == self.split else []


def make_store(name: str, lengths: Sequence[Sequence[int]], first_document: int = 1, **more: Any) -> FakeStore:
    """A store with a block for each list of document lengths. Document d's tokens are d·1000, d·1000+1, …"""
    blocks, number = [], first_document
    for block in lengths:
        documents = [np.arange(n, dtype=np.uint32) + (number + i) * PER for i, n in enumerate(block)]
        number += len(block)
        tokens = np.concatenate([np.zeros(0, np.uint32), *documents])
        offsets = np.concatenate([[0], np.cumsum(block)]).astype(np.int64)
        groups = (np.arange(number - len(block), number) % 2).astype(np.int32)
        blocks.append(FakeBlock(tokens, offsets, groups, 3 * np.asarray(block, np.int64)))
    return FakeStore(name, blocks, **more)
