"""The chunked loss is the plain one, its gradient too, and makes no [B,T,V]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.model import loss

B, T, D, V = 2, 13, 6, 37


def inputs() -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(B, T, D)), rng.normal(size=(D, V))
    weights = rng.random((B, T)) * (rng.random((B, T)) > 0.3)
    return (
        jnp.asarray(x, jnp.float32),
        jnp.asarray(w, jnp.float32),
        jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32),
        jnp.asarray(weights, jnp.float32),
    )


def plain(x: jax.Array, w: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    scores = jax.nn.log_softmax(jnp.einsum("BTD,DV->BTV", x, w))
    return -jnp.sum(jnp.take_along_axis(scores, targets[:, :, None], axis=-1)[:, :, 0] * weights)


@pytest.mark.parametrize("chunk", [1, 4, 13, 64])
def test_value_and_gradient(chunk: int) -> None:
    x, w, targets, weights = inputs()
    ours = lambda x, w: loss.weighted_nll(x, w, targets, weights, chunk)[0] * 3  # noqa: E731
    found, gradient = jax.value_and_grad(ours, (0, 1))(x, w)
    wanted, expected = jax.value_and_grad(lambda x, w: plain(x, w, targets, weights) * 3, (0, 1))(x, w)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    for a, b in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [4, 64])
def test_each_targets_own(chunk: int) -> None:
    x, w, targets, weights = inputs()
    one = loss.chunked_cross_entropy(x, w, targets, chunk)
    _, two = loss.weighted_nll(x, w, targets, weights, chunk)
    np.testing.assert_allclose(one, two, rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(one * weights), plain(x, w, targets, weights), rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(lambda x: jnp.sum(loss.chunked_cross_entropy(x, w, targets, chunk) * weights))(x),
        jax.grad(lambda x: plain(x, w, targets, weights))(x),
        rtol=1e-5,
        atol=1e-5,
    )


def test_large_logits_do_not_overflow() -> None:
    x, w, targets, weights = inputs()
    assert np.isfinite(loss.weighted_nll(x * 1e4, w, targets, weights, 4)[0])


def test_all_logits_never_exist_at_once() -> None:
    """A vocabulary of 2,000 and 64 positions, four at a time: no value of the program has B x T x V elements."""
    x, w = jnp.ones((B, 64, D)), jnp.ones((D, 2000))
    targets, weights = jnp.zeros((B, 64), jnp.int32), jnp.ones((B, 64))
    step = jax.grad(lambda x, w: loss.weighted_nll(x, w, targets, weights, 4)[0], (0, 1))
    text = jax.jit(step).lower(x, w).as_text()
    assert f"{B}x4x2000xf32" in text
    assert "64x2000xf32" not in text and f"{16 * B}x4x2000xf32" not in text
