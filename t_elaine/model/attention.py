"""Causal attention within documents: each query sees itself and what stands before it in its own segment.

No rotary positions and no projections: queries and keys arrive turned. Grouped heads are never repeated in memory.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t_elaine.model import context
from t_elaine.model.config import ComputeConfig
from t_elaine.model.placement import platform

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def visible(query_segments_BT: jax.Array, key_segments_BS: jax.Array, places_T: jax.Array) -> jax.Array:
    """Which keys a query may see: bool [B,T,S]. `places_T` says where the queries stand among the keys."""
    causal = places_T[:, None] >= jnp.arange(key_segments_BS.shape[1])[None, :]
    same = query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
    return same & causal[None, :, :]


def reference(q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Softmax attention with all scores at once: the definition that every kernel is compared with.

    Scores and softmax are float32; the result has q's dtype and shape. Padding (segment 0) sees padding: its results
    are finite and meaningless.
    """
    return at_once(q_BTHh, k_BTKh, v_BTKh, segments_BT, segments_BT, jnp.arange(q_BTHh.shape[1]))


def at_once(
    q_BTHh: jax.Array,
    k_BSKh: jax.Array,
    v_BSKh: jax.Array,
    query_segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    places_T: jax.Array,
) -> jax.Array:
    """`reference` for queries that are a part of the row: `places_T` says where they stand among the S keys."""
    B, T, H, h = q_BTHh.shape
    K = k_BSKh.shape[2]
    q = (q_BTHh * h**-0.5).reshape(B, T, K, H // K, h)
    scores = jnp.einsum("BTKGh,BSKh->BKGTS", q, k_BSKh, preferred_element_type=jnp.float32)
    scores = jnp.where(visible(query_segments_BT, key_segments_BS, places_T)[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BSKh.dtype)
    out = jnp.einsum("BKGTS,BSKh->BTKGh", weights, v_BSKh, preferred_element_type=jnp.float32)
    return checkpoint_name(out.reshape(B, T, H, h).astype(q_BTHh.dtype), "attention")


def blocked(q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, segments_BT: jax.Array, block: int) -> jax.Array:
    """The same, one block of queries at a time against the keys before its end (Dao et al. 2022, arXiv 2205.14135).

    Only one block's scores exist at once; the backward pass makes them again from the saved log-normaliser. Blocks are
    unrolled: choose `block` so that a row has no more than a few dozen.
    """
    return in_blocks(q_BTHh, k_BTKh, v_BTKh, segments_BT, segments_BT, jnp.arange(q_BTHh.shape[1]), block)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def in_blocks(
    q_BTHh: jax.Array,
    k_BSKh: jax.Array,
    v_BSKh: jax.Array,
    query_segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    places_T: jax.Array,
    block: int,
) -> jax.Array:
    """`blocked` for queries that are a part of the row, two chunks of it as `model.context` deals them."""
    return _blocked_forward(q_BTHh, k_BSKh, v_BSKh, query_segments_BT, key_segments_BS, places_T, block)[0]


def _blocks(T: int, S: int, block: int) -> Iterator[tuple[int, int, int]]:
    """(first query, last, keys that may be seen) of each block.

    A dealt piece's first chunk comes from the first half of the row, its second from the other: which chunk it is, only
    the running device knows.
    """
    for start in range(0, T, block):
        stop = min(start + block, T)
        yield start, stop, stop if T == S else S // 2 if stop <= T // 2 else S


def _by_group(x_BTHh: jax.Array, K: int) -> jax.Array:
    """[B,T,H,h] → [B,K,T,G,h]: all queries of one key head in one contiguous piece, so that a block is one matmul."""
    B, T, H, h = x_BTHh.shape
    return x_BTHh.reshape(B, T, K, H // K, h).transpose(0, 2, 1, 3, 4)


def _scores(q_BKtGh: jax.Array, k_BKSh: jax.Array, segments: tuple[jax.Array, jax.Array], places: Any) -> jax.Array:
    scores = jnp.einsum("BKtGh,BKSh->BKtGS", q_BKtGh, k_BKSh, preferred_element_type=jnp.float32)
    return jnp.where(visible(*segments, places)[:, None, :, None, :], scores, MASKED)


def _blocked_forward(
    q_BTHh: jax.Array,
    k_BSKh: jax.Array,
    v_BSKh: jax.Array,
    query_segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    places_T: jax.Array,
    block: int,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    B, T, H, h = q_BTHh.shape
    S, K = k_BSKh.shape[1:3]
    q = _by_group(q_BTHh * h**-0.5, K)
    k, v = k_BSKh.transpose(0, 2, 1, 3), v_BSKh.transpose(0, 2, 1, 3)
    outs, norms = [], []
    for start, stop, seen in _blocks(T, S, block):
        segments = (query_segments_BT[:, start:stop], key_segments_BS[:, :seen])
        scores = _scores(q[:, :, start:stop], k[:, :, :seen], segments, places_T[start:stop])
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = jnp.einsum(
            "BKtGS,BKSh->BKtGh", weights.astype(v.dtype), v[:, :, :seen], preferred_element_type=jnp.float32
        )
        outs.append((out / total).astype(q_BTHh.dtype))
        norms.append(top + jnp.log(total))
    out = jnp.concatenate(outs, axis=2).transpose(0, 2, 1, 3, 4).reshape(B, T, H, h)
    out = checkpoint_name(out, "attention")
    norm = checkpoint_name(jnp.concatenate(norms, axis=2), "attention")
    return out, (q_BTHh, k_BSKh, v_BSKh, query_segments_BT, key_segments_BS, places_T, out, norm)


def _blocked_backward(
    block: int, residuals: tuple[jax.Array, ...], dout_BTHh: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, None, None]:
    q_BTHh, k_BSKh, v_BSKh, query_segments_BT, key_segments_BS, places_T, out_BTHh, norm = residuals
    B, T, H, h = q_BTHh.shape
    S, K = k_BSKh.shape[1:3]
    dtype = q_BTHh.dtype
    q, dout = _by_group(q_BTHh * h**-0.5, K), _by_group(dout_BTHh, K)
    k, v = k_BSKh.transpose(0, 2, 1, 3), v_BSKh.transpose(0, 2, 1, 3)
    delta = jnp.sum(dout_BTHh.astype(jnp.float32) * out_BTHh.astype(jnp.float32), axis=-1, keepdims=True)
    delta = _by_group(delta, K)
    dqs = []
    dk, dv = (jnp.zeros(k.shape, jnp.float32) for _ in range(2))
    for start, stop, seen in _blocks(T, S, block):
        q_t, dout_t, k_S, v_S = q[:, :, start:stop], dout[:, :, start:stop], k[:, :, :seen], v[:, :, :seen]
        segments = (query_segments_BT[:, start:stop], key_segments_BS[:, :seen])
        weights = jnp.exp(_scores(q_t, k_S, segments, places_T[start:stop]) - norm[:, :, start:stop])
        dweights = jnp.einsum("BKtGh,BKSh->BKtGS", dout_t, v_S, preferred_element_type=jnp.float32)
        dscores = (weights * (dweights - delta[:, :, start:stop])).astype(dtype)
        weights = weights.astype(dtype)
        dqs.append(jnp.einsum("BKtGS,BKSh->BKtGh", dscores, k_S, preferred_element_type=jnp.float32))
        dk_S = jnp.einsum("BKtGS,BKtGh->BKSh", dscores, q_t, preferred_element_type=jnp.float32)
        dv_S = jnp.einsum("BKtGS,BKtGh->BKSh", weights, dout_t, preferred_element_type=jnp.float32)
        dk, dv = dk.at[:, :, :seen].add(dk_S), dv.at[:, :, :seen].add(dv_S)
    dq = (jnp.concatenate(dqs, axis=2) * h**-0.5).transpose(0, 2, 1, 3, 4).reshape(B, T, H, h)
    dk, dv = (x.transpose(0, 2, 1, 3).astype(dtype) for x in (dk, dv))
    return dq.astype(dtype), dk, dv, None, None, None


in_blocks.defvjp(_blocked_forward, _blocked_backward)


def attend(
    q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, segments_BT: jax.Array, compute: ComputeConfig
) -> jax.Array:
    """Attention [B,T,H,h] by the kernel that `compute.attention` names; names q, k, v and its result for `remat`.

    Where devices hold pieces of rows, rows come dealt (`model.context`). Which kernel can do what: `model.capability`.
    """
    cut, name, block = context.pieces() > 1, compute.attention, compute.attention_block
    if name != "flash_tpu":  # which names its own
        q_BTHh, k_BTKh, v_BTKh = (checkpoint_name(x, n) for x, n in zip((q_BTHh, k_BTKh, v_BTKh), "qkv", strict=True))
    qkv = (q_BTHh, k_BTKh, v_BTKh, segments_BT)
    if name in ("splash", "flash_tpu", "flash_gpu"):
        return _by_pallas(*qkv, compute)
    if cut:
        kernel = (lambda *parts: in_blocks(*parts[:-1], block)) if name == "blocked" else (lambda *p: at_once(*p[:-1]))
        return context.over_pieces(kernel, *qkv)
    return blocked(*qkv, block) if name == "blocked" else reference(*qkv)


def _by_pallas(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, compute: ComputeConfig) -> jax.Array:
    """Pallas's kernels, interpreted on other hardware than theirs; imported here, since that takes half a second."""
    name, block = compute.attention, compute.attention_block
    interpret = platform() != ("gpu" if name == "flash_gpu" else "tpu")
    if name == "flash_tpu":
        from t_elaine.model.flash_tpu import flash

        return flash(q, k, v, segments, block, interpret=interpret)
    if name == "flash_gpu":
        from t_elaine.model.flash_gpu import flash as flash_gpu

        return flash_gpu(q, k, v, segments, block, interpret=interpret)
    from t_elaine.model.splash import splash

    return splash(q, k, v, segments, block, compute.attention_fused_backward, interpret)
