"""Everything an estimate rests on that neither the compiler nor the shapes say, in one settable place."""

from collections.abc import Mapping
from dataclasses import dataclass

from t_elaine.planning.chips import Chip


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What estimates of a step assume. None takes the chip's own figure (docs/plan.md has them all).

    Args:
        clock: Hz by which the compiler's cycles become seconds.
        peak: dense bfloat16 FLOP/s of a chip; MFU is counted against it, and attention kernels are costed by it.
        memory: bytes that a program may use on a chip.
        hbm_bandwidth: bytes/s; costs what the compiler gives no cycles for.
        link_bandwidth: bytes/s of one link between chips, one way (all links of a GPU together).
        torus_axes: axes of the slice's torus; two links to a chip along each.
        dcn_bandwidth: bytes/s of a chip's share of the network between slices or nodes.
        host_bandwidth: bytes/s between a chip and its host; told, never in the step.
        collective_latency: seconds added to each collective.
        attention_share_forward: share of the peak at which attention kernels run forwards.
        attention_share_backward: the same backwards.
        kernel_shares: part of a kernel's name (a regular expression) → share of the peak; the last that fits counts.
        attention_names: regular expression, case ignored, for the names of attention kernels.
        attention_block: block of an attention kernel that does not tell its own; 0: unknown.
        causal_share: share of the score matrix that attention kernels execute; None: from their blocks, else 0.5.
        cap_memory_bound: nothing without a matmul costs more than this many times its bytes' time; 0: the compiler's
            word is taken.
        default_trips: trips of a loop whose number cannot be read.
        roofline_matmul_share: share of the peak at which matmuls run, where nothing is compiled (GPUs).
        roofline_hidden: share of the collectives that compute hides, likewise.
    """

    clock: float | None = None
    peak: float | None = None
    memory: float | None = None
    hbm_bandwidth: float | None = None
    link_bandwidth: float | None = None
    torus_axes: int | None = None
    dcn_bandwidth: float = 6.25e9
    host_bandwidth: float = 16e9
    collective_latency: float = 0.0
    attention_share_forward: float | None = None
    attention_share_backward: float | None = None
    kernel_shares: Mapping[str, float] | None = None
    attention_names: str = "splash|flash|attention|mha"
    attention_block: int = 0
    causal_share: float | None = None
    cap_memory_bound: float = 0.0
    default_trips: int = 1
    roofline_matmul_share: float | None = None
    roofline_hidden: float = 0.8


@dataclass(frozen=True, kw_only=True)
class Rates:
    """`Assumptions` with every None filled in from a chip, and the number of devices."""

    clock: float
    peak: float
    memory: float
    hbm: float
    link: float
    axes: int
    matmul: float
    attention_forward: float
    attention_backward: float
    devices: int
    assumed: Assumptions


def rates(assumed: Assumptions, chip: Chip, devices: int) -> Rates:
    """The figures to count with on this many devices of a chip, in one slice."""

    def either(given: float | None, own: float) -> float:
        return own if given is None else given

    return Rates(
        clock=either(assumed.clock, chip.clock),
        peak=either(assumed.peak, chip.peak),
        memory=either(assumed.memory, chip.memory),
        hbm=either(assumed.hbm_bandwidth, chip.hbm),
        link=either(assumed.link_bandwidth, chip.link),
        axes=int(either(assumed.torus_axes, chip.axes)),
        matmul=either(assumed.roofline_matmul_share, chip.matmul),
        attention_forward=either(assumed.attention_share_forward, chip.attention_forward),
        attention_backward=either(assumed.attention_share_backward, chip.attention_backward),
        devices=devices,
        assumed=assumed,
    )
