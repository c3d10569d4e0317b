"""Will it fit? Arithmetic on bytes before anything is touched: seconds, no compilation.

The activation figure is an estimate from shapes; the exact one is the compiler's.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from t_elaine.errors import UserError
from t_elaine.model import llama
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.model.lora import Lora
from t_elaine.parallel import sharding as layouts
from t_elaine.training.activations import activations
from t_elaine.training.trained import Trained

HOST_RESERVE = 2 << 30  # the interpreter, libraries and the data loader, where the host's memory is the devices' too


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes on one device.

    Args:
        parameters: its pieces of them, a frozen base's and the adapters beside it too.
        moments: the optimizer's.
        gradients: its pieces of them.
        activations: at the worst moment.
        kept: those of them that are surely alive together, when the backward pass begins.
    """

    parameters: int
    moments: int
    gradients: int
    activations: int
    kept: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.moments + self.gradients + self.activations

    @property
    def least(self) -> int:
        """What is surely there at once: the state, and what the backward pass keeps of the layers."""
        return self.parameters + self.moments + self.kept


def need(
    config: LlamaConfig,
    compute: ComputeConfig,
    mesh: Mesh,
    rows_per_device: int,
    length: int,
    rules: Mapping[str, tuple[str, ...]] = layouts.RULES,
    first_moment_dtype: str = "float32",
    microbatches: int = 1,
    lora: Lora | None = None,
    averaged: bool = False,
) -> Need:
    """Bytes that one device needs for a training step.

    Parameters, gradients and the second moment in float32, the first in its own dtype, in this device's pieces;
    activations: see `activations`. Where gradients of several microbatches are added up, one's stand beside the sum.
    With adapters these three are theirs alone, and the frozen base is held as it is kept. A running average of what is
    trained (`averaged`) counts with the moments.
    """
    trained = Trained(config, lora)
    parameters = _held(trained.shapes(), trained.shardings(mesh, rules))
    frozen = _held(trained.frozen_shapes(), trained.frozen_shardings(mesh, rules))
    used = activations(config, compute, mesh.shape, rows_per_device, length, frozen=lora is not None)
    return Need(
        parameters=parameters + frozen,
        moments=parameters * (1 + averaged) + (parameters if first_moment_dtype == "float32" else parameters // 2),
        gradients=parameters * min(microbatches, 2),
        activations=used.total,
        kept=used.kept,
    )


def _held(shapes: Any, shardings: Any) -> int:
    """Bytes of one device's pieces."""
    piece = lambda s, where: math.prod(where.shard_shape(s.shape)) * jnp.dtype(s.dtype).itemsize  # noqa: E731
    return sum(jax.tree.leaves(jax.tree.map(piece, shapes, shardings)))


def parameter_count(config: LlamaConfig) -> int:
    """Parameters of the model."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(llama.parameter_shapes(config)))


def state_bytes(
    config: LlamaConfig, first_moment_dtype: str = "float32", lora: Lora | None = None, averaged: bool = False
) -> int:
    """Bytes of what is trained, its moments and average, on all devices and counted once: those of a checkpoint."""
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(Trained(config, lora).shapes()))
    return count * (4 + 4 + (4 if first_moment_dtype == "float32" else 2) + 4 * averaged)


def device_memory(mesh: Mesh) -> tuple[int, str]:
    """(bytes for each device, where the figure is from); simulated CPU devices share the host's memory."""
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        local = sum(d.process_index == device.process_index for d in mesh.devices.flat)
        return max(min(host, container_limit() or host) - HOST_RESERVE, 0) // local, "the host's memory"
    stats: dict[str, Any] = device.memory_stats() or {}
    return int(stats.get("bytes_limit", 0)), f"{device.device_kind}'s memory"


def container_limit() -> int | None:
    """The memory limit of this process's control group, if it has one."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(name, encoding="ascii") as handle:
                text = handle.read().strip()
        except OSError:
            continue
        if text.isdecimal():
            return int(text)
    return None


def check_fit(
    config: LlamaConfig,
    compute: ComputeConfig,
    mesh: Mesh,
    rows_per_device: int,
    length: int,
    first_moment_dtype: str = "float32",
    microbatches: int = 1,
    lora: Lora | None = None,
    averaged: bool = False,
) -> tuple[Need, int]:
    """Refuse a run that cannot fit, with the bytes it needs, the bytes there, and what would make it fit.

    Returns:
        what it needs and what is there, a device.
    """
    further: dict[str, Any] = {"first_moment_dtype": first_moment_dtype, "microbatches": microbatches, "lora": lora}
    further["averaged"] = averaged
    wanted = need(config, compute, mesh, rows_per_device, length, **further)
    there, source = device_memory(mesh)
    if not there or wanted.total <= there:
        return wanted, there
    what = (
        f"a model of {parameter_count(config) / 1e9:.2f} B parameters needs about {text(wanted.total)} "
        f"on each of {mesh.size} device(s) (parameters {text(wanted.parameters)}, optimizer {text(wanted.moments)}, "
        f"gradients {text(wanted.gradients)}, activations {text(wanted.activations)}); "
        f"there are {text(there)} for each ({source})"
    )
    raise UserError(what, "LlamaConfig, MeshConfig, rows_per_device", remedy(config, compute, mesh, wanted, there))


def remedy(config: LlamaConfig, compute: ComputeConfig, mesh: Mesh, wanted: Need, there: int) -> str:
    """What would make it fit, in the order of how little it changes."""
    fixed = wanted.total - wanted.activations
    ways = []
    if fixed < there:
        if compute.remat != "full":
            ways.append('ComputeConfig.remat = "full"')
        ways.append("fewer rows_per_device or a shorter Mixture.sequence_length")
    pieces = mesh.shape["fsdp"] * mesh.shape["context"] * mesh.shape["tensor"]
    whole = fixed * pieces
    devices = math.ceil(whole / max(there - wanted.activations, there // 2, 1))
    power = 1 << max(devices - 1, 1).bit_length()
    if mesh.devices.flat[0].platform == "cpu":
        hosts = math.ceil((whole + wanted.activations) / 2**30)
        ways.append(f"a machine with {hosts} GiB, or accelerators: {accelerators(whole)}")
    else:
        ways.append(f"about {power} such devices (MeshConfig.fsdp = {power})")
    largest = int(there * 0.8 / 16 * pieces)
    ways.append(f"a model of at most {largest / 1e9:.2f} B parameters (a file in gin_configs/models)")
    return "; or ".join(ways)


def accelerators(whole: int) -> str:
    """How many common accelerators hold `whole` bytes of parameters, moments and gradients in 70 % of their memory."""
    kinds = (("TPU v5e", 16), ("TPU v5p", 95), ("H100", 80))
    counts = ((name, math.ceil(whole / (gigabytes * 1e9 * 0.7))) for name, gigabytes in kinds)
    return ", ".join(f"{1 << (count - 1).bit_length()} {name}" for name, count in counts)


def text(count: int) -> str:
    """Bytes in GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
