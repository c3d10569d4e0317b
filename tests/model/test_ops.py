"""Gradients written by hand are those of automatic differentiation; values are the textbook's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.model import ops


def draw(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plain_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * scale[None, None]


def linear(x: jax.Array, w: jax.Array) -> jax.Array:
    return ops.linear(x, w, ("embed", "mlp"))


TOKENS = jnp.asarray([[3, 0, 3, 6, 3], [1, 1, 5, 0, 3]], jnp.int32)
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[jax.Array, ...]]] = {
    "wider": (linear, lambda x, w: jnp.einsum("btd,df->btf", x, w), (draw(2, 5, 4), draw(4, 9))),
    "narrower": (linear, lambda x, w: jnp.einsum("btf,fd->btd", x, w), (draw(2, 5, 9), draw(9, 4))),
    "looked up": (
        lambda table: ops.look_up(table, TOKENS, "float32"),
        lambda table: table[TOKENS],
        (draw(7, 4),),
    ),
    "norm": (lambda x, s: ops.rms_norm(x, s, 1e-5), plain_norm, (draw(2, 5, 8), draw(8, seed=1))),
    "gated": (ops.gated, lambda g, u: g / (1 + jnp.exp(-g)) * u, (draw(2, 5, 8), draw(2, 5, 8, seed=1))),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    ours, plain, arguments = CASES[name]
    values, pull = jax.vjp(ours, *arguments)
    expected, plain_pull = jax.vjp(plain, *arguments)
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=2e-6)
    direction = draw(*expected.shape, seed=7)
    for found, wanted in zip(pull(direction), plain_pull(direction), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_norm_of_bfloat16_is_computed_in_float32() -> None:
    x = (draw(1, 3, 512) * 100).astype(jnp.bfloat16)
    found = ops.rms_norm(x, jnp.ones(512), 1e-5)
    exact = plain_norm(x.astype(jnp.float32), jnp.ones(512))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_unstacked_layers_have_stacked_gradients() -> None:
    tree = {"a": draw(3, 4), "b": draw(3, 2, 2)}

    def total(tree: Any) -> jax.Array:
        return sum(
            (i + 1) * (jnp.sum(layer["a"] ** 2) + jnp.sum(layer["b"])) for i, layer in enumerate(ops.unstack(tree))
        )

    found = jax.grad(total)(tree)
    np.testing.assert_allclose(found["a"], 2 * tree["a"] * jnp.arange(1, 4)[:, None])
    np.testing.assert_allclose(found["b"], jnp.broadcast_to(jnp.arange(1.0, 4)[:, None, None], (3, 2, 2)))
