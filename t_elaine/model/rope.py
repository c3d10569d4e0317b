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

    Rounded to float32 after each operation, as `transformers` does: at position 100,000 one unit in the last place of a
    frequency turns by 0.006 radians, and the weights were trained with these. The power alone is taken in float64 and
    rounded once, so that every machine has the same.
    """
    exponents = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
    powers = (np.float64(theta) ** exponents.astype(np.float64)).astype(np.float32)
    freq = np.float32(1.0) / powers
    return freq if scaling is None else _stretch(freq, scaling)


def _stretch(freq: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Llama 3.1: long wavelengths divided by `factor`, short ones kept, those between blended linearly. float32."""
    wavelengths = np.float32(2 * math.pi) / freq
    turns = np.float32(scaling.original_max_position) / wavelengths
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    kept = (turns - low) / (high - low)
    stretched = freq / np.float32(scaling.factor)
    blended = (np.float32(1.0) - kept) * freq / np.float32(scaling.factor) + kept * freq
    return np.where(kept <= 0, stretched, np.where(kept >= 1, freq, blended))


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
