"""What the kernels of `flash_tpu` do with one pair of blocks, queries against keys. Grids and layouts stand there.

Scores are in powers of two: queries are scaled by log2(e) too, so that a softmax's exponentials need no multiplication.
In the backward pass they stand transposed, keys by queries: of its five matmuls then only one turns an operand.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from t_elaine.model.tpu import LANES

MASKED = -0.7 * float(np.finfo(np.float32).max)
LOG2E = math.log2(math.e)
GRAIN = 256

# (first key, keys, first query, on the diagonal, with documents apart): keys against the block's queries from the first
Part = Callable[[int, int, int, bool, bool], None]


def grain(block: int) -> int:
    """Steps in which a block on the diagonal follows it: nothing is computed in squares of this size above it."""
    return GRAIN if block % GRAIN == 0 else block


def by_query(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(block of queries, block of keys) of each pair at or below the diagonal, all pairs of a query together."""
    pairs = [(i, j) for i in range(count) for j in range(i + 1)]
    return tuple(np.asarray(side, np.int32) for side in zip(*pairs, strict=True))  # type: ignore[return-value]


def by_key(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The same pairs, all pairs of a key together."""
    pairs = [(i, j) for j in range(count) for i in range(j, count)]
    return tuple(np.asarray(side, np.int32) for side in zip(*pairs, strict=True))  # type: ignore[return-value]


def _matmul(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)


def _one(ref: Any) -> Any:
    """The [n,h] inside leading dimensions of one."""
    return ref.at[(0,) * (len(ref.shape) - 2)]


def _column(row: jax.Array) -> jax.Array:
    """[1,n] → [n,LANES], every lane the same."""
    return jnp.transpose(jnp.broadcast_to(row, (LANES, row.shape[1])))


def _across(x: jax.Array, width: int) -> jax.Array:
    """[n,LANES] with equal lanes → [n,width]."""
    return jnp.tile(x, (1, width // LANES)) if width >= LANES else x[:, :width]


def _masked(scores: jax.Array, same: jax.Array, starts: tuple[int, int] | None, queries: int) -> jax.Array:
    """Scores of keys in another document (not `same`) or, with the (queries', keys') starts given, later, masked.

    `queries`: the axis along which queries lie.
    """
    if starts:
        place = lambda axis, at: jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) + at  # noqa: E731
        same &= place(queries, starts[0]) >= place(1 - queries, starts[1])
    return jnp.where(same, scores, MASKED)


def _on_pairs(i: Any, j: Any, block: int, lows: Any, highs: Any, part: Part) -> None:
    """Call `part` for the parts of this pair; not at all where queries and keys have no document in common."""
    b = pl.program_id(0)
    low_i, high_i, low_j, high_j = lows[b, i], highs[b, i], lows[b, j], highs[b, j]
    below = j < i
    common = (low_j <= high_i) & (low_i <= high_j)
    one = (low_i == high_j) & (low_j == high_i) & (low_i == high_i)

    def on_diagonal() -> None:
        step = grain(block)
        for start in range(0, block, step):
            part(start, step, start, True, True)

    pl.when(jnp.logical_not(below))(on_diagonal)
    pl.when(below & one)(lambda: part(0, block, 0, False, False))
    pl.when(below & common & jnp.logical_not(one))(lambda: part(0, block, 0, False, True))


def forward(
    i_of: Any,
    j_of: Any,
    lows: Any,
    highs: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    i_segments: Any,
    j_segments: Any,
    out_ref: Any,
    norm_ref: Any,
    q_scaled: Any,
    top: Any,
    total: Any,
    sums: Any,
    segments: Any,
    *,
    scale: float,
) -> None:
    """One pair of the forward pass: scores, running maximum and total (lanes all equal), weighted sum of values.

    The scratch q_scaled [n,h], top, total, segments [n,LANES] and sums [n,h] lives through all pairs of a query.
    """
    t = pl.program_id(2)
    i, j = i_of[t], j_of[t]
    block = q_ref.shape[2]

    @pl.when(j == 0)
    def begin() -> None:
        q_scaled[...] = (q_ref[0, 0].astype(jnp.float32) * (scale * LOG2E)).astype(q_scaled.dtype)
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)
        segments[...] = _column(i_segments[0])

    def part(start: int, width: int, first: int, diagonal: bool, apart: bool) -> None:
        """Keys start:start+width against the queries from `first` on."""
        rows, columns = slice(first, block), slice(start, start + width)
        scores = _matmul(q_scaled[rows], k_ref[0, 0, columns], 1, 1)
        if apart:
            same = _across(segments[rows], width) == j_segments[0, :, columns]
            scores = _masked(scores, same, (first, start) if diagonal else None, 0)
        before = top[rows]
        now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
        weights = jnp.exp2(scores - _across(now, width))
        shrink = jnp.exp2(before - now)
        top[rows] = now
        total[rows] = shrink * total[rows] + jnp.sum(weights, axis=1, keepdims=True)
        more = _matmul(weights.astype(v_ref.dtype), v_ref[0, 0, columns], 1, 0)
        sums[rows] = _across(shrink, sums.shape[1]) * sums[rows] + more

    _on_pairs(i, j, block, lows, highs, part)

    @pl.when(j == i)
    def end() -> None:
        _one(out_ref)[...] = (sums[...] / _across(total[...], sums.shape[1])).astype(out_ref.dtype)
        norm_ref[0, 0] = jnp.transpose(top[...] + jnp.log2(total[...]))[:1]


def backward(
    i_of: Any,
    j_of: Any,
    lows: Any,
    highs: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    i_segments: Any,
    j_segments: Any,
    norm_ref: Any,
    dout_ref: Any,
    out_ref: Any,
    dq_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    dq: Any,
    dk: Any,
    dv: Any,
    deltas: Any,
    segments: Any,
    *,
    scale: float,
) -> None:
    """One pair of the backward pass: all three gradients, added up in float32 for the whole row.

    The scratch dq [T,h] lives through all pairs of a query head, dk and dv [T,h] through all query heads of a group;
    deltas [1,T], the rows' sums of dout * out, are made with the first block of keys.
    """
    g, t = pl.program_id(2), pl.program_id(3)
    i, j = i_of[t], j_of[t]
    block, dtype = q_ref.shape[2], q_ref.dtype
    at = lambda index, start=0, size=block: pl.ds(pl.multiple_of(index * block, LANES) + start, size)  # noqa: E731

    @pl.when(t == 0)
    def begin() -> None:
        dq[...] = jnp.zeros_like(dq)

    @pl.when((t == 0) & (g == 0))
    def begin_group() -> None:
        dk[...] = jnp.zeros_like(dk)
        dv[...] = jnp.zeros_like(dv)

    @pl.when(j == 0)
    def begin_query() -> None:
        product = _one(dout_ref)[...].astype(jnp.float32) * _one(out_ref)[...].astype(jnp.float32)
        delta = jnp.sum(product, axis=1, keepdims=True)
        deltas[:, at(i)] = jnp.transpose(jnp.broadcast_to(delta, (block, LANES)))[:1]

    @pl.when(j == i)
    def begin_key() -> None:
        segments[...] = _column(j_segments[0])

    def part(start: int, width: int, first: int, diagonal: bool, apart: bool) -> None:
        """Keys start:start+width against the queries from `first` on."""
        rows, columns = slice(first, block), slice(start, start + width)
        q, k, v, dout = q_ref[0, 0, rows], k_ref[0, 0, columns], v_ref[0, 0, columns], _one(dout_ref)[rows]
        q_scaled = (q.astype(jnp.float32) * (scale * LOG2E)).astype(dtype)
        scores = _matmul(k, q_scaled, 1, 1)
        if apart:
            same = _across(segments[columns], block - first) == i_segments[0, :, rows]
            scores = _masked(scores, same, (first, start) if diagonal else None, 1)
        weights = jnp.exp2(scores - norm_ref[0, 0, :, rows])
        dv[at(j, start, width)] += _matmul(weights.astype(dtype), dout, 1, 0)
        dweights = _matmul(v, dout, 1, 1)
        dscores = (weights * (dweights - deltas[:, at(i, first, block - first)])).astype(dtype)
        dk[at(j, start, width)] += _matmul(dscores, q_scaled, 1, 0)
        dq[at(i, first, block - first)] += _matmul(dscores, k, 0, 0)

    _on_pairs(i, j, block, lows, highs, part)

    @pl.when(t == pl.num_programs(3) - 1)
    def end() -> None:
        dq_ref[0, 0] = (dq[...] * scale).astype(dq_ref.dtype)

    @pl.when((t == pl.num_programs(3) - 1) & (g == pl.num_programs(2) - 1))
    def end_group() -> None:
        dk_ref[0, 0] = (dk[...] / LOG2E).astype(dk_ref.dtype)
        dv_ref[0, 0] = dv[...].astype(dv_ref.dtype)
