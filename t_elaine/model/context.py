"""Attention where each device holds a piece of every row (mesh axis `context`): keys and values are gathered.

A row is cut into 2C chunks for C devices; device c holds chunks c and 2C-1-c, so that all have the same causal work
(Llama 3, arXiv 2407.21783, section 3.3.2). `dealt` lays a row out so, `in_order` undoes it; between the two a model's
tokens stand in that order, which only attention needs to know. With one piece both are the identity.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t_elaine.errors import UserError
from t_elaine.model import placement

QUERIES = ("batch", "sequence", "q_heads", "head_dim")
KEYS = ("batch", "sequence", "kv_heads", "head_dim")
ROWS = ("batch", "sequence")


def pieces() -> int:
    """C: in how many pieces devices hold a row."""
    return placement.pieces("sequence")


def check_length(length: int, pieces: int) -> None:
    """Refuse rows that two chunks for each of `pieces` devices do not divide."""
    if pieces > 1 and length % (2 * pieces):
        raise UserError(
            f"rows of {length} tokens do not divide into two chunks for each of {pieces} pieces",
            "Mixture.sequence_length, MeshConfig.context",
            f"make the row a multiple of {2 * pieces}, or MeshConfig.context smaller",
        )


def _exchange(C: int, back: bool) -> Callable[[jax.Array], jax.Array]:
    """The shuffle between neighbours in order and mirrored pairs, on one device's piece [B,T/C,...].

    Chunk j goes to device j or, in the second half, 2C-1-j. Even chunks are one permutation of the devices, odd ones
    another: an even device gets its even chunk first, an odd one its odd chunk.
    """
    home = [j if j < C else 2 * C - 1 - j for j in range(2 * C)]
    even, odd = ([(j // 2, home[j]) for j in range(parity, 2 * C, 2)] for parity in (0, 1))
    name = placement.mesh_axes("sequence")
    undo = lambda pairs: [(there, here) for here, there in pairs]  # noqa: E731

    def move(x: jax.Array) -> jax.Array:
        first, second = jnp.split(x, 2, axis=1)
        swapped = jax.lax.axis_index(name) % 2 == 1
        if back:
            evens, odds = jnp.where(swapped, second, first), jnp.where(swapped, first, second)
            moved = [jax.lax.ppermute(evens, name, undo(even)), jax.lax.ppermute(odds, name, undo(odd))]
        else:
            evens, odds = jax.lax.ppermute(first, name, even), jax.lax.ppermute(second, name, odd)
            moved = [jnp.where(swapped, odds, evens), jnp.where(swapped, evens, odds)]
        return jnp.concatenate(moved, axis=1)

    return move


def _moved(x: jax.Array, back: bool) -> jax.Array:
    C = pieces()
    if C == 1:
        return x
    check_length(x.shape[1], C)
    axes = (*ROWS, *[None] * (x.ndim - 2))
    return placement.per_shard(_exchange(C, back), (axes,), axes)(x)


def dealt(x: jax.Array) -> jax.Array:
    """[B,T,...] in the order of the row → in the order of the devices, mirrored chunks together."""
    return _moved(x, back=False)


def in_order(x: jax.Array) -> jax.Array:
    """The inverse of `dealt`."""
    return _moved(x, back=True)


def dealt_places(length: int, C: int) -> np.ndarray:
    """The place in its row of each token of a dealt row: int32 [T]."""
    chunks = np.arange(length, dtype=np.int32).reshape(2 * C, -1)
    return np.concatenate([np.stack([chunks[c], chunks[2 * C - 1 - c]]) for c in range(C)]).reshape(-1)


def _gathered(x: jax.Array, C: int) -> jax.Array:
    """One device's piece [B,T/C,...] → the whole row in its order [B,T,...]."""
    whole = jax.lax.all_gather(x, placement.mesh_axes("sequence"), axis=1, tiled=True)
    B, T = whole.shape[:2]
    chunks = whole.reshape(B, C, 2, T // (2 * C), *whole.shape[2:])
    return jnp.concatenate([chunks[:, :, 0], chunks[:, ::-1, 1]], axis=1).reshape(whole.shape)


def over_pieces(
    kernel: Callable[..., jax.Array],
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    segments_BT: jax.Array,
    tables: Any = (),
) -> jax.Array:
    """Run a kernel on each device: its own queries against all keys of their rows.

    Args:
        kernel: (q [b,T/C,..], k and v [b,T,..] in order, segments of the queries [b,T/C] and of the keys [b,T],
            places of the queries in their row [T/C], tables) → [b,T/C,..].
        q_BTHh: queries of dealt rows.
        k_BTKh: keys of dealt rows; gathered here, and their gradients summed back, in their own dtype.
        v_BTKh: values, likewise.
        segments_BT: of dealt rows.
        tables: tree of arrays that the kernel needs, cut along their query dimension: the second, or the only one.
    """
    C, T = pieces(), q_BTHh.shape[1]
    leaves, structure = jax.tree.flatten(tables)
    places_T = jnp.asarray(dealt_places(T, C))

    def run(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, places: jax.Array, *own: Any) -> jax.Array:
        keys, values, all_segments = (_gathered(x, C) for x in (k, v, segments))
        return kernel(q, keys, values, segments, all_segments, places, jax.tree.unflatten(structure, own))

    axes = [("sequence",) if leaf.ndim == 1 else (None, "sequence", *[None] * (leaf.ndim - 2)) for leaf in leaves]
    run = placement.per_shard(run, (QUERIES, KEYS, KEYS, ROWS, ("sequence",), *axes), QUERIES)
    return run(q_BTHh, k_BTKh, v_BTKh, segments_BT, places_T, *leaves)
