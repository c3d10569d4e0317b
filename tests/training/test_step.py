"""The step: equal on all meshes and accumulations, right per-group sums, harmless on what is not finite."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.model import llama
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.training import step as steps
from t_elaine.training.optimizer import AdamW, Schedule, learning_rate
from t_elaine.training.step import Step
from tests.random_params import random_params

CONFIG = LlamaConfig(vocab_size=64, embed=16, mlp=24, layers=2, q_heads=4, kv_heads=2, head_dim=4)
COMPUTE = ComputeConfig(dtype="float32", loss_chunk=8)
T, GROUPS = 16, 3
BYTES = np.arange(64) % 4


@functools.cache
def make_cached(mesh: MeshConfig, devices: int) -> Step:
    """One jitted step a mesh, so that tests share what it has compiled."""
    return make_anew(mesh, devices)


def make_anew(mesh: MeshConfig, devices: int, **options: Any) -> Step:
    rate = learning_rate(Schedule(peak=1e-2, warmup_steps=2), 10)
    where = make_mesh(mesh, jax.devices()[:devices])
    return steps.make_step(CONFIG, COMPUTE, AdamW(), rate, where, GROUPS, BYTES, **options)


def make(mesh: MeshConfig, devices: int = 8) -> tuple[Step, Any]:
    """A step on a mesh and its state from random weights."""
    step = make_cached(mesh, devices)
    params = jax.device_put(random_params(CONFIG), step.state_shardings["params"])
    return step, jax.jit(steps.init_state, out_shardings=step.state_shardings, donate_argnums=0)(params)


def batch(A: int, B: int, seed: int = 1) -> dict[str, np.ndarray]:
    """The same 16 rows whatever A and B are; two documents a row; a fifth of the targets has no weight."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 64, (16, T + 1), dtype=np.int32)
    segments = np.where(np.arange(T) < 9, 1, 2)
    arrays = {
        "tokens": rows[:, :-1],
        "targets": rows[:, 1:],
        "segments": np.broadcast_to(segments, (16, T)).astype(np.int32),
        "positions": np.broadcast_to(np.where(segments == 1, np.arange(T), np.arange(T) - 9), (16, T)).astype(np.int32),
        "weights": (rng.random((16, T)) > 0.2).astype(np.float32),
        "groups": rng.integers(0, GROUPS, (16, T), dtype=np.int32),
    }
    return {name: np.ascontiguousarray(array.reshape(A, B, T)) for name, array in arrays.items()}


def losses(step: Step, state: Any, arrays: dict[str, np.ndarray], count: int = 3) -> tuple[list[float], Any]:
    on_devices = jax.device_put(arrays, step.batch_sharding)
    found = []
    for _ in range(count):
        state, metrics = step.run(state, on_devices)
        found.append(float(metrics["loss"]))
    return found, state


@pytest.fixture(scope="module")
def alone() -> tuple[list[float], dict[str, Any]]:
    """Losses and parameters on one device, all rows at once."""
    step, state = make(MeshConfig(), 1)
    found, state = losses(step, state, batch(1, 16))
    return found, jax.device_get(state["params"])


