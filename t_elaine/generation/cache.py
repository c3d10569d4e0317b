"""Keys and values kept for later tokens, and attention over them.

Each row has a cache of its own, [B,K,S,h] a layer, used as a ring: all rows write into the same slot at the same time,
so that a step is one update in place, and a row's tokens are those in the slots last written. What stands at the
beginning of every prompt is kept once, [K,P,h] a layer, and read by all rows: memory does not grow with the batch.

Positions were turned into keys before they came here, so the order of slots means nothing. Knows no model.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t_elaine.model.attention import MASKED
from t_elaine.model.placement import constrain, platform

QUERIES = 128  # of a prompt that are computed at once at most: bounds the memory of scores
# Bytes of scores at once. On a CPU they are to stay in its caches: with 8 prompts of 256 tokens behind 1,344 shared
# ones SmolLM2's attention takes half the time that it takes with 50 MB.
SCORES, SCORES_CPU = 1 << 28, 1 << 23
Layer = tuple[jax.Array, jax.Array]


class Shared(NamedTuple):
    """The beginning that all prompts share.

    Attributes:
        layers: keys and values [K,P,h] of each layer.
        pad: how many of the P, the first ones, hold nothing.
        length: tokens in it, so the position of what follows.
    """

    layers: tuple[Layer, ...]
    pad: Any
    length: Any


def empty(rows: int, kv_heads: int, slots: int, head_dim: int, dtype: str) -> Layer:
    """A layer's cache with nothing in it."""
    made = jnp.zeros((rows, kv_heads, slots, head_dim), dtype)
    return placed(made), placed(made)


def placed(x_BKSh: jax.Array) -> jax.Array:
    """Rows along the batch's axes, heads along the heads'."""
    return constrain(x_BKSh, "batch", "kv_heads", None, "head_dim")


def write(layer: Layer, k_BTKh: jax.Array, v_BTKh: jax.Array, slot: jax.Array) -> Layer:
    """New keys and values of all rows into the slots from `slot` on; in place where the caller donates."""
    zero = jnp.zeros((), slot.dtype)
    k, v = (
        placed(jax.lax.dynamic_update_slice(old, new.swapaxes(1, 2).astype(old.dtype), (zero, zero, slot, zero)))
        for old, new in zip(layer, (k_BTKh, v_BTKh), strict=True)
    )
    return k, v


def insert(ring_BKSh: jax.Array, prompts_GKTh: jax.Array, where_G: jax.Array, slot: jax.Array) -> jax.Array:
    """Put prompts, whose last tokens stand at the end of T, before `slot` of the ring's rows `where_G` (B: nowhere)."""
    slots, length = ring_BKSh.shape[2], prompts_GKTh.shape[2]
    # Where T is longer than the ring, what falls off on the left is padding.
    prompts = prompts_GKTh[:, :, max(0, length - slots) :]
    prompts = jnp.pad(prompts, ((0, 0), (0, 0), (max(0, slots - length), 0), (0, 0)))
    return placed(ring_BKSh.at[where_G].set(jnp.roll(prompts, slot, axis=2), mode="drop"))


def in_ring(slots: int, slot: jax.Array, held_B: jax.Array) -> jax.Array:
    """bool [B,1,S]: the `held_B` slots last written, of which `slot` is the newest."""
    age = (slot - jnp.arange(slots, dtype=jnp.int32)) % slots
    return (age[None] < held_B[:, None])[:, None]


def in_prompts(start: jax.Array, length: int, slots: int, pads_B: jax.Array) -> jax.Array:
    """bool [B,T,S]: what tokens start … start + T of prompts see, of which the first `pads_B` places hold nothing."""
    places = start + jnp.arange(length, dtype=jnp.int32)
    keys = jnp.arange(slots, dtype=jnp.int32)
    return (keys[None, :] <= places[:, None])[None] & (keys[None] >= pads_B[:, None])[:, None]


