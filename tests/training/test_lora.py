"""Adapters begin as nothing, train alone, compute what their merged model computes, and drop what the step says."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.errors import UserError
from t_elaine.model import llama, lora
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.model.lora import Lora
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.parallel.sharding import RULES
from t_elaine.training import adapting
from t_elaine.training import step as steps
from t_elaine.training.optimizer import AdamW, Schedule, learning_rate
from t_elaine.training.step import Step
from t_elaine.training.trained import Trained
from tests.random_params import random_params
from tests.training.test_step import batch

CONFIG = LlamaConfig(vocab_size=64, embed=16, mlp=24, layers=2, q_heads=4, kv_heads=2, head_dim=4, qkv_bias=True)
COMPUTE = ComputeConfig(dtype="float32", loss_chunk=8)
GROUPS, BYTES, ONE = 3, np.arange(64) % 4, MeshConfig()


@functools.cache
def make(settings: Lora, mesh: MeshConfig, devices: int, compute: ComputeConfig = COMPUTE) -> Step:
    rate = learning_rate(Schedule(peak=1e-2, warmup_steps=2), 10)
    where = make_mesh(mesh, jax.devices()[:devices])
    return steps.make_step(CONFIG, compute, AdamW(), rate, where, GROUPS, BYTES, lora=settings)


def begun(step: Step, settings: Lora) -> Any:
    """A state on the step's mesh, from random weights."""

    def make_state(params: Any) -> Any:
        base = lora.freeze(CONFIG, settings.base, params)
        return steps.init_state(lora.init(CONFIG, settings, base, jax.random.key(5))) | {"base": base}

    return jax.jit(make_state, out_shardings=step.state_shardings)(random_params(CONFIG))


