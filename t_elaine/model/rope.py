"""Rotary positions (Su et al. 2021, arXiv 2104.09864) with Llama 3.1's frequency scaling, in float32.

Pairs are (i, i + h/2), Hugging Face's order of the head dimension, so that no weight is permuted on import.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from t_elaine.model.config import LlamaConfig, RopeScaling


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Radians a position for each pair: float32 [h/2].

    Computed in float64 and rounded once, so that all hosts and devices turn by the same angles.
    """
    freq = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None:
        freq = _stretch(freq, scaling)
    return freq.astype(np.float32)


def _stretch(freq: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Llama 3.1: long wavelengths divided by `factor`, short ones kept, those between blended linearly."""
    turns = scaling.original_max_position * freq / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return freq * (kept + (1.0 - kept) / scaling.factor)


def angles(positions_BT: jax.Array, config: LlamaConfig) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine for each position and pair: two float32 [B,T,h/2]."""
    freq = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    turn = positions_BT[:, :, None].astype(jnp.float32) * freq[None, None, :]
    return jnp.cos(turn), jnp.sin(turn)


def rotate(x_BTNh: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn each pair of every head by its position's angle; float32 inside, x's dtype outside."""
    x = x_BTNh.astype(jnp.float32)
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNh.dtype)
