"""Device meshes: the only place that makes one. Four axes, always all present, in this order.

Does not say what is laid out along them (`sharding`) and starts no hosts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import jax
import numpy as np
from jax.experimental import mesh_utils
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


def mesh_shape(config: MeshConfig, devices: int, slices: int = 1) -> tuple[int, ...]:
    """Sizes along `AXES` for a number of devices in all, on so many slices.

    Raises:
        UserError: the sizes do not multiply to the devices, or a copy would span two slices.
    """
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
    if sizes[0] % slices:
        wanted = ", ".join(f"{slices * n}" for n in (1, 2, 4) if devices % (slices * n) == 0)
        what = f"replica={sizes[0]} on {slices} slices of {devices // slices} chips: a copy must not span two slices"
        mend = f"make MeshConfig.replica {slices} or a multiple of it (of {wanted}), and leave another axis at -1"
        raise UserError(what, "MeshConfig.replica", mend)
    return tuple(sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the given devices (all of them by default), ordered by the network that joins them.

    On TPUs of several slices `replica` runs between slices (DCN) and the others inside one (ICI). Elsewhere the devices
    of a process stay together: the last axes lie inside one, the first between them. Axes are of type Auto: the
    compiler places what is not constrained (JAX's own default, Explicit, refuses constraints and embedding gathers).

    Raises:
        UserError: the sizes do not multiply to the devices, `replica` does not go with the slices, or the network of a
            slice has no such mesh.
    """
    chosen = jax.devices() if devices is None else list(devices)
    slices = len({slice_of(device) for device in chosen})
    shape = mesh_shape(config, len(chosen), slices)
    if chosen[0].platform == "tpu":
        placed = _on_tpu(shape, chosen, slices)
    else:
        placed = np.empty(len(chosen), object)
        placed[:] = sorted(chosen, key=lambda device: (device.process_index, device.id))
    return Mesh(placed.reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _on_tpu(shape: tuple[int, ...], devices: Sequence[jax.Device], slices: int) -> np.ndarray:
    replica, *inside = shape
    within = (replica // slices, *inside)
    between = (slices, *(1 for _ in inside))
    faults = []
    # Whole axes of the torus for each logical axis where that is possible. On v5e JAX always splits them.
    for split in (True,) if devices[0].device_kind in ("TPU v5 lite", "TPU v5e") else (False, True):
        try:
            if slices == 1:
                return mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=split)
            return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=split)
        except (NotImplementedError, ValueError, AssertionError) as error:
            faults.append(str(error).splitlines()[0] if str(error) else repr(error))
    text = ", ".join(f"{name}={size}" for name, size in zip(AXES, within, strict=True))
    kind = f"{len(devices) // slices} {devices[0].device_kind}"
    what = f"the network of a slice of {kind} has no mesh of {text}: {faults[-1]}"
    raise UserError(what, "MeshConfig", "take powers of two, or fsdp=-1 and 1 for the others")


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
    axes = [
        f"{axis}={size} ({link(mesh, axis, hosts)})" if size > 1 else f"{axis}=1" for axis, size in mesh.shape.items()
    ]
    return [*rows, f"mesh of {len(devices)} device(s): {', '.join(axes)}"]


def slice_of(device: jax.Device) -> int | None:
    """The TPU slice that a device belongs to; None where there is no such thing."""
    return getattr(device, "slice_index", None) if device.platform == "tpu" else None


def link(mesh: Mesh, axis: str, hosts: Mapping[int, str]) -> str:
    """What joins neighbours along an axis: "ICI" or "DCN" on TPUs, "one host" or "network" elsewhere.

    Args:
        mesh: of all devices.
        axis: one of `AXES`.
        hosts: name by process; several processes may be on one host.
    """
    lines = np.moveaxis(mesh.devices, AXES.index(axis), -1).reshape(-1, mesh.shape[axis])
    if mesh.devices.flat[0].platform == "tpu":
        return "DCN" if any(len({slice_of(device) for device in line}) > 1 for line in lines) else "ICI"
    return "network" if any(len({hosts[device.process_index] for device in line}) > 1 for line in lines) else "one host"
