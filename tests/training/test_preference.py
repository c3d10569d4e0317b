"""DPO and RPO: losses, metrics and gradients by NumPy and by finite differences; equal on meshes and accumulations."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.errors import UserError
from t_elaine.model import llama
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.model.lora import Lora
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.training import step as steps
from t_elaine.training.optimizer import AdamW
from t_elaine.training.preference import PAIR_SUMS, Preference, most_pairs, preferred
from t_elaine.training.step import Step
from tests.preference_rows import GROUPS, expected, rows
from tests.random_params import random_params

CONFIG = LlamaConfig(vocab_size=64, embed=16, mlp=24, layers=2, q_heads=4, kv_heads=2, head_dim=4)
COMPUTE = ComputeConfig(dtype="float32", loss_chunk=8)
T, ROWS = 32, 16
RPO = Preference(beta=0.5, rpo_alpha=0.7, label_smoothing=0.1)


def make(preference: Preference, mesh: MeshConfig, devices: int, lora: Lora | None = None) -> Step:
    where = make_mesh(mesh, jax.devices()[:devices])
    rate = lambda step: jnp.float32(1e-2)  # noqa: E731
    return steps.make_step(
        CONFIG, COMPUTE, AdamW(clip=None), rate, where, GROUPS, np.ones(64), lora=lora, preference=preference
    )


def update(step: Step, arrays: dict[str, np.ndarray], A: int, count: int = 1) -> tuple[list[Any], Any]:
    """Metrics of `count` updates on the same rows, and the parameters after them."""
    params = jax.device_put(random_params(CONFIG), step.state_shardings["params"])
    state = jax.jit(steps.init_state, out_shardings=step.state_shardings, donate_argnums=0)(params)
    shaped = {name: array.reshape(A, ROWS // A, T) for name, array in arrays.items()}
    found = []
    for _ in range(count):
        state, metrics = step.run(state, jax.device_put(shaped, step.batch_sharding))
        found.append(jax.device_get(metrics))
    return found, jax.device_get(state["params"])


@pytest.mark.parametrize("preference", [Preference(), RPO], ids=["dpo", "rpo"])
def test_the_loss_is_numpys(preference: Preference) -> None:
    arrays = rows(1, ROWS, T)
    (metrics,), _ = update(make(preference, MeshConfig(), 1), arrays, 1)
    logits = llama.logits(
        random_params(CONFIG), CONFIG, COMPUTE, arrays["tokens"], arrays["positions"], arrays["segments"]
    )
    wanted = expected(np.asarray(logits), arrays, preference)
    np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-5)
    names = [PAIR_SUMS.index(name) for name in ("pairs", "chosen", "rejected", "right")]
    np.testing.assert_allclose(metrics["pairs"][names], wanted["by_group"], rtol=1e-5, atol=1e-5)
    assert metrics["pairs"][PAIR_SUMS.index("pairs")].sum() > ROWS
    assert metrics["tokens"][0] == arrays["weights"].sum()


@pytest.fixture(scope="module")
def alone() -> tuple[list[Any], Any]:
    """Three updates on one device, all rows at once."""
    return update(make(RPO, MeshConfig(), 1), rows(2, ROWS, T), 1, count=3)


LAYOUTS = [
    pytest.param(MeshConfig(), 1, 16, id="16 microbatches of a row", marks=pytest.mark.slow),
    pytest.param(MeshConfig(fsdp=2, tensor=2, replica=2), 8, 2, id="replica-fsdp-tensor", marks=pytest.mark.slow),
    pytest.param(MeshConfig(fsdp=2, context=2, tensor=2), 8, 4, id="context"),
]


@pytest.mark.parametrize(("mesh", "devices", "A"), LAYOUTS)
def test_losses_are_equal_on_meshes_and_accumulations(alone: Any, mesh: MeshConfig, devices: int, A: int) -> None:
    """Rows hold unequal numbers of pairs, one none at all, so a mean of means would differ."""
    found, params = update(make(RPO, mesh, devices), rows(2, ROWS, T), A, count=3)
    for one, other in zip(found, alone[0], strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
        np.testing.assert_allclose(one["grad_norm"], other["grad_norm"], rtol=1e-4)
        np.testing.assert_allclose(one["pairs"], other["pairs"], rtol=2e-3, atol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), params, alone[1])


def test_the_gradient_is_that_of_the_loss() -> None:
    """By differentiating NumPy's formula through plain logits, a frozen table's part included."""
    arrays = rows(3, ROWS, T)
    objective = preferred(RPO, 8, GROUPS)
    config = dataclasses.replace(CONFIG, tied_embeddings=False)
    params, part = random_params(config), arrays | {"chosen_share": share(arrays)}

    def ours(params: Any) -> jax.Array:
        x = llama.hidden(params, config, COMPUTE, arrays["tokens"], arrays["positions"], arrays["segments"])
        return objective.minimised(x, llama.head_table(params, config), part, False)[0]

    def plain(params: Any) -> jax.Array:
        logits = llama.logits(params, config, COMPUTE, arrays["tokens"], arrays["positions"], arrays["segments"])
        log = jnp.take_along_axis(jax.nn.log_softmax(logits), arrays["targets"][..., None], -1)[..., 0]
        log, total = log * arrays["weights"], jnp.float32(0)
        for segment in range(1, int(arrays["segments"].max()), 2):
            good, bad = ((arrays["segments"] == segment + side).astype(np.float32) for side in (0, 1))
            sums = [jnp.sum((log - arrays["reference"]) * half, axis=1) for half in (good, bad)]
            margin = RPO.beta * (sums[0] - sums[1])
            smooth = RPO.label_smoothing
            loss = -(1 - smooth) * jax.nn.log_sigmoid(margin) - smooth * jax.nn.log_sigmoid(-margin)
            loss = loss - RPO.rpo_alpha * share(arrays) * jnp.sum(log * good, axis=1)
            total += jnp.sum(jnp.where(good.any(axis=1), loss, 0.0))
        return total

    wanted, found = jax.value_and_grad(plain)(params), jax.value_and_grad(ours)(params)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found[1], wanted[1])


def share(arrays: dict[str, np.ndarray]) -> np.float32:
    """Pairs over the chosen answers' tokens."""
    pairs = (arrays["segments"].max(axis=1) // 2).sum()
    return np.float32(pairs / arrays["weights"][arrays["segments"] % 2 == 1].sum())


def test_answers_are_the_segments_sums() -> None:
    step, arrays = make(Preference(), MeshConfig(fsdp=4, replica=2), 8), rows(4, ROWS, T)
    params = jax.device_put(random_params(CONFIG), step.state_shardings["params"])
    where = jax.sharding.NamedSharding(step.batch_sharding.mesh, jax.P(*step.batch_sharding.spec[1:]))
    found = np.asarray(step.answers(params, jax.device_put(arrays, where)))
    logits = llama.logits(
        random_params(CONFIG), CONFIG, COMPUTE, arrays["tokens"], arrays["positions"], arrays["segments"]
    )
    log = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), arrays["targets"][..., None], -1)[..., 0]
    assert found.shape == (ROWS, 2 * most_pairs(T))
    for segment in range(found.shape[1]):
        wanted = (log * arrays["weights"] * (arrays["segments"] == segment + 1)).sum(axis=1)
        np.testing.assert_allclose(found[:, segment], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("setting", [{"beta": 0.0}, {"rpo_alpha": -1.0}, {"label_smoothing": 0.5}])
def test_settings_without_meaning_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        Preference(**setting)
