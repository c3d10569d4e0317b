"""The optimizer is optax's AdamW, decays by role, and its schedule has the ends that it says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t_elaine.errors import UserError
from t_elaine.model import llama
from t_elaine.model.config import LlamaConfig
from t_elaine.training import optimizer
from t_elaine.training.optimizer import AdamW, Schedule
from tests.random_params import random_params

CONFIG = LlamaConfig(vocab_size=16, embed=8, mlp=8, layers=2, q_heads=2, kv_heads=1, head_dim=4, qkv_bias=True)


def test_is_optax_adamw_after_clipping() -> None:
    adamw = AdamW(weight_decay=0.3, clip=0.5)
    mask = optimizer.decay_mask(llama.parameter_roles(CONFIG))
    params = peer_params = random_params(CONFIG)
    adam = optax.adamw(0.01, adamw.b1, adamw.b2, adamw.eps, weight_decay=adamw.weight_decay, mask=mask)
    peer = optax.chain(optax.clip_by_global_norm(0.5), adam)
    state, peer_state = optimizer.init_optimizer(params), peer.init(peer_params)

    @jax.jit
    def both(params: Any, state: Any, peer_params: Any, peer_state: Any, shift: jax.Array) -> tuple[Any, ...]:
        gradients = jax.tree.map(lambda p: jnp.sin(p * 50 + shift), params)
        updates, peer_state = peer.update(gradients, peer_state, peer_params)
        params, state, norm = optimizer.update(adamw, mask, params, gradients, state, jnp.float32(0.01))
        return params, state, optax.apply_updates(peer_params, updates), peer_state, norm / optax.tree.norm(gradients)

    for step in range(3):
        params, state, peer_params, peer_state, ratio = both(params, state, peer_params, peer_state, jnp.float32(step))
        np.testing.assert_allclose(ratio, 1, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), params, peer_params)


def test_decays_matrices_and_embeddings_only() -> None:
    """Stacked norms and biases have two and three dimensions, so rank would be wrong."""
    mask = optimizer.decay_mask(llama.parameter_roles(CONFIG))
    params = jax.tree.map(jnp.ones_like, random_params(CONFIG))
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = optimizer.init_optimizer(params)
    update = jax.jit(lambda *trees: optimizer.update(AdamW(weight_decay=0.5), mask, *trees))
    after, _, _ = update(params, zeros, state, jnp.float32(0.1))
    named = jax.tree_util.tree_leaves_with_path(after)
    for path, leaf in named:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        kept = "norm" in name or "bias" in name
        np.testing.assert_allclose(leaf, 1.0 if kept else 0.95, rtol=1e-6, err_msg=name)
    assert sum("norm" in str(path) or "bias" in str(path) for path, _ in named) == 6


def test_schedule_ends() -> None:
    rate = optimizer.learning_rate(Schedule(peak=1e-3, warmup_steps=10, floor_fraction=0.1), 100)
    values = np.asarray(jax.vmap(rate)(jnp.arange(100)))
    np.testing.assert_allclose(values[0], 1e-4, rtol=1e-5)
    np.testing.assert_allclose(values[9], 1e-3, rtol=1e-5)
    assert max(values) <= 1e-3 * (1 + 1e-6) and np.all(np.diff(values[9:]) < 0)
    np.testing.assert_allclose(values[54], (1e-3 + 1e-4) / 2, rtol=1e-3)
    np.testing.assert_allclose(values[99], 1e-4, rtol=1e-5)


@pytest.mark.parametrize(("kind", "last"), [("linear", 1e-4), ("constant", 1e-3)])
def test_other_kinds(kind: str, last: float) -> None:
    rate = optimizer.learning_rate(Schedule(peak=1e-3, warmup_fraction=0.1, floor_fraction=0.1, kind=kind), 50)
    np.testing.assert_allclose(rate(jnp.int32(4)), 1e-3, rtol=1e-5)
    np.testing.assert_allclose(rate(jnp.int32(49)), last, rtol=1e-5)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="cosine, linear, constant"):
        Schedule(kind="step")
    with pytest.raises(UserError, match="warm-up of 30 steps in a run of 20"):
        optimizer.learning_rate(Schedule(warmup_steps=30), 20)
