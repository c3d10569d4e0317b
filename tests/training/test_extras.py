"""What an optimizer may keep beside its moments: the average of the weights, and the norms that tell a spike."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.checkpoints.arrays import named
from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.checkpoints.writing import Checkpointing, Checkpoints
from t_elaine.errors import UserError
from t_elaine.hf import averaged, mapping
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.training import fit, sinks, start
from t_elaine.training import optimizer as optim
from t_elaine.training import step as steps
from t_elaine.training.optimizer import AdamW, Schedule, learning_rate
from tests.random_params import random_params
from tests.training.test_step import BYTES, COMPUTE, CONFIG, GROUPS, batch

KEPT = AdamW(average=0.9, skip_above=3.0, skip_after=3, skip_memory=0.5)
META = CheckpointMeta(
    step=0, tokens=0, row=0, vocabulary_sha256="v", model=dataclasses.asdict(CONFIG), config_hash="", parent=None
)


def updates(adamw: AdamW, norms: list[float]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """States after updates with gradients of these norms, and the last one's metrics."""
    params = {"w": jnp.array([3.0, -4.0]), "b": jnp.array([1.0])}
    state = steps.init_state(params, extras=adamw.extras)
    mask, rate = {"w": True, "b": False}, learning_rate(Schedule(peak=0.1, warmup_steps=1), 100)
    apply = jax.jit(partial(steps.apply, adamw, mask, rate))
    sums, after, metrics = jnp.ones((4, 1), jnp.float32), [], {}
    for norm in norms:
        gradients = {"w": jnp.array([0.6, 0.0]) * norm, "b": jnp.array([0.8]) * norm}
        state, metrics = apply(state, gradients, jnp.float32(1.0), sums, jnp.float32(1.0))
        after.append(jax.device_get(state))
    return after, metrics


def test_the_average_follows_the_weights() -> None:
    after, _ = updates(AdamW(average=0.9), [1.0, 2.0, 0.5, 1.0])
    expected = np.array([3.0, -4.0], np.float32)
    for state in after:
        expected = 0.9 * expected + 0.1 * state["params"]["w"]
        np.testing.assert_allclose(state["opt_state"]["average"]["w"], expected, rtol=1e-6)


def test_a_spike_is_skipped_and_leaves_no_trace() -> None:
    """Above 3 × the running mean, after 3 updates; the mean then goes on as if it had not been."""
    after, metrics = updates(KEPT, [1.0, 9.0, 2.0, 4.0, 12.1])
    assert [int(state["skipped"]) for state in after] == [0, 0, 0, 0, 1]
    # A plain mean at first: 1, 5, then half of each new one: 3.5, 3.75.
    means = [float(state["opt_state"]["spikes"]["mean"]) for state in after]
    np.testing.assert_allclose(means, [1, 5, 3.5, 3.75, 3.75], rtol=1e-6)
    before, last = after[3:]
    assert int(metrics["skipped"]) == int(last["skipped_in_a_row"]) == 1 and int(last["step"]) == 5
    jax.tree.map(np.testing.assert_array_equal, before["params"], last["params"])
    jax.tree.map(np.testing.assert_array_equal, before["opt_state"], last["opt_state"])
    record = {"kind": "train", "step": 5, "loss": 1.0, "grad_norm": 12.1, "skipped": 1, "learning_rate": 0.1}
    assert "1.0000, a spike, skipped" in sinks.line_of(record, 9)
    assert "not finite, skipped" in sinks.line_of({**record, "loss": None}, 9)


def test_what_is_not_finite_does_not_reach_the_averages() -> None:
    after, _ = updates(KEPT, [1.0, float("nan"), 1.0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after[-1]["opt_state"]))
    jax.tree.map(np.testing.assert_array_equal, after[0]["opt_state"], after[1]["opt_state"])


@pytest.fixture(scope="module")
def step() -> steps.Step:
    rate = learning_rate(Schedule(peak=1e-2, warmup_steps=2), 10)
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    return steps.make_step(CONFIG, COMPUTE, KEPT, rate, mesh, GROUPS, BYTES)