def trained(
    settings: Lora,
    mesh: MeshConfig = ONE,
    devices: int = 1,
    A: int = 1,
    count: int = 3,
    compute: ComputeConfig = COMPUTE,
) -> tuple[list[float], Any]:
    """Losses of some steps, and the state after them."""
    step = make(settings, mesh, devices, compute)
    state, arrays = begun(step, settings), jax.device_put(batch(A, 16 // A), step.batch_sharding)
    found = []
    for _ in range(count):
        state, metrics = step.run(state, arrays)
        found.append(float(metrics["loss"]))
    return found, jax.device_get(state)


def logits(params: Any, compute: ComputeConfig = COMPUTE) -> np.ndarray:
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    return np.asarray(jax.jit(lambda p: llama.logits(p, CONFIG, compute, tokens))(params))


@pytest.mark.parametrize("settings", [Lora(rank=2, base="float32"), Lora(rank=2, base="float32", dora=True)])
def test_new_adapters_change_nothing(settings: Lora) -> None:
    params = random_params(CONFIG)
    base = lora.freeze(CONFIG, "float32", params)
    adapters = lora.init(CONFIG, settings, base, jax.random.key(0))
    found = logits(lora.combine(CONFIG, settings, base, adapters))
    np.testing.assert_allclose(found, logits(params), rtol=1e-5, atol=1e-5)


KINDS = [
    Lora(rank=2, base="float32"),
    pytest.param(Lora(rank=2, base="bfloat16", dora=True), marks=pytest.mark.slow),
    Lora(rank=3, base="nf4", targets=("q_proj", "mlp/*"), rslora=True),
    pytest.param(Lora(rank=2, base="int8", targets=("all-linear",)), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("settings", KINDS, ids=lambda kind: kind.base)
def test_what_was_trained_is_what_is_merged(settings: Lora) -> None:
    losses, state = trained(settings)
    assert losses[-1] < losses[0] and state["opt_state"]["count"] == 3
    before = lora.freeze(CONFIG, settings.base, random_params(CONFIG))
    jax.tree.map(np.testing.assert_array_equal, state["base"], jax.device_get(before))
    counted = state["params"]["layers"]["mlp" if settings.rslora else "attention"]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(counted))
    apart = logits(lora.combine(CONFIG, settings, state["base"], state["params"]))
    together = logits(lora.merge(CONFIG, settings, random_params(CONFIG), state["params"]))
    np.testing.assert_allclose(apart, together, rtol=1e-4, atol=1e-4)
    assert np.abs(together - logits(random_params(CONFIG))).max() > 1e-2


LAYOUTS = [
    pytest.param(MeshConfig(fsdp=2, tensor=2, replica=2), 2, id="replica-fsdp-tensor"),
    pytest.param(MeshConfig(fsdp=2, context=2, tensor=2), 4, id="context", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("mesh", "A"), LAYOUTS)
@pytest.mark.parametrize("settings", [Lora(rank=2, base="nf4", dora=True)], ids=["nf4-dora"])
def test_losses_are_equal_on_all_meshes(settings: Lora, mesh: MeshConfig, A: int) -> None:
    alone, _ = trained(settings)
    found, _ = trained(settings, mesh, 8, A)
    np.testing.assert_allclose(found, alone, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"remat": "none", "scan_layers": False}, {"remat": "minimal"}], ids=["unrolled", "minimal"]
)
def test_recomputation_changes_nothing(changes: dict[str, Any]) -> None:
    settings = Lora(rank=2, base="nf4", dropout=0.3)
    found, _ = trained(settings, compute=dataclasses.replace(COMPUTE, **changes))
    np.testing.assert_allclose(found, trained(settings)[0], rtol=1e-5)


def test_dropout_is_the_steps_own() -> None:
    settings = Lora(rank=2, base="float32", dropout=0.5)
    first, again = trained(settings), trained(settings)
    assert first[0] == again[0] and first[0] != trained(dataclasses.replace(settings, dropout=0.0))[0]
    step = make(settings, ONE, 1)
    keys = [Trained(CONFIG, settings).keys(0, jnp.int32(n), 2)["dropout"] for n in (0, 1)]
    assert len({tuple(map(int, key)) for pair in keys for key in pair}) == 4
    held = steps.weights(jax.device_put(first[1], step.state_shardings))
    part = jax.tree.map(lambda x: x[0], batch(1, 16))
    assert np.array_equal(*(np.asarray(step.evaluate(held, part)) for _ in range(2)))


def test_a_base_is_kept_in_few_bytes() -> None:
    """What 16 chips hold of the 8B shape: matrices in four bits and a scale for 64, tables in bfloat16."""
    config = LlamaConfig(vocab_size=128256, embed=4096, mlp=14336, layers=32, q_heads=32, kv_heads=8, head_dim=128)
    held = {
        kind: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(lora.base_shapes(config, kind)))
        for kind in lora.BASES
    }
    matrices = sum(m.rows * m.columns for m in lora.matrices(config)) * config.layers
    tables, norms = 2 * 2 * config.vocab_size * config.embed, 4 * config.embed * (2 * config.layers + 1)
    assert held["nf4"] == matrices * (4 + 32 / 64) / 8 + tables + norms
    assert held["int8"] == matrices * (8 + 32 / 64) / 8 + tables + norms
    Trained(config, Lora(base="nf4")).frozen_shardings(make_mesh(MeshConfig()), RULES)


@pytest.mark.parametrize(
    "fields", [{"rank": 0}, {"dropout": 1.0}, {"alpha": 0.0}, {"base": "int4"}, {"targets": ("w1",)}, {"targets": ()}]
)
def test_settings_that_mean_nothing_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Lora"):
        Lora(**fields)


def test_a_rank_that_no_matrix_can_have_is_refused() -> None:
    smallest = max(min(m.rows, m.columns) for m in lora.matrices(CONFIG))
    assert len(lora.targets(CONFIG, Lora(rank=smallest))) == 7
    with pytest.raises(UserError, match=f"rank {smallest + 1}, and no matrix"):
        lora.targets(CONFIG, Lora(rank=smallest + 1))


def test_adapters_are_known_by_what_they_stand_beside_not_by_how_it_was_named() -> None:
    every = {"lora": Lora(targets=("q_proj", "k", "v", "o", "mlp/*")).record()}
    adapting.check_same(every, Lora(targets=("all-linear",)), "here")
    with pytest.raises(UserError, match="of other settings"):
        adapting.check_same(every, Lora(targets=("q", "v")), "here")
