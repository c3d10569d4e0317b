"""Meshes over slices and nodes: copies lie on slices, inner axes inside one process; what does not go is refused."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from t_elaine.errors import UserError
from t_elaine.parallel.mesh import AXES, MeshConfig, described, make_mesh

# libtpu prints to both outputs and wants a process of its own.
PROGRAM = """
import json, sys
from jax.experimental import topologies
from t_elaine.errors import UserError
from t_elaine.parallel.mesh import MeshConfig, described, make_mesh, slice_of
found = []
for name, slices, sizes in json.loads(sys.argv[1]):
    given = {"num_slices": slices} if slices > 1 else {}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **given).devices
    try:
        mesh = make_mesh(MeshConfig(**sizes), devices)
        lies = [sorted({slice_of(device) or 0 for device in row.flat}) for row in mesh.devices]
        told = described(mesh, {device.process_index: "host" for device in devices})[-1]
        found.append({"shape": list(mesh.shape.values()), "slices": lies, "told": told})
    except UserError as error:
        found.append({"refused": error.text()})
print("found", json.dumps(found))
"""


def on_topologies(*wanted: tuple[str, int, dict[str, int]]) -> list[dict[str, Any]]:
    """What `make_mesh` makes of TPUs that are not there: (topology, slices, sizes)."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(wanted)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=120)
    line = next((line for line in done.stdout.splitlines() if line.startswith("found ")), None)
    assert line is not None, done.stdout + done.stderr
    return list(json.loads(line.removeprefix("found ")))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: t-elaine[plan]")
def test_copies_lie_on_slices_of_tpus() -> None:
    two, four, spanning, torus = on_topologies(
        ("v5e:4x4", 2, {"replica": 2, "tensor": 2}),
        ("v5e:4x4", 2, {"replica": 4}),
        ("v5e:4x4", 2, {}),
        ("v5p:4x4x4", 1, {"context": 2, "tensor": 4}),
    )
    assert two["shape"] == [2, 8, 1, 2] and two["slices"] == [[0], [1]]
    assert two["told"] == "mesh of 32 device(s): replica=2 (DCN), fsdp=8 (ICI), context=1, tensor=2 (ICI)"
    assert four["slices"] == [[0], [0], [1], [1]]
    assert "replica=1 on 2 slices of 16 chips" in spanning["refused"]
    assert "make MeshConfig.replica 2 or a multiple" in spanning["refused"]
    assert torus["shape"] == [1, 8, 2, 4]


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A device as far as a mesh looks at it."""

    id: int
    process_index: int
    device_kind: str = "NVIDIA H100"
    platform: str = "gpu"


def test_inner_axes_stay_inside_a_node() -> None:
    nodes = [Gpu(id=8 * process + i, process_index=process) for process in range(2) for i in range(8)]
    shuffled = [nodes[i] for i in np.random.default_rng(0).permutation(16)]
    mesh = make_mesh(MeshConfig(replica=2, tensor=2), shuffled)  # type: ignore[arg-type]
    assert [sorted({device.process_index for device in copy.flat}) for copy in mesh.devices] == [[0], [1]]
    assert mesh.axis_types == (AxisType.Auto,) * len(AXES)
    told = described(mesh, {0: "gpu01", 1: "gpu02"})
    assert told[:2] == ["process 0 on gpu01: 8 x NVIDIA H100", "process 1 on gpu02: 8 x NVIDIA H100"]
    assert told[2] == "mesh of 16 device(s): replica=2 (network), fsdp=4 (one host), context=1, tensor=2 (one host)"
    assert "replica=2 (one host)" in described(mesh, {0: "gpu01", 1: "gpu01"})[2], "two processes of one machine"


def test_simulated_devices_make_every_axis() -> None:
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, context=2, tensor=-1), jax.devices()[:8])
    assert tuple(mesh.shape.values()) == (2, 2, 2, 1)
    with pytest.raises(UserError, match="does not use 8 device"):
        make_mesh(MeshConfig(replica=3), jax.devices()[:8])