def attend(q_BTHh: jax.Array, layer: Layer, sees_BTS: jax.Array, shared: Layer | None, pad: Any) -> jax.Array:
    """Attention [B,T,H,h] over a row's own keys and the shared ones, one softmax in float32 over both.

    Args:
        q_BTHh: turned queries.
        layer: the row's own keys and values [B,K,S,h].
        sees_BTS: which of its own each query sees (bool; T may be 1 in it).
        shared: keys and values [K,P,h] that every query sees but for the first `pad`, or None.
        pad: see there.
    """
    T, S = q_BTHh.shape[1], layer[0].shape[2]
    if T == 1:
        return _attend(q_BTHh, *layer, sees_BTS, shared, pad)
    outs = []
    for start in range(0, T, QUERIES):
        stop = min(start + QUERIES, T)
        seen = stop if T == S else S  # whole prompts: later keys are not even read
        part = (layer[0][:, :, :seen], layer[1][:, :, :seen])
        outs.append(_in_turns(q_BTHh[:, start:stop], part, sees_BTS[:, start:stop, :seen], shared, pad))
    return jnp.concatenate(outs, axis=1)


def _in_turns(q_BTHh: jax.Array, layer: Layer, sees_BTS: jax.Array, shared: Layer | None, pad: Any) -> jax.Array:
    """Attention of so few queries at a time that their scores stay within bounds."""
    B, T, H, h = q_BTHh.shape
    keys = layer[0].shape[2] + (0 if shared is None else shared[0].shape[1])
    bound = SCORES_CPU if platform() == "cpu" else SCORES
    few = max(n for n in range(1, T + 1) if T % n == 0 and (n == 1 or n * B * H * keys * 4 <= bound))
    if few == T:
        return _attend(q_BTHh, *layer, sees_BTS, shared, pad)
    turns = tuple(x.reshape(B, T // few, few, *x.shape[2:]).swapaxes(0, 1) for x in (q_BTHh, sees_BTS))
    out = jax.lax.map(lambda turn: _attend(turn[0], *layer, turn[1], shared, pad), turns)
    return out.swapaxes(0, 1).reshape(B, T, H, h)


def _attend(
    q_BTHh: jax.Array, k: jax.Array, v: jax.Array, sees_BTS: jax.Array, shared: Layer | None, pad: Any
) -> jax.Array:
    B, T, H, h = q_BTHh.shape
    K = k.shape[1]
    q = (q_BTHh * h**-0.5).reshape(B, T, K, H // K, h).transpose(0, 2, 3, 1, 4)
    own = jnp.einsum("BKGTh,BKSh->BKGTS", q, k, preferred_element_type=jnp.float32)
    own = jnp.where(sees_BTS[:, None, None], own, MASKED)
    top = jnp.max(own, axis=-1)
    if shared is None:
        total, out = _weighed(own, top, v, "BKGTS,BKSh->BKGTh")
    else:
        P = shared[0].shape[1]
        common = jnp.einsum("BKGTh,KPh->KBGTP", q, shared[0], preferred_element_type=jnp.float32)
        common = jnp.where((jnp.arange(P) >= jnp.asarray(pad))[None, None, None, None], common, MASKED)
        top = jnp.maximum(top, jnp.max(common, axis=-1).swapaxes(0, 1))
        total, out = _weighed(own, top, v, "BKGTS,BKSh->BKGTh")
        more, rest = _weighed(common, top.swapaxes(0, 1), shared[1], "KBGTP,KPh->KBGTh")
        total, out = total + more.swapaxes(0, 1), out + rest.swapaxes(0, 1)
    out = (out / total[..., None]).transpose(0, 3, 1, 2, 4).reshape(B, T, H, h)
    return constrain(out.astype(q_BTHh.dtype), "batch", "sequence", "q_heads", "head_dim")


def _weighed(scores: jax.Array, top: jax.Array, values: jax.Array, sums: str) -> tuple[jax.Array, jax.Array]:
    weights = jnp.exp(scores - top[..., None])
    total = jnp.sum(weights, axis=-1)
    return total, jnp.einsum(sums, weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
