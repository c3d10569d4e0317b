"""What moves between chips: bytes and seconds of each collective, and along which mesh axes it runs."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from t_elaine.planning.assumptions import Rates
from t_elaine.planning.hlo import Instruction, size

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One call.

    Args:
        kind: one of `KINDS`.
        group: devices that take part together.
        axes: mesh axes along which they differ, "fsdp" or "replica x fsdp"; "" where the groups do not tell.
        asynchronous: the compiler lets compute go on meanwhile.
        bytes: the whole tensor.
        seconds: on the links, were nothing else to wait for.
    """

    kind: str
    group: int
    axes: str
    asynchronous: bool
    bytes: float
    seconds: float


def cost(
    call: Instruction,
    kind: str,
    asynchronous: bool,
    rates: Rates,
    mesh: Mapping[str, int],
    slices: int = 1,
    scattered: bool = False,
) -> Collective | None:
    """The cost of one collective; None for a group of one, which moves nothing.

    Args:
        call: the instruction.
        kind: one of `KINDS`.
        asynchronous: whether compute goes on meanwhile.
        rates: links and devices.
        mesh: axis → devices along it, in the order of the device ids.
        slices: how many slices the devices stand in, one after another.
        scattered: an all-reduce that the compiler runs as a reduce-scatter.
    """
    groups = members(call, rates.devices)
    count = len(groups[0])
    if count <= 1 and kind != "collective-permute":
        return None
    given, made = sum(map(size, call.operand_shapes)), size(call.shape)
    kind = "reduce-scatter" if scattered else kind
    whole = given
    if kind == "all-gather":
        # the shape of a start is (operand, result)
        whole = max(made - given, made / 2) if call.opcode.endswith("-start") else made
    crosses = slices > 1 and len({device // (rates.devices // slices) for device in groups[0]}) > 1
    seconds = _seconds(kind, whole, count, rates, crosses) + rates.assumed.collective_latency
    return Collective(
        kind=kind, group=count, axes=along(groups[0], mesh), asynchronous=asynchronous, bytes=whole, seconds=seconds
    )


def between_slices(call: Instruction, rates: Rates, mesh: Mapping[str, int], slices: int) -> Collective | None:
    """The cost of a `send` that libtpu's runtime carries from slice to slice, over the hosts; None for any other send.

    The chips of one slice each send their own piece, at their share of the hosts' network; compute goes on meanwhile.
    """
    told = call.attribute(r'_xla_megascale_transfer_type="(\w+)"')
    kind = told.lower().replace("_", "-")
    if not told or slices < 2:
        return None
    whole = size(call.operand_shapes[0]) * (slices if kind == "all-gather" else 1)
    times = {"all-reduce": 2.0}.get(kind, 1.0) * (slices - 1) / slices
    step = rates.devices // slices
    return Collective(
        kind=kind,
        group=slices,
        axes=along(range(0, rates.devices, step), mesh),
        asynchronous=True,
        bytes=whole,
        seconds=whole * times / rates.assumed.dcn_bandwidth + rates.assumed.collective_latency,
    )


def _seconds(kind: str, whole: float, count: int, rates: Rates, crosses: bool) -> float:
    """Bytes that a chip sends over the links it uses; a ring passes (n-1)/n of a tensor on, an all-reduce twice."""
    used = rates.axes * math.log(max(count, 2)) / math.log(max(rates.devices, 2))
    axes = max(1, min(rates.axes, round(used)))
    passed = (count - 1) / count if count > 1 else 1.0
    times = {"all-gather": passed, "reduce-scatter": passed, "all-reduce": 2 * passed}
    if kind in ("all-to-all", "ragged-all-to-all"):
        # On a ring of s chips each link carries s/8 of what a chip sends to all others.
        return whole * count ** (1 / axes) / 8 / rates.link
    moved, links = (whole * times[kind], 2 * axes) if kind in times else (whole, 1)
    return moved / (rates.assumed.dcn_bandwidth if crosses else links * rates.link)


def members(call: Instruction, devices: int) -> list[list[int]]:
    """The groups of device ids of a collective, however XLA writes them; all devices where it does not say."""
    text = call.rest
    if found := re.search(r"replica_groups=\{(\{[\d,]+\}(?:,\s*\{[\d,]+\})*)\}", text):
        return [[int(n) for n in part.split(",")] for part in re.findall(r"\{([\d,]+)\}", found.group(1))]
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        ids = np.arange(math.prod(_numbers(found.group(3)))).reshape(_numbers(found.group(3)))
        ids = ids.transpose(_numbers(found.group(4))) if found.group(4) else ids
        return ids.reshape(int(found.group(1)), int(found.group(2))).tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*(?:<=[^{]*)?\{([^}]*)\}", text):
        return _by_mesh(found.group(1), found.group(2), text)
    if "source_target_pairs=" in text:
        pairs = re.findall(r"\{(\d+),(\d+)\}", text.partition("source_target_pairs=")[2].partition("}}")[0] + "}")
        return [[int(one), int(other)] for one, other in pairs if one != other] or [[0]]
    return [list(range(devices))]


def _by_mesh(sizes: str, named: str, text: str) -> list[list[int]]:
    """Groups written as axes of a mesh: `mesh['a'=16,'b'=16] {'a', 'b':(4)4}`; the latter is a part of an axis."""
    shape = {name: int(count) for name, count in re.findall(r"'([^']+)'=(\d+)", sizes)}
    ids = np.arange(math.prod(shape.values())).reshape(tuple(shape.values()))
    taken: list[int] = []
    split: list[int] = []
    for axis, count in shape.items():
        part = re.search(rf"'{re.escape(axis)}'(?:\s*:\s*\((\d+)\)(\d+))?", named)
        before, inside = (int(part.group(1)), int(part.group(2))) if part and part.group(1) else (1, count)
        if part is not None:
            taken.append(len(split) + 1)
        split += [before, inside if part else count, count // (before * inside) if part else 1]
    order = [i for i in range(len(split)) if i not in taken] + taken
    count = math.prod(split[i] for i in taken)
    return ids.reshape(split).transpose(order).reshape(-1, count).tolist()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def along(group: Sequence[int], mesh: Mapping[str, int]) -> str:
    """The mesh axes along which the devices of a group differ; "" if the mesh has another number of devices."""
    if max(group) >= math.prod(mesh.values()):
        return ""
    places = np.stack(np.unravel_index(np.asarray(group), tuple(mesh.values())))
    return " x ".join(axis for axis, row in zip(mesh, places, strict=True) if len(set(row.tolist())) > 1)
