"""Tokens by device: sums over tokens that are kept apart, a sum for each device, until they are summed once.

With the pieces in which devices hold batch and sequence as two leading dimensions P and S, the compiler needs no
collective before `summed`. Without a mesh both are 1.
"""

import jax
import jax.numpy as jnp

from t_elaine.model.placement import constrain, pieces


def by_device(x: jax.Array) -> jax.Array:
    """[B,T,...] → [P,S,n,...]: the n tokens of each device."""
    P, S = pieces("batch"), pieces("sequence")
    B, T = x.shape[:2]
    rest = x.shape[2:]
    x = x.reshape(P, B // P, S, T // S, *rest).swapaxes(1, 2).reshape(P, S, -1, *rest)
    return constrain(x, "batch", "sequence", None, *[None] * len(rest))


def in_rows(x: jax.Array, B: int, T: int) -> jax.Array:
    """[P,S,n,...] → [B,T,...], the inverse of `by_device`."""
    P, S = x.shape[:2]
    rest = x.shape[3:]
    return x.reshape(P, S, B // P, T // S, *rest).swapaxes(1, 2).reshape(B, T, *rest)


def summed(x_PS: jax.Array, dtype: jnp.dtype, *axes: str | None) -> jax.Array:
    """[P,S,...] → [...], laid out by `axes`; between devices the sums travel in `dtype`, as all gradients do."""
    if x_PS.shape[:2] == (1, 1):
        return x_PS[0, 0]
    total = jax.lax.reduce(x_PS.astype(dtype), jnp.zeros((), dtype), jax.lax.add, (0, 1))
    return constrain(total, *axes)
