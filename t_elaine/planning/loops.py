"""How often a loop of an HLO program runs: as written beside it, else read from its condition, start and body."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from t_elaine.planning.hlo import Computation, Instruction, Module

PASSES_ON = ("copy", "bitcast", "convert", "reshape", "copy-done", "opt-barrier", "optimization-barrier")


@dataclass(frozen=True)
class Element:
    """Element `index` of the tuple that a loop carries, plus a constant."""

    index: int
    plus: int = 0


Value = int | Element | None
Lookup = Callable[[str], Value]


def trips(module: Module, loop: Instruction) -> int | None:
    """Trips of a while instruction; None where they cannot be read."""
    told = loop.attribute(r"known_trip_count\W+n\W+(\d+)")
    if told:
        return int(told)
    condition = module.computations.get((loop.names("condition") or [""])[0])
    body = module.computations.get((loop.names("body") or [""])[0])
    if condition is None or body is None:
        return None
    compare, outside = _comparison(module, condition)
    if compare is None or len(compare.operands) != 2:
        return None
    sides = [_value(module, compare.home, name, outside) for name in compare.operands]
    counters = [side for side in sides if isinstance(side, Element) and _step(module, body, side.index)]
    bounds = [side for side in sides if side not in counters]
    if len(counters) != 1 or len(bounds) != 1:
        return None
    end = _at_start(module, loop, bounds[0])
    if end is None:
        return None
    begin = _at_start(module, loop, counters[0])
    distance = abs(end - (begin or 0)) + (compare.attribute(r"direction=(\w+)") in ("LE", "GE"))
    return math.ceil(distance / abs(_step(module, body, counters[0].index)))


def _comparison(module: Module, condition: Computation) -> tuple[Instruction | None, Lookup]:
    """The comparison that ends a loop, and what the parameters around it are."""
    root = condition.root
    outside: Lookup = _nothing
    if root is not None and root.opcode == "fusion":
        outside = _arguments(module, root, _nothing)
        root = module.computations[root.names("calls")[0]].root
    return (root if root is not None and root.opcode == "compare" else None), outside


def _step(module: Module, body: Computation, index: int) -> int:
    """What a trip adds to an element; 0 where it is passed on, or not merely counted."""
    root = body.root
    if root is None or root.opcode != "tuple" or index >= len(root.operands):
        return 0
    after = _value(module, body, root.operands[index], _nothing)
    return after.plus if isinstance(after, Element) and after.index == index else 0


def _at_start(module: Module, loop: Instruction, value: Value) -> int | None:
    """The integer that a value is before the first trip."""
    if not isinstance(value, Element):
        return value
    start = loop.home.instructions.get(loop.operands[0])
    if start is None or start.opcode != "tuple" or value.index >= len(start.operands):
        return None
    found = _value(module, loop.home, start.operands[value.index], _nothing)
    return found + value.plus if isinstance(found, int) else None


def _nothing(name: str) -> Value:
    """Around a loop's body and condition nothing is known of their parameters."""
    return None


def _arguments(module: Module, call: Instruction, outside: Lookup) -> Lookup:
    """Values of the parameters of a called computation, worked out when they are asked for."""
    inner = module.computations[call.names("calls")[0]]

    def value(name: str) -> Value:
        given = call.operands[int(inner.instructions[name].literal)]
        return _value(module, call.home, given, outside)

    return value


def _value(module: Module, home: Computation, name: str, outside: Lookup, element: int | None = None) -> Value:
    """What an integer is, in terms of the tuple that the loop around it carries.

    Args:
        module: the program.
        home: the computation that it stands in.
        name: of the instruction.
        outside: what the computation's own parameters are.
        element: of the instruction's tuple; None for a scalar.
    """
    node = home.instructions.get(name)
    if node is None or (element is None and not re.match(r"[su]\d+\[1?\]", node.shape)):
        return None
    if node.opcode == "constant":
        return int(node.literal) if re.fullmatch(r"-?\d+", node.literal) else None
    if node.opcode in PASSES_ON:
        return _value(module, home, node.operands[0], outside, element)
    if node.opcode == "get-tuple-element":
        return _value(module, home, node.operands[0], outside, int(node.attribute(r"index=(\d+)") or 0))
    if node.opcode == "parameter":
        return outside(name) if element is None else Element(element)
    if node.opcode == "tuple" and element is not None:
        return _value(module, home, node.operands[element], outside)
    if node.opcode == "fusion":
        inner = module.computations[node.names("calls")[0]]
        result = inner.root.name if inner.root else ""
        return _value(module, inner, result, _arguments(module, node, outside), element)
    if node.opcode in ("add", "subtract"):
        left, right = (_value(module, home, operand, outside) for operand in node.operands)
        return _sum(left, right, 1 if node.opcode == "add" else -1)
    return None


def _sum(left: Value, right: Value, sign: int) -> Value:
    if isinstance(left, int) and isinstance(right, int):
        return left + sign * right
    if isinstance(left, Element) and isinstance(right, int):
        return Element(left.index, left.plus + sign * right)
    if isinstance(right, Element) and isinstance(left, int) and sign == 1:
        return Element(right.index, right.plus + left)
    return None
