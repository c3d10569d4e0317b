"""Which attention runs where: a table, and what is taken instead where a choice is not in it. Computes nothing."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

from t_elaine.model.config import ComputeConfig
from t_elaine.model.context import check_length
from t_elaine.model.tpu import LANES, flash_bytes, own_memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """Hardware on which something was checked, and how.

    Args:
        ran: the repository's checks were run on it.
        interpreted: they were run on it with the kernel's program computed in plain JAX, not on the kernel's own.
        compiled: whole steps were compiled for it, without being run.
    """

    ran: tuple[str, ...] = ()
    interpreted: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """One way to compute attention.

    Args:
        platforms: JAX's names of those that it is made for.
        block: row length (a device's piece of it, where rows are cut) and block must be multiples of this.
        power_of_two: the block must be one.
        memory: (row length, head size, block) → bytes of a chip's own memory that it needs, where that is a limit.
        whole: where it was checked, on rows that are whole.
        pieces: where it was checked on rows that are cut over devices (mesh axis `context`); None: it cannot do that.
        instead: what is taken where only that or that memory is missing.
    """

    platforms: tuple[str, ...]
    block: int = 1
    power_of_two: bool = False
    memory: Callable[[int, int, int], int] | None = None
    whole: Checked
    pieces: Checked | None
    instead: str = "reference"


HERE = Checked(ran=("x86-64",))
EVERYWHERE = ("cpu", "gpu", "tpu")
KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "reference": Kernel(platforms=EVERYWHERE, whole=HERE, pieces=HERE),
        "blocked": Kernel(platforms=EVERYWHERE, whole=Checked(ran=HERE.ran, compiled=("TPU v3",)), pieces=HERE),
        "splash": Kernel(
            platforms=("tpu",),
            block=LANES,
            whole=Checked(interpreted=("x86-64",), compiled=("TPU v4", "TPU v5e")),
            pieces=Checked(interpreted=("x86-64",), compiled=("TPU v5e",)),
        ),
        "flash_tpu": Kernel(
            platforms=("tpu",),
            block=LANES,
            memory=flash_bytes,
            whole=Checked(interpreted=("x86-64",), compiled=("TPU v4", "TPU v5e", "TPU v5p", "TPU v6e")),
            pieces=None,
            instead="splash",
        ),
        "flash_gpu": Kernel(
            platforms=("gpu",),
            block=32,
            power_of_two=True,
            whole=Checked(interpreted=("x86-64",)),
            pieces=None,
            instead="blocked",
        ),
    }
)


def usable(
    compute: ComputeConfig, length: int, head_dim: int, platform: str, pieces: int = 1, device: str = ""
) -> tuple[ComputeConfig, str]:
    """The settings to compute with, and a warning where they are not those that were asked for ("" where they are).

    Args:
        compute: what was asked for.
        length: tokens a row.
        head_dim: of the model.
        platform: "cpu", "gpu" or "tpu".
        pieces: in how many pieces devices hold a row.
        device: JAX's name of the devices' kind.

    Raises:
        UserError: rows that cannot be cut so.
    """
    check_length(length, pieces)
    name, instead = compute.attention, "reference"
    why = _missing(name, compute.attention_block, length // pieces, platform)
    if not why:
        block, instead = min(compute.attention_block, length), KERNELS[name].instead
        why = _beyond(KERNELS[name], block, length, head_dim, pieces, own_memory(device))
    if not why:
        return compute, ""
    cost = "; it computes the same, slower and with more memory" if instead == "reference" else ""
    warning = f"attention {name!r} is not used ({why}); {instead!r} takes its place{cost}"
    return dataclasses.replace(compute, attention=instead), warning


def _missing(name: str, block: int, length: int, platform: str) -> str:
    """Why a kernel cannot attend over rows (or pieces) of this length here, or ""."""
    kernel, block = KERNELS[name], min(block, length)
    if platform not in kernel.platforms:
        return f"it is made for {', '.join(kernel.platforms)}, and this is {platform}"
    if kernel.block > 1 and (length % block or block % kernel.block):
        return f"rows of {length} in blocks of {block}: blocks must divide rows and be multiples of {kernel.block}"
    if kernel.power_of_two and block & (block - 1):
        return f"its blocks are powers of two, and this is {block}"
    return ""


def _beyond(kernel: Kernel, block: int, length: int, head_dim: int, pieces: int, memory: int) -> str:
    """Why a kernel that is made for this hardware cannot attend over rows so long, or cut so, or ""."""
    if pieces > 1 and kernel.pieces is None:
        return f"it does not attend over rows cut into {pieces} pieces"
    if kernel.memory and (need := kernel.memory(length, head_dim, block)) > memory:
        return f"rows of {length} take {need / 2**20:.0f} MiB of a chip's own memory, and it may use {memory >> 20}"
    return ""
