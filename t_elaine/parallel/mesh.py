"""Device meshes: the only place that makes one. Four axes, always all present, in this order.

Does not say what is laid out along them (`sharding`) and starts no hosts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from t_elaine.errors import UserError

AXES = ("replica", "fsdp", "context", "tensor")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; one of them may be -1: what the others leave.

    Args:
        replica: whole copies, between slices joined by a slow network; gradients are summed over it.
        fsdp: rows of the batch, and parameters in pieces (gathered layer by layer).
        context: pieces of each row (keys and values are gathered layer by layer), and of parameters, as fsdp.
        tensor: heads, mlp and vocabulary.
    """

    replica: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """Sizes along `AXES` for a number of devices. Raises UserError where they do not multiply to it."""
    sizes = list(astuple(config))
    text = ", ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"a mesh of {text}", "MeshConfig", "sizes are positive; one of them may be -1")
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) != devices:
        raise UserError(
            f"a mesh of {text} does not use {devices} device(s) exactly",
            "MeshConfig",
            f"make the sizes multiply to {devices}, or give -1 for one and divisors of {devices} for the others",
        )
    return tuple(sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the given devices (all of them by default), ordered by the network where JAX knows it.

    Axes are of type Auto: the compiler places what is not constrained (JAX's own default, Explicit, refuses constraints
    and embedding gathers).
    """
    chosen = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(config, len(chosen))
    types = (AxisType.Auto,) * len(AXES)
    if len({device.process_index for device in chosen}) == 1 and chosen[0].platform == "cpu":
        return Mesh(np.asarray(chosen).reshape(shape), AXES, axis_types=types)
    return jax.make_mesh(shape, AXES, axis_types=types, devices=chosen)


def described(mesh: Mesh, hosts: Mapping[int, str]) -> list[str]:
    """A table for people: the hosts with their devices, the axes with their sizes and links.

    Args:
        mesh: of all devices.
        hosts: name by process.
    """
    devices = list(mesh.devices.flat)
    rows = []
    for process, name in sorted(hosts.items()):
        own = [device for device in devices if device.process_index == process]
        kinds = ", ".join(sorted({device.device_kind for device in own}))
        slices = {number for device in own if (number := slice_of(device)) is not None}
        part = f", slice {', '.join(map(str, sorted(slices)))}" if slices else ""
        rows.append(f"process {process} on {name}: {len(own)} x {kinds}{part}")
    if len(rows) > 20:
        rows = [*rows[:16], f"… {len(rows) - 16} more"]
    axes = [f"{axis}={size} ({link(mesh, axis)})" if size > 1 else f"{axis}=1" for axis, size in mesh.shape.items()]
    return [*rows, f"mesh of {len(devices)} device(s): {', '.join(axes)}"]


def slice_of(device: jax.Device) -> int | None:
    """The TPU slice that a device belongs to; None where there is no such thing."""
    return getattr(device, "slice_index", None) if device.platform == "tpu" else None


def link(mesh: Mesh, axis: str) -> str:
    """What joins neighbours along an axis: "ICI" or "DCN" on TPUs, "one host" or "network" elsewhere."""
    lines = np.moveaxis(mesh.devices, AXES.index(axis), -1).reshape(-1, mesh.shape[axis])
    if mesh.devices.flat[0].platform == "tpu":
        return "DCN" if any(len({slice_of(device) for device in line}) > 1 for line in lines) else "ICI"
    return "network" if any(len({device.process_index for device in line}) > 1 for line in lines) else "one host"
