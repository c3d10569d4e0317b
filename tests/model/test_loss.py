"""The chunked loss is the plain one, its gradient too, and makes no [B,T,V]."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.model import loss
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.parallel.sharding import RULES, placing, sharding

B, T, D, V = 2, 13, 6, 37


def inputs(D: int = D) -> tuple[jax.Array, ...]:
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


@pytest.mark.parametrize(("chunk", "D", "groups"), [(1, 6, 13), (4, 6, 4), (4, 16, 2), (4, 40, 1), (64, 6, 1)])
def test_value_and_gradient(chunk: int, D: int, groups: int) -> None:
    x, w, targets, weights = inputs(D)
    parts = loss._chunks(x, chunk)
    assert len(parts) // loss._chunks_a_group(parts) == groups
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
    _, two, _ = loss.weighted_nll(x, w, targets, weights, chunk)
    np.testing.assert_allclose(one, two, rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(one * weights), plain(x, w, targets, weights), rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(lambda x: jnp.sum(loss.chunked_cross_entropy(x, w, targets, chunk) * weights))(x),
        jax.grad(lambda x: plain(x, w, targets, weights))(x),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(("chunk", "D"), [(4, 6), (4, 40), (64, 6)])
def test_z_loss_and_its_gradient(chunk: int, D: int) -> None:
    """Against the formula, over all logits at once in float32; scaled, as a training step does not but may."""
    x, w, targets, weights = inputs(D)
    z = 0.03

    def formula(x: jax.Array, w: jax.Array) -> jax.Array:
        normaliser = jax.nn.logsumexp(jnp.einsum("BTD,DV->BTV", x, w), axis=-1)
        return plain(x, w, targets, weights) + z * jnp.sum(normaliser**2 * weights)

    ours = lambda x, w: loss.weighted_nll(x, w, targets, weights, chunk, z)[0] * 3  # noqa: E731
    found, gradient = jax.value_and_grad(ours, (0, 1))(x, w)
    wanted, expected = jax.value_and_grad(lambda x, w: formula(x, w) * 3, (0, 1))(x, w)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    for a, b in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    total, nll, penalty = loss.weighted_nll(x, w, targets, weights, chunk, z)  # not differentiated: another path
    np.testing.assert_allclose(total, formula(x, w), rtol=1e-6)
    np.testing.assert_allclose(total - jnp.sum(nll * weights), penalty, rtol=1e-5)
    assert penalty > 1


def test_large_logits_do_not_overflow() -> None:
    x, w, targets, weights = inputs()
    assert np.isfinite(loss.weighted_nll(x * 1e4, w, targets, weights, 4)[0])


def test_all_logits_never_exist_at_once() -> None:
    """A vocabulary of 2,000 and 64 positions, four at a time: no value of the program has B x T x V elements."""
    x, w = jnp.ones((B, 64, D)), jnp.ones((D, 2000))
    targets, weights = jnp.zeros((B, 64), jnp.int32), jnp.ones((B, 64))
    step = jax.grad(lambda x, w: loss.weighted_nll(x, w, targets, weights, 4)[0], (0, 1))
    text = jax.jit(step).lower(x, w).as_text()
    assert f"1x1x{4 * B}x2000xf32" in text
    assert "64x2000xf32" not in text and f"{16 * B}x4x2000xf32" not in text


def test_devices_add_their_sums_once() -> None:
    """On 4 x 2 devices: the same value and gradients, and no collective inside the loop over chunks."""
    mesh = make_mesh(MeshConfig(fsdp=4, context=2))
    rng = np.random.default_rng(1)
    rows, length, width, vocabulary = 8, 16, 16, 48
    x, w = rng.normal(size=(rows, length, width)), rng.normal(size=(width, vocabulary))
    targets, weights = rng.integers(0, vocabulary, (rows, length)), rng.random((rows, length))
    axes = (("batch", "sequence", None), ("embed", "vocab"), ("batch", "sequence"), ("batch", "sequence"))
    types = (jnp.float32, jnp.float32, jnp.int32, jnp.float32)
    plainly = [jnp.asarray(a, t) for a, t in zip((x, w, targets, weights), types, strict=True)]
    placed = [jax.device_put(a, sharding(mesh, RULES, *names)) for a, names in zip(plainly, axes, strict=True)]

    def total(x: jax.Array, w: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        with placing(mesh):
            return loss.weighted_nll(x, w, targets, weights, 2)[0]

    step = jax.jit(jax.value_and_grad(total, (0, 1)))
    found, wanted = step(*placed), jax.value_and_grad(plain, (0, 1))(*plainly)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)
    text = step.lower(*placed).compile().as_text()
    loops = {name for line in text.splitlines() if " while(" in line for name in re.findall(r"body=%([\w.-]+)", line)}
    assert loops
    bodies = [part for part in text.split("\n\n") if part.lstrip().startswith(tuple(f"%{name} " for name in loops))]
    collectives = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    assert bodies and not any(word in body for body in bodies for word in collectives)
