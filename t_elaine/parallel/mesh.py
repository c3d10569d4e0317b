"""Device meshes: the only place that makes one. Four axes, always all present, in this order.

Does not say what is laid out along them (`sharding`) and starts no hosts.
"""

import math
from collections.abc import Sequence
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
        context: pieces of each row.
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
