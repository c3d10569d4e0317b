"""Reads the compiler's dumped buffer assignment: which buffers are alive at the worst moment, and from which line.

The dump (`xla_dump_to`) has two files: what lies where (`…buffer-assignment.txt`), and from when to when
(`…live-range.txt`).
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from t_elaine.planning.hlo import Instruction, Module

_ALLOCATION = re.compile(r"allocation (\d+): size (\d+),(?: color (\d+),)?(.*)")
_VALUE = re.compile(r"\s+value: <(\d+) (\S+)(?: \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\): (.*)")
_LIFE = re.compile(r"\s+([^\s{]+)(\{[\d,]*\})?:(\d+)-(\d+)")
PACKAGE = "t_elaine/"


@dataclass(frozen=True)
class Buffer:
    """A value in HBM: the instruction that makes it, its size, its place in the common room, its shape."""

    maker: str
    element: str
    bytes: int
    offset: int
    shape: str


def temporaries(assignment: str) -> list[Buffer]:
    """The buffers of the room in HBM that values share over time (arguments, results and on-chip memory left out)."""
    found: list[Buffer] = []
    inside = False
    for line in assignment.split("\n"):
        if allocation := _ALLOCATION.match(line):
            inside = "preallocated-temp" in allocation.group(4) and allocation.group(3) in (None, "0")
        elif inside and (value := _VALUE.match(line)):
            maker, _, element = value.group(2).partition("{")
            found.append(Buffer(maker, element.rstrip("}"), int(value.group(3)), int(value.group(4)), value.group(5)))
    return found


def lives(text: str) -> dict[tuple[str, str], tuple[int, int]]:
    """(instruction, element) → first and last moment of its buffer."""
    found = {}
    for line in text.split("\n"):
        if life := _LIFE.fullmatch(line.rstrip()):
            found[life.group(1), (life.group(2) or "{}")[1:-1]] = (int(life.group(3)), int(life.group(4)))
    return found


def at_peak(buffers: list[Buffer], when: dict[tuple[str, str], tuple[int, int]]) -> list[Buffer]:
    """Those alive at the moment that needs most; of several names for one place the first."""
    changes: dict[int, list[tuple[int, Buffer]]] = defaultdict(list)
    for buffer in buffers:
        life = when.get((buffer.maker, buffer.element))
        if life is not None:
            changes[life[0]].append((1, buffer))
            changes[life[1] + 1].append((-1, buffer))
    alive: dict[int, list[Buffer]] = defaultdict(list)
    total, most, best = 0, -1, []
    for moment in sorted(changes):
        for sign, buffer in sorted(changes[moment], key=lambda change: change[0]):
            place = alive[buffer.offset]
            before = max((b.bytes for b in place), default=0)
            place.append(buffer) if sign > 0 else place.remove(buffer)
            total += max((b.bytes for b in place), default=0) - before
        if total > most:
            most = total
            best = [max(place, key=lambda b: b.bytes) for place in alive.values() if place]
    return best


def largest(assignment: str, lives_text: str, module: Module, most: int = 12) -> list[dict[str, Any]]:
    """The largest buffers alive at the peak: bytes, shape, what makes them, and the line of this package behind it."""
    buffers = temporaries(assignment)
    chosen = at_peak(buffers, lives(lives_text)) if lives_text else buffers
    makers = {i.name: i for c in module.computations.values() for i in c}
    rows = []
    for buffer in sorted(chosen, key=lambda b: -b.bytes)[:most]:
        maker = makers.get(buffer.maker)
        rows.append(
            {
                "bytes": buffer.bytes,
                "shape": re.sub(r"\{[^}]*\}", "", buffer.shape),
                "name": buffer.maker,
                "operation": _operation(maker),
                "source": module.source(maker, PACKAGE) if maker else "",
            }
        )
    return rows


def _operation(maker: Instruction | None) -> str:
    """The last parts of a JAX operation's name, without the transformations around it."""
    if maker is None:
        return ""
    parts = [part for part in re.sub(r"\w+\(|\)", "", maker.op_name).split("/") if part]
    return "/".join(part for part in parts[-3:] if part not in ("while", "body", "closed_call"))


def refused(message: str) -> tuple[float, float]:
    """(bytes wanted, bytes there) of a compiler's out-of-memory message; 0 for what it does not say."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    amount = r"([\d.]+)\s*([KMGT]?)i?B?"
    for pattern in (rf"\({amount}\) exceeds available \w+ \({amount}\)", rf"Used {amount} of {amount} hbm"):
        if found := re.search(pattern, message):
            wanted, there = (float(found.group(i)) * units[found.group(i + 1)] for i in (1, 3))
            return wanted, there
    return 0.0, 0.0