MESH = MeshConfig(fsdp=2, tensor=2, replica=2)
LAYOUTS = [
    pytest.param(MeshConfig(), 8, 1, 16, id="fsdp", marks=pytest.mark.slow),
    pytest.param(MESH, 8, 2, 8, id="replica-fsdp-tensor"),
    pytest.param(MeshConfig(fsdp=2, context=2, tensor=2), 8, 4, 4, id="context", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("mesh", "devices", "A", "B"), LAYOUTS)
def test_losses_are_equal_on_all_meshes(alone: Any, mesh: MeshConfig, devices: int, A: int, B: int) -> None:
    step, state = make(mesh, devices)
    found, _ = losses(step, state, batch(A, B))
    np.testing.assert_allclose(found, alone[0], rtol=1e-5)


def test_sixteen_microbatches_of_one_are_one_of_sixteen(alone: Any) -> None:
    """Rows have unequal numbers of targets, so a mean of means would differ."""
    step, state = make(MeshConfig(), 1)
    found, state = losses(step, state, batch(16, 1))
    np.testing.assert_allclose(found, alone[0], rtol=1e-5)
    params = jax.device_get(state["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), params, alone[1])


def test_group_sums_are_those_of_the_logits() -> None:
    step, state = make(MESH)
    arrays = batch(2, 8)
    params = jax.device_get(state["params"])
    _, metrics = step.run(state, jax.device_put(arrays, step.batch_sharding))
    flat = {name: array.reshape(16, T) for name, array in arrays.items()}
    logits = llama.logits(params, CONFIG, COMPUTE, flat["tokens"], flat["positions"], flat["segments"])
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), flat["targets"][..., None], -1)[..., 0]
    weights, count = flat["weights"], BYTES[flat["targets"]]
    for g in range(GROUPS):
        here = weights * (flat["groups"] == g)
        wanted = [(nll * here).sum(), here.sum(), (nll * here * (count > 0)).sum(), (here * count).sum()]
        np.testing.assert_allclose(metrics["sums"][:, g], wanted, rtol=2e-5)
    np.testing.assert_allclose(metrics["loss"], (nll * weights).sum() / weights.sum(), rtol=1e-5)
    only = jax.tree.map(lambda a: a[:8], flat)
    sums = step.evaluate(make(MESH)[1]["params"], jax.device_put(only, rows_layout(step)))
    np.testing.assert_allclose(sums[1].sum(), only["weights"].sum())


def rows_layout(step: Step) -> jax.sharding.NamedSharding:
    where = step.batch_sharding
    return jax.sharding.NamedSharding(where.mesh, jax.sharding.PartitionSpec(*where.spec[1:]))


def test_what_is_not_finite_changes_nothing_but_the_counters() -> None:
    step, state = make(MeshConfig())
    on_devices = jax.device_put(batch(1, 16), step.batch_sharding)
    state, _ = step.run(state, on_devices)
    before = jax.device_get(state)
    poisoned = {**batch(1, 16)}
    poisoned["weights"] = poisoned["weights"].copy()
    poisoned["weights"][0, 3, 2] = np.inf
    for skipped in (1, 2):
        state, metrics = step.run(state, jax.device_put(poisoned, step.batch_sharding))
        assert int(metrics["skipped"]) == 1 and int(metrics["skipped_in_a_row"]) == skipped
    after = jax.device_get(state)
    for item in ("params", "opt_state", "tokens"):
        jax.tree.map(np.testing.assert_array_equal, after[item], before[item])
    assert (int(after["step"]), int(after["skipped"]), int(after["skipped_in_a_row"])) == (3, 2, 2)
    state, metrics = step.run(state, on_devices)
    assert int(metrics["skipped"]) == 0 and int(metrics["skipped_in_a_row"]) == 0 and int(state["skipped"]) == 2
    # The schedule went on through the skipped steps.
    rate = learning_rate(Schedule(peak=1e-2, warmup_steps=2), 10)
    np.testing.assert_allclose(metrics["learning_rate"], rate(jnp.int32(3)), rtol=1e-6)


def test_tokens_are_counted_past_32_bits() -> None:
    step, state = make(MeshConfig(), 1)
    state["tokens"] = jnp.array([2**32 - 5, 1], jnp.uint32)
    arrays = batch(1, 16)
    state, metrics = step.run(state, jax.device_put(arrays, step.batch_sharding))
    wanted = 2**33 - 5 + int(arrays["weights"].sum())
    assert steps.token_count(jax.device_get(metrics["tokens"])) == wanted == steps.token_count(state["tokens"])


def test_compiler_options_reach_the_compiler() -> None:
    step = make_anew(MeshConfig(), 1, compiler_options={"xla_no_such_option": "1"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        losses(step, make(MeshConfig(), 1)[1], batch(1, 16), 1)
