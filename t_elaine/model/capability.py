"""Which attention runs where: a table, and what is taken instead where a choice is not in it.

`ran` names hardware on which the repository's checks were run, `interpreted` where they were run with the kernel's
program computed in plain JAX, `compiled` hardware for which whole steps were compiled without being run. Nothing is
computed here.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from t_elaine.model.config import ComputeConfig
from t_elaine.model.context import check_length

LANES = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """One way to compute attention.

    Args:
        platforms: JAX's names of those that it is made for.
        block: row length (a device's piece of it, where rows are cut) and block must be multiples of this.
        pieces: whether it attends over rows that are cut over devices (mesh axis `context`).
        instead: what is taken where only `pieces` is missing.
        ran: hardware on which it was checked.
        interpreted: hardware on which its program was checked without being compiled for its own.
        compiled: hardware for which it was compiled, no more.
    """

    platforms: tuple[str, ...]
    block: int = 1
    pieces: bool = True
    instead: str = "reference"
    ran: tuple[str, ...] = ()
    interpreted: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "reference": Kernel(platforms=("cpu", "gpu", "tpu"), ran=("x86-64",)),
        "blocked": Kernel(platforms=("cpu", "gpu", "tpu"), ran=("x86-64",)),
        "splash": Kernel(platforms=("tpu",), block=LANES, interpreted=("x86-64",), compiled=("TPU v5e",)),
        "flash_tpu": Kernel(
            platforms=("tpu",),
            block=LANES,
            pieces=False,
            instead="splash",
            interpreted=("x86-64",),
        ),
    }
)


def usable(compute: ComputeConfig, length: int, platform: str, pieces: int = 1) -> tuple[ComputeConfig, str]:
    """The settings to compute with, and a warning where they are not those that were asked for ("" where they are).

    Args:
        compute: what was asked for.
        length: tokens a row.
        platform: "cpu", "gpu" or "tpu".
        pieces: in how many pieces devices hold a row.

    Raises:
        UserError: rows that cannot be cut so.
    """
    check_length(length, pieces)
    name, instead = compute.attention, "reference"
    why = _missing(name, compute.attention_block, length // pieces, platform)
    if not why and pieces > 1 and not KERNELS[name].pieces:
        why = f"it does not attend over rows cut into {pieces} pieces"
        instead = KERNELS[name].instead
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
    return ""
