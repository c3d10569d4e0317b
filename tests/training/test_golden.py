"""Guards against drift: what the partitioned step sends and holds, and the losses of 20 steps on every layout."""

import math
import re
from typing import Any

import jax
import numpy as np
import pytest

from t_elaine.model import llama
from t_elaine.parallel.mesh import MeshConfig
from tests import programs
from tests.training import golden

LARGEST_COPY = 1024  # bytes of a parameter that every device may hold whole: norms, no matrix

LAYOUTS = [
    pytest.param(MeshConfig(fsdp=1), 1, 1, {}, id="alone"),
    pytest.param(MeshConfig(), 8, 1, {}, id="fsdp"),
    pytest.param(MeshConfig(fsdp=2), 2, 4, {}, id="accumulated", marks=pytest.mark.slow),
    pytest.param(MeshConfig(replica=2, fsdp=2, tensor=2), 8, 1, {}, id="replica-fsdp-tensor", marks=pytest.mark.slow),
    pytest.param(
        MeshConfig(fsdp=2, context=2, tensor=2), 8, 1, {"attention": "blocked", "attention_block": 16}, id="context"
    ),
]


@pytest.mark.parametrize(("mesh", "devices", "accumulation", "compute"), LAYOUTS)
def test_the_golden_losses(mesh: MeshConfig, devices: int, accumulation: int, compute: dict[str, Any]) -> None:
    wanted = golden.recorded()["losses"]
    assert len(wanted) == golden.STEPS and wanted[-1] < wanted[0] - 0.3
    np.testing.assert_allclose(golden.losses(mesh, devices, accumulation, **compute), wanted, rtol=1e-5)


@pytest.fixture(scope="module")
def program() -> str:
    return programs.partitioned(programs.tiny_step(MeshConfig()))


def matrices() -> set[tuple[int, ...]]:
    """Shapes of a layer's matrices as they are gathered (heads flattened), and of the tables."""
    shapes, roles = llama.parameter_shapes(programs.CONFIG), llama.parameter_roles(programs.CONFIG)
    found = set()
    for (path, leaf), role in zip(jax.tree.leaves_with_path(shapes), jax.tree.leaves(roles), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = leaf.shape[1:] if name.startswith("layers/") else leaf.shape
        if role in ("matrix", "embedding"):
            width = shape[-1] if name.endswith("/o") else shape[0]
            found |= {(width, math.prod(shape) // width), (math.prod(shape) // width, width)}
    return found


def test_no_large_parameter_is_whole_on_every_device() -> None:
    """Read from the compiled program: what it takes, not what was asked for."""
    step = programs.tiny_step(MeshConfig())
    (state, _), _ = programs.compiled(step).input_shardings
    for (path, leaf), where in zip(jax.tree.leaves_with_path(step.state_shapes), jax.tree.leaves(state), strict=True):
        held, whole = (math.prod(shape) * leaf.dtype.itemsize for shape in (where.shard_shape(leaf.shape), leaf.shape))
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert held == whole // 8 or whole <= LARGEST_COPY, f"{name}: {held} of {whole} bytes on each device"


def test_nothing_else_is_gathered(program: str) -> None:
    gathered = [name for name in programs.collectives_of(program) if name.startswith("all-gather")]
    assert gathered
    for name in gathered:
        dtype, sizes = re.findall(r" (\w+)\[([\d,]*)\]", name)[0]
        shape = tuple(int(n) for n in sizes.split(",") if n != "1")
        assert dtype == "bf16" and shape in matrices(), f"unexpected: {name}"


def test_collectives_are_those_recorded(program: str) -> None:
    found, record = programs.collectives_of(program), golden.recorded()
    told = f"recorded {record['collectives']}\nfound    {found}\nremade by: {record['command']}"
    assert abs(programs.bytes_of(found) / record["collective_bytes"] - 1) <= 0.01, told
    count = lambda parts: {name: n for name, n in parts.items() if name.startswith("all-gather")}  # noqa: E731
    assert count(found) == count(record["collectives"]), told


def test_the_guards_can_fail() -> None:
    """Float32 gathers and a mesh that keeps copies are seen."""
    wide = programs.collectives_of(programs.partitioned(programs.tiny_step(MeshConfig(), golden_float32())))
    assert programs.bytes_of(wide) > 1.5 * golden.recorded()["collective_bytes"]
    copies = programs.tiny_step(MeshConfig(replica=8, fsdp=1))
    gate = copies.state_shapes["params"]["layers"]["mlp"]["gate"]
    assert gate.sharding.shard_shape(gate.shape) == gate.shape


def golden_float32() -> Any:
    from t_elaine.model.config import ComputeConfig

    return ComputeConfig(dtype="float32", loss_chunk=8, attention="blocked", attention_block=16)
