"""Which attention runs where: a table, and what is taken instead where a choice is not in it.

`ran` names hardware on which the repository's checks were run, `compiled` hardware for which whole steps were compiled
without being run. Nothing is computed here.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from t_elaine.model.config import ComputeConfig

LANES = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """One way to compute attention.

    Args:
        platforms: JAX's names of those that it is made for.
        block: row length and block must be multiples of this.
        ran: hardware on which it was checked.
        compiled: hardware for which it was compiled, no more.
    """

    platforms: tuple[str, ...]
    block: int = 1
    ran: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "reference": Kernel(platforms=("cpu", "gpu", "tpu"), ran=("x86-64",)),
        "blocked": Kernel(platforms=("cpu", "gpu", "tpu"), ran=("x86-64",)),
        "flash_tpu": Kernel(platforms=("tpu",), block=LANES),
        "splash": Kernel(platforms=("tpu",), block=LANES, compiled=("TPU v5e",)),
    }
)


def usable(compute: ComputeConfig, length: int, platform: str) -> tuple[ComputeConfig, str]:
    """The settings to compute with, and a warning where they are not those that were asked for ("" where they are).

    Args:
        compute: what was asked for.
        length: tokens a row.
        platform: "cpu", "gpu" or "tpu".
    """
    name, kernel = compute.attention, KERNELS[compute.attention]
    block = min(compute.attention_block, length)
    if platform not in kernel.platforms:
        why = f"it is made for {', '.join(kernel.platforms)}, and this is {platform}"
    elif kernel.block > 1 and (length % block or block % kernel.block):
        why = f"rows of {length} in blocks of {block}: blocks must divide rows and be multiples of {kernel.block}"
    else:
        return compute, ""
    warning = f"attention {name!r} is not used ({why}); 'reference' computes the same, slower and with more memory"
    return dataclasses.replace(compute, attention="reference"), warning
