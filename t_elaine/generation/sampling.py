"""How the next token is chosen: penalty, forbidden ends, temperature, nucleus; the settings and the arithmetic.

The arithmetic is transformers' and vLLM's: penalty, then least length, temperature and nucleus. Knows no model.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t_elaine.errors import UserError

Array = Any  # JAX's, or numpy's on its way to the device


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is written.

    Args:
        max_new: tokens at most.
        min_new: no end before so many tokens.
        temperature: 0 takes the likeliest token each time; logits are divided by it otherwise.
        top_p: draw from the likeliest tokens that together have this probability.
        repetition_penalty: logits of tokens that stand in prompt or answer are divided by it where positive, else
            multiplied.
        stop: texts that end an answer and are cut off with what follows.
        seed: of the draws; with a request's number and a token's place it decides each of them.
    """

    max_new: int = 256
    min_new: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, holds, told in (
            ("max_new", self.max_new >= 1, "give at least 1"),
            ("min_new", 0 <= self.min_new <= self.max_new, f"give 0 to max_new, which is {self.max_new}"),
            ("temperature", self.temperature >= 0, "give 0 (the likeliest token) or more"),
            ("top_p", 0 < self.top_p <= 1, "give more than 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "give more than 0; 1 changes nothing"),
            ("stop", all(self.stop), "leave out the empty text, which stands everywhere"),
            ("seed", 0 <= self.seed < 2**32, "give 0 to 4294967295"),
        ):
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)!r}", f"Sampling.{name}", told)


class How(NamedTuple):
    """What of the arithmetic any request of a call needs: the rest is not compiled, and would change nothing."""

    sampled: bool
    nucleus: bool
    penalised: bool
    least: bool


class Rows(NamedTuple):
    """The settings of each row, arrays [B]; `ends` [B,E] is filled up with the vocabulary's size."""

    max_new: Array
    min_new: Array
    temperature: Array
    top_p: Array
    penalty: Array
    seed: Array
    number: Array
    ends: Array


def choose(
    logits_BV: jax.Array, rows: Rows, made_B: jax.Array, seen_BV: jax.Array | None, how: How
) -> tuple[jax.Array, jax.Array]:
    """The next token of each row (int32 [B]), and the logarithm of its probability by the bare logits (float32 [B]).

    Args:
        logits_BV: float32.
        rows: each row's settings.
        made_B: tokens that a row has written so far.
        seen_BV: whether a token stands in prompt or answer; read where `how.penalised`.
        how: what is compiled.
    """
    x = logits_BV
    if how.penalised:
        assert seen_BV is not None
        x = penalised(x, seen_BV, rows.penalty)
    if how.least:
        x = jnp.where((made_B < rows.min_new)[:, None] & forbidden(x.shape, rows.ends), -jnp.inf, x)
    token = jnp.argmax(x, axis=-1)
    if how.sampled:
        x = x / jnp.where(rows.temperature > 0, rows.temperature, 1.0)[:, None]
        x = nucleus(x, rows.top_p) if how.nucleus else x
        drawn = jnp.argmax(x + noise(rows.seed, rows.number, made_B, x.shape[1]), axis=-1)
        token = jnp.where(rows.temperature > 0, drawn, token)
    chosen = jnp.take_along_axis(logits_BV, token[:, None], axis=1)[:, 0]
    return token.astype(jnp.int32), chosen - jax.nn.logsumexp(logits_BV, axis=-1)


def penalised(x_BV: jax.Array, seen_BV: jax.Array, penalty_B: jax.Array) -> jax.Array:
    """Positive logits of seen tokens divided by the penalty, negative ones multiplied (arXiv 1909.05858)."""
    by = penalty_B[:, None]
    return jnp.where(seen_BV, jnp.where(x_BV > 0, x_BV / by, x_BV * by), x_BV)


def forbidden(shape: tuple[int, ...], ends_BE: jax.Array) -> jax.Array:
    """bool [B,V]: true at each row's end ids."""
    return jnp.zeros(shape, bool).at[jnp.arange(shape[0])[:, None], ends_BE].set(True, mode="drop")


def nucleus(x_BV: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """Logits outside the nucleus become -inf (Holtzman et al. 2020, arXiv 1904.09751): kept is the smallest set of the
    likeliest tokens whose probabilities reach `top_p`, and what is exactly as likely as the last of them.

    The least kept probability is found by bisection over the bits of float32, which sorts nothing: 30 sums of a row are
    several times faster than a sort of 49,152 to 128,256 numbers.
    """
    p_BV = jax.nn.softmax(x_BV, axis=-1)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) // 2
        least = jax.lax.bitcast_convert_type(middle, jnp.float32)
        enough = jnp.sum(jnp.where(p_BV >= least[:, None], p_BV, 0.0), axis=-1) >= top_p_B
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    one = int(np.float32(1).view(np.int32)) + 1
    low = jnp.zeros(x_BV.shape[0], jnp.int32)
    low, _ = jax.lax.fori_loop(0, one.bit_length(), halve, (low, jnp.full_like(low, one)))
    least = jax.lax.bitcast_convert_type(low, jnp.float32)
    kept = (p_BV >= least[:, None]) | (top_p_B >= 1)[:, None]
    return jnp.where(kept, x_BV, -jnp.inf)


def noise(seed_B: jax.Array, number_B: jax.Array, made_B: jax.Array, size: int) -> jax.Array:
    """Gumbel noise [B,V] whose argmax with the logits is a draw; a function of (seed, number, place) alone."""

    def row(seed: jax.Array, number: jax.Array, made: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), made)
        return jax.random.gumbel(key, (size,), jnp.float32)

    return jax.vmap(row)(seed_B, number_B, made_B)
