"""Causal attention within documents: each query sees itself and what stands before it in its own segment.

No rotary positions and no projections: queries and keys arrive turned. Grouped heads are never repeated in memory.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t_elaine.model.config import ComputeConfig
from t_elaine.model.placement import platform

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def visible(query_segments_BT: jax.Array, key_segments_BS: jax.Array, offset: int = 0) -> jax.Array:
    """Which keys a query may see: bool [B,T,S]. `offset` is the place of the first query among the keys."""
    T, S = query_segments_BT.shape[1], key_segments_BS.shape[1]
    causal = (jnp.arange(T)[:, None] + offset) >= jnp.arange(S)[None, :]
    same = query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
    return same & causal[None, :, :]


def reference(q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Softmax attention with all scores at once: the definition that every kernel is compared with.

    Scores and softmax are float32; the result has q's dtype and shape. Padding (segment 0) sees padding: its results
    are finite and meaningless.
    """
    B, T, H, h = q_BTHh.shape
    K = k_BTKh.shape[2]
    q = (q_BTHh * h**-0.5).reshape(B, T, K, H // K, h)
    scores = jnp.einsum("BTKGh,BSKh->BKGTS", q, k_BTKh, preferred_element_type=jnp.float32)
    scores = jnp.where(visible(segments_BT, segments_BT)[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BTKh.dtype)
    out = jnp.einsum("BKGTS,BSKh->BTKGh", weights, v_BTKh, preferred_element_type=jnp.float32)
    return checkpoint_name(out.reshape(B, T, H, h).astype(q_BTHh.dtype), "attention")


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def blocked(q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, segments_BT: jax.Array, block: int) -> jax.Array:
    """The same, one block of queries at a time against the keys before its end (Dao et al. 2022, arXiv 2205.14135).

    Only one block's scores exist at once; the backward pass makes them again from the saved log-normaliser. Blocks are
    unrolled: choose `block` so that a row has no more than a few dozen.
    """
    return _blocked_forward(q_BTHh, k_BTKh, v_BTKh, segments_BT, block)[0]


def _blocks(T: int, block: int) -> Iterator[tuple[int, int]]:
    for start in range(0, T, block):
        yield start, min(start + block, T)


def _by_group(x_BTHh: jax.Array, K: int) -> jax.Array:
    """[B,T,H,h] → [B,K,T,G,h]: all queries of one key head in one contiguous piece, so that a block is one matmul."""
    B, T, H, h = x_BTHh.shape
    return x_BTHh.reshape(B, T, K, H // K, h).transpose(0, 2, 1, 3, 4)


def _scores(q_BKtGh: jax.Array, k_BKSh: jax.Array, segments_BT: jax.Array, start: int) -> jax.Array:
    t, S = q_BKtGh.shape[2], k_BKSh.shape[2]
    scores = jnp.einsum("BKtGh,BKSh->BKtGS", q_BKtGh, k_BKSh, preferred_element_type=jnp.float32)
    mask = visible(segments_BT[:, start : start + t], segments_BT[:, :S], start)
    return jnp.where(mask[:, None, :, None, :], scores, MASKED)


def _blocked_forward(
    q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, segments_BT: jax.Array, block: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    B, T, H, h = q_BTHh.shape
    K = k_BTKh.shape[2]
    q = _by_group(q_BTHh * h**-0.5, K)
    k, v = k_BTKh.transpose(0, 2, 1, 3), v_BTKh.transpose(0, 2, 1, 3)
    outs, norms = [], []
    for start, stop in _blocks(T, block):
        scores = _scores(q[:, :, start:stop], k[:, :, :stop], segments_BT, start)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = jnp.einsum(
            "BKtGS,BKSh->BKtGh", weights.astype(v.dtype), v[:, :, :stop], preferred_element_type=jnp.float32
        )
        outs.append((out / total).astype(q_BTHh.dtype))
        norms.append(top + jnp.log(total))
    out = jnp.concatenate(outs, axis=2).transpose(0, 2, 1, 3, 4).reshape(B, T, H, h)
    out = checkpoint_name(out, "attention")
    norm = checkpoint_name(jnp.concatenate(norms, axis=2), "attention")
    return out, (q_BTHh, k_BTKh, v_BTKh, segments_BT, out, norm)


def _blocked_backward(
    block: int, residuals: tuple[jax.Array, ...], dout_BTHh: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BTHh, k_BTKh, v_BTKh, segments_BT, out_BTHh, norm = residuals
    B, T, H, h = q_BTHh.shape
    K, dtype = k_BTKh.shape[2], q_BTHh.dtype
    q, dout = _by_group(q_BTHh * h**-0.5, K), _by_group(dout_BTHh, K)
    k, v = k_BTKh.transpose(0, 2, 1, 3), v_BTKh.transpose(0, 2, 1, 3)
    delta = jnp.sum(dout_BTHh.astype(jnp.float32) * out_BTHh.astype(jnp.float32), axis=-1, keepdims=True)
    delta = _by_group(delta, K)
    dqs = []
    dk, dv = (jnp.zeros(k.shape, jnp.float32) for _ in range(2))
    for start, stop in _blocks(T, block):
        q_t, dout_t, k_S, v_S = q[:, :, start:stop], dout[:, :, start:stop], k[:, :, :stop], v[:, :, :stop]
        weights = jnp.exp(_scores(q_t, k_S, segments_BT, start) - norm[:, :, start:stop])
        dweights = jnp.einsum("BKtGh,BKSh->BKtGS", dout_t, v_S, preferred_element_type=jnp.float32)
        dscores = (weights * (dweights - delta[:, :, start:stop])).astype(dtype)
        weights = weights.astype(dtype)
        dqs.append(jnp.einsum("BKtGS,BKSh->BKtGh", dscores, k_S, preferred_element_type=jnp.float32))
        dk_S = jnp.einsum("BKtGS,BKtGh->BKSh", dscores, q_t, preferred_element_type=jnp.float32)
        dv_S = jnp.einsum("BKtGS,BKtGh->BKSh", weights, dout_t, preferred_element_type=jnp.float32)
        dk, dv = dk.at[:, :, :stop].add(dk_S), dv.at[:, :, :stop].add(dv_S)
    dq = (jnp.concatenate(dqs, axis=2) * h**-0.5).transpose(0, 2, 1, 3, 4).reshape(B, T, H, h)
    return dq.astype(dtype), dk.transpose(0, 2, 1, 3).astype(dtype), dv.transpose(0, 2, 1, 3).astype(dtype), None


blocked.defvjp(_blocked_forward, _blocked_backward)


def attend(
    q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, segments_BT: jax.Array, compute: ComputeConfig
) -> jax.Array:
    """Attention [B,T,H,h] by the kernel that `compute.attention` names."""
    if compute.attention == "blocked":
        return blocked(q_BTHh, k_BTKh, v_BTKh, segments_BT, compute.attention_block)
    if compute.attention == "splash":
        from t_elaine.model.splash import splash  # Pallas takes half a second to import

        return splash(
            q_BTHh,
            k_BTKh,
            v_BTKh,
            segments_BT,
            compute.attention_block,
            compute.attention_fused_backward,
            interpret=platform() != "tpu",
        )
    return reference(q_BTHh, k_BTKh, v_BTKh, segments_BT)
