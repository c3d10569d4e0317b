"""What is assumed of each chip: clock, peaks, memory, links; and the shapes in which slices of it are sold.

Peaks are the vendors' published dense bfloat16 figures; a TPU's clock is the one at which its matrix units reach that
peak. Bandwidths are public figures as remembered, not looked up; each can be set in `Assumptions`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of accelerator, by the device that JAX shows (on v3 a core, elsewhere a chip).

    Args:
        label: as people write it.
        kind: "tpu", "gpu" or "cpu".
        peak: dense bfloat16 FLOP/s.
        memory: bytes of HBM that a program may use.
        hbm: bytes/s of HBM.
        clock: Hz; 0 where no compiler gives cycles.
        link: bytes/s of one link, one way (TPU), or of all links of a GPU together, one way.
        axes: axes of the torus; a chip has two links along each.
        matmul: share of the peak that large matmuls reach, where nothing is compiled.
        attention_forward: share of the peak that an attention kernel's forward pass reaches.
        attention_backward: the same of its backward pass.
        shapes: topologies on offer, chips along each axis.
        library: what libtpu calls it.
        devices_per_chip: devices that JAX shows for one chip.
        node: chips of one machine; GPUs beyond them are joined by the network.
    """

    label: str
    kind: str = "tpu"
    peak: float
    memory: float
    hbm: float
    clock: float = 0.0
    link: float
    axes: int = 1
    matmul: float = 0.9
    attention_forward: float = 0.5
    attention_backward: float = 0.5
    shapes: tuple[str, ...] = ()
    library: str = ""
    devices_per_chip: int = 1
    node: int = 4


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBE = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    *("4x4x12", "4x4x16", "8x8x12", "8x8x16", "8x16x16", "16x16x16"),
)


def gpu(label: str, *, peak: float, memory: float, hbm: float, link: float) -> Chip:
    """A GPU; memory in GiB."""
    return Chip(label=label, kind="gpu", peak=peak, memory=memory * GIB, hbm=hbm, link=link, matmul=0.65, node=8)


# What JAX calls them; the longest that a device's kind begins with counts.
KINDS: Mapping[str, str] = MappingProxyType(
    {
        **{"TPU v3": "v3", "TPU v4": "v4", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v5e": "v5e", "TPU v5 lite": "v5e"},
        **{"TPU v6e": "v6e", "TPU v6 lite": "v6e", "NVIDIA A100": "a100", "NVIDIA H100": "h100", "NVIDIA H200": "h200"},
        **{"NVIDIA L40S": "l40s", "NVIDIA GeForce RTX 4090": "rtx4090", "cpu": "cpu"},
    }
)


def family_of(device_kind: str) -> str:
    """Key in `CHIPS` of a device that JAX shows; its own name where there is none."""
    matching = [kind for kind in KINDS if device_kind.startswith(kind)]
    return KINDS[max(matching, key=len)] if matching else device_kind


CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        "v3": Chip(
            label="TPU v3 core",
            peak=61.5e12,
            memory=15.75 * GIB,
            hbm=450e9,
            clock=0.94e9,
            link=70e9,
            axes=2,
            shapes=("2x2", "4x4", "4x8", "8x8", "8x16", "16x16"),
            library="v3",
            devices_per_chip=2,
        ),
        "v4": Chip(
            label="TPU v4",
            peak=275e12,
            memory=30.75 * GIB,
            hbm=1228e9,
            clock=1.05e9,
            link=45e9,
            axes=3,
            shapes=CUBE,
            library="v4",
        ),
        "v5e": Chip(
            label="TPU v5e",
            peak=197e12,
            memory=15.75 * GIB,
            hbm=819e9,
            clock=1.5e9,
            link=45e9,
            axes=2,
            shapes=FLAT,
            library="v5e",
        ),
        "v5p": Chip(
            label="TPU v5p",
            peak=459e12,
            memory=95.0 * GIB,
            hbm=2765e9,
            clock=1.75e9,
            link=90e9,
            axes=3,
            shapes=CUBE,
            library="v5",
        ),
        "v6e": Chip(
            label="TPU v6e",
            peak=918e12,
            memory=31.25 * GIB,
            hbm=1640e9,
            clock=1.75e9,
            link=90e9,
            axes=2,
            attention_forward=0.25,
            attention_backward=0.40,
            shapes=FLAT,
            library="v6e",
        ),
        "rtx4090": gpu("GeForce RTX 4090", peak=165e12, memory=23.0, hbm=1008e9, link=25e9),
        "l40s": gpu("NVIDIA L40S", peak=362e12, memory=44.0, hbm=864e9, link=25e9),
        "a100": gpu("NVIDIA A100 80 GB", peak=312e12, memory=78.0, hbm=2039e9, link=300e9),
        "h100": gpu("NVIDIA H100 SXM", peak=989e12, memory=78.0, hbm=3350e9, link=450e9),
        "h200": gpu("NVIDIA H200", peak=989e12, memory=139.0, hbm=4800e9, link=450e9),
        "cpu": Chip(label="simulated CPU device", kind="cpu", peak=50e9, memory=4.0 * GIB, hbm=20e9, link=10e9),
    }
)
