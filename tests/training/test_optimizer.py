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


def rates(schedule: Schedule, steps: int) -> np.ndarray:
    return np.asarray(jax.vmap(optimizer.learning_rate(schedule, steps))(jnp.arange(steps)))


@pytest.mark.parametrize(("decay", "middle"), [("sqrt", 1 - 0.5**0.5), ("linear", 0.5), ("cosine", 0.5)])
def test_warmup_stable_decay(decay: str, middle: float) -> None:
    values = rates(Schedule(peak=1e-3, kind="wsd", warmup_steps=10, decay_steps=20, decay=decay), 100)
    np.testing.assert_allclose(values[:10], np.linspace(1e-4, 1e-3, 10), rtol=1e-5)
    np.testing.assert_allclose(values[9:80], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(values[89], 1e-4 + 9e-4 * middle, rtol=1e-4)
    np.testing.assert_allclose(values[99], 1e-4, rtol=1e-4)
    assert np.all(np.diff(values[79:]) < 0)


def test_a_longer_run_is_the_same_up_to_its_decay() -> None:
    """What makes the constant part one to go on from, for another length or for none (decay_steps=0)."""
    wsd = Schedule(kind="wsd", warmup_steps=10, decay_steps=20)
    np.testing.assert_array_equal(rates(wsd, 100)[:80], rates(wsd, 300)[:80])
    endless = rates(Schedule(kind="wsd", warmup_steps=10, decay_steps=0), 100)
    np.testing.assert_array_equal(endless[:80], rates(wsd, 100)[:80])
    assert endless[99] == endless[20]


def test_infinite_schedule() -> None:
    """Warm-up, cool-down to a lower constant, exponential annealing at the end."""
    shape = {"cooldown_steps": 20, "constant_fraction": 0.5, "decay_steps": 40, "decay": "exponential"}
    values = rates(Schedule(peak=1e-3, kind="wsd", warmup_steps=10, floor_fraction=0.05, **shape), 200)
    np.testing.assert_allclose(values[[9, 19, 29, 100, 159]], [1e-3, 7.5e-4, 5e-4, 5e-4, 5e-4], rtol=1e-4)
    np.testing.assert_allclose(values[[179, 199]], [5e-4 * 0.1**0.5, 5e-5], rtol=1e-4)


def test_rewarming_and_redecaying() -> None:
    """Each part between restarts is a schedule of its own, from the floor up again."""
    again = Schedule(peak=1e-3, warmup_steps=10, floor_fraction=0.1, restarts=(100,))
    values, once = rates(again, 250), rates(Schedule(peak=1e-3, warmup_steps=10, floor_fraction=0.1), 100)
    np.testing.assert_allclose(values[:100], once, rtol=1e-6)
    np.testing.assert_allclose(values[[99, 104, 109, 249]], [1e-4, 5.5e-4, 1e-3, 1e-4], rtol=1e-4)
    np.testing.assert_array_equal(rates(again, 90), rates(Schedule(peak=1e-3, warmup_steps=10), 90))
    warmed = rates(Schedule(peak=1e-3, warmup_steps=10, start_fraction=0.5), 100)
    np.testing.assert_allclose(warmed[[0, 9]], [5.5e-4, 1e-3], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "steps", "told"),
    [
        ({"kind": "wsd", "warmup_steps": 50, "decay_steps": 60}, 100, "take 110 steps of 100"),
        ({"warmup_steps": 50, "restarts": (80,)}, 100, "warm-up of 50 steps in a run of 20"),
        ({"kind": "wsd", "decay": "exponential", "floor_fraction": 0.0}, 100, "never reaches a floor of 0"),
        ({"restarts": (5, 3)}, 100, "restarts are"),
        ({"kind": "wsd", "decay": "steep"}, 100, "sqrt, linear, cosine, exponential"),
    ],
)
def test_schedules_that_cannot_be_are_refused(settings: dict[str, Any], steps: int, told: str) -> None:
    with pytest.raises(UserError) as refused:
        optimizer.learning_rate(Schedule(**settings), steps)
    assert told in refused.value.text()


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="cosine, linear, constant"):
        Schedule(kind="step")
    with pytest.raises(UserError, match="warm-up of 30 steps in a run of 20"):
        optimizer.learning_rate(Schedule(warmup_steps=30), 20)
