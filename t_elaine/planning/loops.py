"""How often a loop of an HLO program runs: as written beside it, else read from its condition, start and body."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from t_elaine.planning.hlo import Computation, Instruction, Module

PASSES_ON = ("copy", "bitcast", "convert", "reshape", "copy-done", "opt-barrier", "optimization-barrier")


@dataclass(frozen=True)
class Element:
    """Element `index` of the tuple that a loop carries, plus a constant."""

    index: int
    plus: int = 0


Value = int | Element | None


def trips(module: Module, loop: Instruction) -> int | None:
    """Trips of a while instruction; None where they cannot be read."""
    told = loop.attribute(r"known_trip_count\W+n\W+(\d+)")
    if told:
        return int(told)
    condition = module.computations.get((loop.names("condition") or [""])[0])
    body = module.computations.get((loop.names("body") or [""])[0])
    if condition is None or body is None or condition.root is None or body.root is None:
        return None
    compare, outside = _comparison(module, condition)
    if compare is None or len(compare.operands) != 2:
        return None
    sides = [_value(module, compare.home, name, outside) for name in compare.operands]
    carried = _carried(loop)
    return _count(sides, carried, _steps(module, body), compare.attribute(r"direction=(\w+)"), module)


def _comparison(module: Module, condition: Computation) -> tuple[Instruction | None, Callable[[str], Value]]:
    """The comparison that ends a loop, and what its parameters are."""
    root = condition.root
    outside = _nothing
    if root is not None and root.opcode == "fusion":
        inner = module.computations[root.names("calls")[0]]
        root, outside = inner.root, _arguments(module, root, _nothing)
    return (root if root is not None and root.opcode == "compare" else None), outside


def _nothing(name: str) -> Value:
    """Outside of a loop's body nothing is known of its parameters."""
    return None


def _arguments(module: Module, call: Instruction, outside: Callable[[str], Value]) -> Callable[[str], Value]:
    """Values of the parameters of a called computation, worked out when they are asked for."""
    inner = module.computations[call.names("calls")[0]]

    def value(name: str) -> Value:
        given = call.operands[int(inner.instructions[name].literal)]
        return _value(module, call.home, given, outside)

    return value


def _value(
    module: Module, home: Computation, name: str, outside: Callable[[str], Value], element: int | None = None
) -> Value:
    """What an integer is, in terms of the tuple that the loop around it carries."""
    node = home.instructions.get(name)
    if node is None or (element is None and not re.match(r"[su]\d+\[1?\]", node.shape)):
        return None
    if node.opcode == "constant":
        return int(node.literal) if re.fullmatch(r"-?\d+", node.literal) else None
    if node.opcode in PASSES_ON:
        return _value(module, home, node.operands[0], outside, element)
    if node.opcode == "get-tuple-element":
        index = int(node.attribute(r"index=(\d+)") or 0)
        return _value(module, home, node.operands[0], outside, index)
    if node.opcode == "parameter":
        return outside(name) if element is None else Element(element)
    if node.opcode == "tuple" and element is not None:
        return _value(module, home, node.operands[element], outside)
    if node.opcode == "fusion":
        inner = module.computations[node.names("calls")[0]]
        return (
            _value(module, inner, inner.root.name, _arguments(module, node, outside), element) if inner.root else None
        )
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


def _carried(loop: Instruction) -> Sequence[Instruction | None]:
    """The instructions that make the tuple a loop starts with."""
    start = loop.home.instructions.get(loop.operands[0])
    if start is None or start.opcode != "tuple":
        return []
    return [loop.home.instructions.get(name) for name in start.operands]


def _steps(module: Module, body: Computation) -> Mapping[int, Value]:
    """Element → what a trip makes of it, for those that only count or are passed on."""
    root = body.root
    if root is None or root.opcode != "tuple":
        return {}
    return {i: _value(module, body, name, _nothing) for i, name in enumerate(root.operands)}


def _count(
    sides: Sequence[Value],
    carried: Sequence[Instruction | None],
    steps: Mapping[int, Value],
    direction: str,
    module: Module,
) -> int | None:
    def at_start(index: int) -> Value:
        made = carried[index] if index < len(carried) else None
        return None if made is None else _value(module, made.home, made.name, _nothing)

    def step(value: Value) -> int:
        after = steps.get(value.index) if isinstance(value, Element) else None
        return (
            after.plus
            if isinstance(after, Element) and isinstance(value, Element) and after.index == value.index
            else 0
        )

    counters = [side for side in sides if isinstance(side, Element) and step(side)]
    bounds = [side for side in sides if side not in counters]
    if len(counters) != 1 or len(bounds) != 1:
        return None
    counter, bound = counters[0], bounds[0]
    assert isinstance(counter, Element)
    end = at_start(bound.index) if isinstance(bound, Element) else bound
    if isinstance(end, int) and isinstance(bound, Element):
        end += bound.plus
    if not isinstance(end, int):
        return None
    begin = at_start(counter.index)
    begin = (begin if isinstance(begin, int) else 0) + counter.plus
    distance = abs(end - begin) + (direction in ("LE", "GE"))
    return max(0, math.ceil(distance / abs(step(counter))))
