"""Causal attention within documents: each query sees itself and what stands before it in its own segment.

No rotary positions and no projections: queries and keys arrive turned. Grouped heads are never repeated in memory.
"""

import jax
import jax.numpy as jnp

from t_elaine.model.config import ComputeConfig

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
    return out.reshape(B, T, H, h).astype(q_BTHh.dtype)


def attend(
    q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, segments_BT: jax.Array, compute: ComputeConfig
) -> jax.Array:
    """Attention [B,T,H,h] by the kernel that `compute.attention` names."""
    return reference(q_BTHh, k_BTKh, v_BTKh, segments_BT)
