"""Losses and gradients are those of one device, tensor by tensor, on every mesh of eight."""

from typing import Any

import jax
import numpy as np
import pytest

from t_elaine.parallel.mesh import MeshConfig
from tests.training.test_step import batch, make

TOLERANCE = 1e-5  # of a tensor's norm (docs/design.md: float32, another order of summation)
MESHES = [
    pytest.param(MeshConfig(), 1, id="8x1"),
    pytest.param(MeshConfig(replica=2), 2, id="2x4 replica"),
    pytest.param(MeshConfig(fsdp=4, tensor=2), 2, id="4x2 tensor", marks=pytest.mark.slow),
    pytest.param(MeshConfig(replica=2, fsdp=2, tensor=2), 2, id="2x2x2"),
    pytest.param(MeshConfig(fsdp=2, context=2, tensor=2), 4, id="2x2x2 context", marks=pytest.mark.slow),
]


def first_step(mesh: MeshConfig, devices: int, A: int) -> tuple[float, dict[str, Any]]:
    """Loss, and the gradients as AdamW's first moment after one step holds them (a tenth of them, clipped)."""
    step, state = make(mesh, devices)
    state, metrics = step.run(state, jax.device_put(batch(A, 16 // A), step.batch_sharding))
    return float(metrics["loss"]), jax.device_get(state["opt_state"]["mu"])


@pytest.fixture(scope="module")
def alone() -> tuple[float, dict[str, Any]]:
    return first_step(MeshConfig(), 1, 1)


@pytest.mark.parametrize(("mesh", "A"), MESHES)
def test_gradients_are_those_of_one_device(alone: tuple[float, dict[str, Any]], mesh: MeshConfig, A: int) -> None:
    loss, gradients = first_step(mesh, 8, A)
    assert loss == pytest.approx(alone[0], rel=TOLERANCE)
    wanted = jax.tree.leaves_with_path(alone[1])
    for (path, there), here in zip(wanted, jax.tree.leaves(gradients), strict=True):
        off = np.linalg.norm(np.asarray(here, np.float64) - there) / np.linalg.norm(np.asarray(there, np.float64))
        assert off <= TOLERANCE, (jax.tree_util.keystr(path), off)
