"""Reads the text of an optimised HLO program: computations, instructions, shapes, source lines.

Says nothing of cost. The text is XLA's own (`compiled.as_text()`): one instruction a line, but for attributes that hold
line breaks, as a Pallas kernel's metadata does.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

BITS = {
    **dict.fromkeys(("s2", "u2"), 2),
    **dict.fromkeys(("s4", "u4", "f4e2m1fn"), 4),
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3", "f8e4m3fn", "f8e5m2", "f8e4m3b11fnuz"), 8),
    **dict.fromkeys(("f8e4m3fnuz", "f8e5m2fnuz", "f8e3m4", "f8e8m0fnu"), 8),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
    "c128": 128,
}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([^\]]*)\]")
_BEGIN = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(")
_NAME = re.compile(r"%([\w.\-]+)")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclass(frozen=True, slots=True)
class Array:
    """One array of a shape: element type and sizes."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> float:
        """Size in memory, padding not counted."""
        return BITS[self.dtype] * math.prod(self.sizes) / 8


@lru_cache(maxsize=65536)
def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape, in order; a tuple has several. Tokens and other shapes without elements are left out."""
    found = ((dtype, sizes) for dtype, sizes in _ARRAY.findall(shape) if dtype in BITS)
    return tuple(Array(dtype, tuple(int(s.strip("<=")) for s in sizes.split(",") if s)) for dtype, sizes in found)


def size(shape: str) -> float:
    """Bytes of a shape."""
    return sum(array.bytes for array in arrays(shape))


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """One instruction.

    Args:
        name: unique in its computation.
        shape: of the result, as written.
        opcode: what it does.
        operands: names in the same computation.
        literal: what stands between the parentheses (a constant's value, a parameter's number).
        rest: attributes, metadata and backend_config, as written.
        home: the computation that it stands in.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    literal: str
    rest: str
    home: "Computation"

    def names(self, *keys: str) -> list[str]:
        """Computations that an attribute refers to: `calls=%f`, `branch_computations={%a, %b}`."""
        for key in keys:
            found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.rest)
            if found:
                return re.findall(r"[\w.\-]+", found.group(1))
        return []

    def attribute(self, pattern: str) -> str:
        """The first group of a regular expression found in the attributes; "" if it is not there."""
        found = re.search(pattern, self.rest)
        return found.group(1) if found else ""

    @property
    def operand_shapes(self) -> list[str]:
        """Shapes of the operands that are to be found."""
        return [self.home.instructions[name].shape for name in self.operands if name in self.home.instructions]

    @property
    def cycles(self) -> int | None:
        """What the TPU compiler says that it takes; None where it says nothing."""
        told = self.attribute(r'"estimated_cycles":"?(\d+)')
        return int(told) if told else None

    @property
    def op_name(self) -> str:
        """The JAX operation that it comes from, with the transformations around it."""
        return self.attribute(r'op_name="((?:[^"\\]|\\.)*)"')

    @property
    def target(self) -> str:
        """Of a custom call."""
        return self.attribute(r'custom_call_target="([\w.\-]+)"')


@dataclass(eq=False)
class Computation:
    """Instructions by name, in the order written; `root` is the one that gives the result."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: Instruction | None = None

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())


@dataclass
class Module:
    """A program: its computations, the entry, and where its lines stand in the source."""

    computations: dict[str, Computation]
    entry: Computation
    lines: dict[int, tuple[str, int]] = field(default_factory=dict)
    callers: dict[int, int] = field(default_factory=dict)

    def within(self, name: str) -> Iterator[Instruction]:
        """Instructions of a computation and of the fusions nested in it."""
        for instruction in self.computations.get(name, Computation(name)):
            yield instruction
            if instruction.opcode == "fusion":
                yield from self.within(instruction.names("calls")[0])

    def source(self, instruction: Instruction, inside: str) -> str:
        """file:line of the innermost frame whose file's path holds `inside`; "" if there is none."""
        frame = int(instruction.attribute(r"stack_frame_id=(\d+)") or 0)
        while frame:
            file, line = self.lines.get(frame, ("", 0))
            if inside in file:
                return f"{file[file.rindex(inside) :]}:{line}"
            frame = self.callers.get(frame, 0)
        return ""


def parse(text: str) -> Module:
    """The program that a text describes.

    Raises:
        ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = None
    current = None
    for statement in _statements(text):
        if current is None:
            head = _HEAD.match(statement)
            if head and statement.rstrip().endswith("{"):
                current = computations[head.group(2)] = Computation(head.group(2))
                entry = current if head.group(1) else entry
        elif statement.startswith("}"):
            current = None
        elif begin := _BEGIN.match(statement):
            instruction = _instruction(begin.group(2), statement[begin.end() :], current)
            current.instructions[instruction.name] = instruction
            if begin.group(1):
                current.root = instruction
    if entry is None:
        raise ValueError("the text has no ENTRY computation")
    lines, callers = _frames(text)
    return Module(computations, entry, lines, callers)


def _statements(text: str) -> Iterator[str]:
    """Lines, with those that go on with an instruction joined to it."""
    held = ""
    for line in text.split("\n"):
        begins = not line.strip() or line[0] not in ' \t"}' or _BEGIN.match(line) or _closes(line)
        if held and begins:
            yield held
            held = ""
        held = f"{held} {line}" if held else line
    if held:
        yield held


def _closes(line: str) -> bool:
    return line.startswith("}") and (not line[1:].strip() or line.startswith("}, execution_thread="))


def _instruction(name: str, text: str, home: Computation) -> Instruction:
    text = _COMMENT.sub("", text)
    cut = _matching(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, text = text[:cut], text[cut:].lstrip()
    opening = text.index("(")
    closing = _matching(text, opening)
    inner = text[opening + 1 : closing]
    opcode = text[:opening]
    operands = () if opcode in ("constant", "parameter") else tuple(_NAME.findall(inner))
    return Instruction(name, shape, opcode, operands, inner, text[closing + 1 :], home)


def _matching(text: str, opening: int) -> int:
    """Place of the parenthesis that closes the one at `opening`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if found.group() == "(" else -1
        if not depth:
            return found.start()
    raise ValueError(f"a parenthesis is not closed: {text[opening : opening + 80]}")


def _frames(text: str) -> tuple[dict[int, tuple[str, int]], dict[int, int]]:
    """Stack frame → (file, line), and stack frame → the frame that called it (0: none)."""
    tables: dict[str, dict[int, str]] = {}
    rows: dict[int, str] | None = None
    for line in text.split("\n", 20000):
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            rows = tables.setdefault(line, {})
        elif rows is not None and (found := re.match(r"(\d+) (.*)", line)):
            rows[int(found.group(1))] = found.group(2)
        elif _HEAD.match(line) and line.endswith("{"):
            break
    files = {key: row.strip('"') for key, row in tables.get("FileNames", {}).items()}
    places = {
        key: (files.get(_field(row, "file_name_id"), ""), _field(row, " line"))
        for key, row in tables.get("FileLocations", {}).items()
    }
    frames = tables.get("StackFrames", {})
    lines = {key: places.get(_field(row, "file_location_id"), ("", 0)) for key, row in frames.items()}
    # XLA prints a parent's number plus one; a frame that names itself has none.
    callers = {key: _field(row, "parent_frame_id") - 1 for key, row in frames.items()}
    return lines, {key: max(parent, 0) for key, parent in callers.items()}


def _field(row: str, key: str) -> int:
    found = re.search(rf"{key}=(\d+)", row)
    return int(found.group(1)) if found else 0