def fresh(step: steps.Step) -> Any:
    params = jax.device_put(random_params(CONFIG), step.state_shardings["params"])
    make = partial(steps.init_state, extras=KEPT.extras)
    return jax.jit(make, out_shardings=step.state_shardings, donate_argnums=0)(params)


def go_on(step: steps.Step, state: Any, first: int, last: int) -> Any:
    for number in range(first, last):
        part = jax.device_put(batch(1, 16, number), step.batch_sharding)
        with jax.transfer_guard("disallow"):  # what is a spike is decided on the devices
            state, _ = step.run(state, part)
    return state


@pytest.fixture(scope="module")
def saved(step: steps.Step, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    folder = tmp_path_factory.mktemp("extras") / "run"
    params, rest = start.split_state(go_on(step, fresh(step), 0, 3))
    with Checkpoints(str(folder), Checkpointing()) as checkpoints:
        checkpoints.save(params, dataclasses.replace(META, step=3), rest)
    return folder


def resumed(saved: Path, shapes: Any, told: list[str]) -> Any:
    return start.begin(str(saved), start.Start(), CONFIG, shapes, "v", 0, told.append).state


def test_a_resumed_run_is_bitwise_the_same(step: steps.Step, saved: Path) -> None:
    told: list[str] = []
    whole = go_on(step, fresh(step), 0, 6)
    again = go_on(step, resumed(saved, step.state_shapes, told), 3, 6)
    assert set(again["opt_state"]) == {"mu", "nu", "count", "average", "spikes"}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole), jax.device_get(again))
    assert not any("kept beside" in line for line in told)


def test_a_resume_may_leave_them_out_or_add_them(step: steps.Step, saved: Path, tmp_path: Path) -> None:
    """The weights and moments are the same; an average that is new begins with the weights."""
    whole = resumed(saved, step.state_shapes, [])
    mesh = step.batch_sharding.mesh
    plain = steps.state_shapes(CONFIG, steps.state_shardings(CONFIG, mesh, steps.layouts.RULES))
    told: list[str] = []
    without = resumed(saved, plain, told)
    assert set(without["opt_state"]) == {"mu", "nu", "count"} and any("it was average, spikes" in line for line in told)
    jax.tree.map(np.testing.assert_array_equal, without["opt_state"]["nu"], whole["opt_state"]["nu"])
    params, rest = start.split_state(without)
    with Checkpoints(str(tmp_path / "plain"), Checkpointing()) as checkpoints:
        checkpoints.save(params, dataclasses.replace(META, step=3), rest)
    added = resumed(tmp_path / "plain", step.state_shapes, told)
    jax.tree.map(np.testing.assert_array_equal, added["opt_state"]["average"], added["params"])
    assert int(added["opt_state"]["spikes"]["seen"]) == 0 and any("it was nothing" in line for line in told)
    go_on(step, added, 3, 4)


def test_the_average_can_be_exported(step: steps.Step, saved: Path) -> None:
    state = jax.device_get(resumed(saved, step.state_shapes, []))
    source, kept = averaged.average_source(str(saved), 3), named(state["opt_state"]["average"])
    for weight in mapping.weights(CONFIG):
        whole = kept[weight.path]
        wanted, layer = (whole[1], 1) if weight.stacked else (whole, None)
        np.testing.assert_array_equal(source(weight, layer, None), wanted)
    assert not np.array_equal(kept["embed/table"], state["params"]["embed"]["table"])


def test_memory_counts_the_average() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    plain, kept = (fit.need(CONFIG, COMPUTE, mesh, 1, 16, averaged=averaged) for averaged in (False, True))
    assert kept.moments - plain.moments == plain.parameters == kept.total - plain.total


@pytest.mark.parametrize("settings", [{"average": 1.0}, {"average": 0.0}, {"skip_above": 1.0}, {"skip_memory": 2.0}])
def test_settings_that_cannot_be_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        AdamW(**settings)


def test_without_them_nothing_is_kept() -> None:
    assert AdamW().extras == () and set(optim.init_optimizer({"w": jnp.ones(2)})) == {"mu", "nu", "count"}
