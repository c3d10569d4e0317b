"""Which source gives row k of a mixture, and which of its rows: exact arithmetic, no state, O(log S) in the sources.

The weights form a binary tree. At a node that has delivered m rows, its left child has delivered round(p·m), p being
the left child's share as an integer of 2^-32: so the m-th row goes left exactly if that number grows at m. Going down
the tree gives the source of row k, and the m at the leaf is the number of rows that the source has given before.

A leaf's count differs from k·w by at most ½·(1 + w·Σ 1/W) rows, W being the weights of the inner nodes above it, the
root left out. The tree is chosen among those over the sorted weights to keep the largest of these bounds small: at most
1 row for equal weights, seldom above 1.2, printed by `bound`. (No stateless scheme with a bound below 1 is known for
three or more sources; a table of one period would need the weights rounded to its length.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from t_elaine.errors import UserError

_BITS = 32
_HALF = np.uint64(1 << (_BITS - 1))
_LOW = np.uint64((1 << _BITS) - 1)
# Cuts tried for an interval of the sorted weights: all of them up to 16 sources, evenly spaced ones beyond.
_CUTS = 16


@dataclass(frozen=True)
class Node:
    """Inner node: `left`'s share of the rows in units of 2^-32. Children are nodes or source numbers."""

    share: int
    left: "Node | int"
    right: "Node | int"


@dataclass(frozen=True)
class Shares:
    """Shares of `sources` sources; `bound`: how many rows a source's count may differ from its weight's, at any row."""

    sources: int
    root: Node | int
    bound: float

    def assign(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers int64 [n] ≥ 0 → (source int64 [n], how many rows that source gave before int64 [n])."""
        source, number = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        _assign(self.root, np.arange(len(rows)), rows.astype(np.uint64), source, number)
        return source, number

    def counts(self, row: int) -> np.ndarray:
        """Rows that each source gives before row `row`: int64 [sources]."""
        counts = np.zeros(self.sources, np.int64)
        _count(self.root, np.array([row], np.uint64), counts)
        return counts


def make_shares(weights: Sequence[float], names: Sequence[str]) -> Shares:
    """Shares by weights ≥ 0, of which at least one is above 0. A weight of 0 takes no part.

    Raises:
        UserError: a weight is too small beside the others to be a 2^32nd part.
    """
    exact = [Fraction(w) for w in weights]
    order = sorted((i for i, w in enumerate(exact) if w), key=lambda i: (-exact[i], i))
    weight = np.array([float(exact[i] / sum(exact)) for i in order])
    cut, bound = _choose_tree(weight)

    def build(low: int, high: int) -> Node | int:
        if high - low == 1:
            return order[low]
        middle = cut[low, high]
        left, total = sum(exact[i] for i in order[low:middle]), sum(exact[i] for i in order[low:high])
        share = round(left / total * (1 << _BITS))
        if not 0 < share < 1 << _BITS:
            small = names[order[high - 1]]
            what = f"the weight of {small!r} is too small beside the others: less than one row in 4 billion"
            raise UserError(what, "Mixture.weights", "give it weight 0, or a larger one")
        return Node(share, build(low, middle), build(middle, high))

    return Shares(len(weights), build(0, len(order)), bound)


def _choose_tree(weight: np.ndarray) -> tuple[dict[tuple[int, int], int], float]:
    """Where to cut each interval of the descending weights, and the error bound in rows of the whole tree."""
    n = len(weight)
    upto = np.concatenate([[0.0], np.cumsum(weight)])
    # Σ 1/W over the inner nodes of an interval's tree (its own root left out) above each of its leaves.
    above = {(i, i + 1): np.zeros(1) for i in range(n)}
    cut: dict[tuple[int, int], int] = {}
    for size in range(2, n + 1):
        for low in range(n - size + 1):
            high, best = low + size, np.inf
            for middle in range(low + 1, high, max(1, size // _CUTS)):
                sums = np.concatenate([_with_root(above, upto, low, middle), _with_root(above, upto, middle, high)])
                worst = float((sums * weight[low:high]).max())
                if worst < best:
                    best, above[low, high], cut[low, high] = worst, sums, middle
    return cut, float(0.5 * (1 + (above[0, n] * weight).max())) if n > 1 else 0.0


def _with_root(above: dict[tuple[int, int], np.ndarray], upto: np.ndarray, low: int, high: int) -> np.ndarray:
    return above[low, high] + (1 / (upto[high] - upto[low]) if high - low > 1 else 0.0)


def _left_count(rows: np.ndarray, share: int) -> np.ndarray:
    """floor(rows·share/2^32 + ½) in uint64 without overflow: the high half of `rows` counts whole shares."""
    p = np.uint64(share)
    return (rows >> np.uint64(_BITS)) * p + (((rows & _LOW) * p + _HALF) >> np.uint64(_BITS))


def _assign(node: Node | int, at: np.ndarray, rows: np.ndarray, source: np.ndarray, number: np.ndarray) -> None:
    if not len(at):
        return
    if isinstance(node, int):
        source[at], number[at] = node, rows.astype(np.int64)
        return
    before = _left_count(rows, node.share)
    goes_left = _left_count(rows + np.uint64(1), node.share) > before
    _assign(node.left, at[goes_left], before[goes_left], source, number)
    _assign(node.right, at[~goes_left], (rows - before)[~goes_left], source, number)


def _count(node: Node | int, rows: np.ndarray, counts: np.ndarray) -> None:
    if isinstance(node, int):
        counts[node] = int(rows[0])
        return
    left = _left_count(rows, node.share)
    _count(node.left, left, counts)
    _count(node.right, rows - left, counts)
