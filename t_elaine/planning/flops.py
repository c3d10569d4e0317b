"""Floating-point operations of dots and convolutions, from their shapes; a multiply and an add are two."""

import math
import re

from t_elaine.planning.hlo import Instruction, Module, arrays

MATMULS = ("dot", "convolution")
TOO_MANY = 4_000_000


def of(instruction: Instruction) -> float:
    """FLOPs of one dot or convolution; 0 for anything else, or where a shape is missing."""
    shapes = [arrays(shape) for shape in instruction.operand_shapes[:2]]
    if instruction.opcode not in MATMULS or len(shapes) < 2 or not all(shapes):
        return 0
    out, left, right = (found[0].sizes for found in (arrays(instruction.shape), *shapes))
    if instruction.opcode == "dot":
        summed = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
        return 2.0 * math.prod(out) * math.prod(left[int(d)] for d in summed.split(",") if d)
    return _convolution(instruction, out, left, right)


def _convolution(
    instruction: Instruction, out: tuple[int, ...], left: tuple[int, ...], right: tuple[int, ...]
) -> float:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if labels is None:
        return 0
    inputs, kernel, outputs = labels.groups()
    flops = 2.0 * right[kernel.index("i")] * out[outputs.index("b")] * out[outputs.index("f")]
    for place, label in enumerate(sorted(c for c in outputs if c.isdigit())):
        sizes = (left[inputs.index(label)], out[outputs.index(label)])
        flops *= _products(*sizes, *_window(instruction, place))
    return flops / int(instruction.attribute(r"batch_group_count=(\d+)") or 1)


def _window(instruction: Instruction, place: int) -> tuple[int, int, int, int, int]:
    """(size, stride, padding before, input dilation, window dilation) of one spatial dimension."""
    fields = dict(part.split("=") for part in instruction.attribute(r"window=\{([^}]*)\}").split())

    def at(key: str, default: str) -> int:
        parts = fields[key].split("x") if key in fields else []
        return int((parts[place] if place < len(parts) else default).split("_")[0])

    return at("size", "1"), at("stride", "1"), at("pad", "0"), at("lhs_dilate", "1"), at("rhs_dilate", "1")


def _products(size: int, out: int, window: int, stride: int, before: int, spread: int, apart: int) -> int:
    """Pairs (output, window place) along one dimension that meet an input element and not padding or a gap.

    The compiler writes batched dots as convolutions whose windows lie mostly in padding: those products are no work.
    """
    if out * window > TOO_MANY:
        return min(out * window, size * window)
    reach = (size - 1) * spread + 1 if size else 0
    places = (o * stride - before + k * apart for k in range(window) for o in range(out))
    return sum(1 for place in places if 0 <= place < reach and place % spread == 0)


def within(module: Module, name: str, known: dict[str, float]) -> float:
    """FLOPs of a computation and of the fusions nested in it; `known` keeps what was counted."""
    if name not in known:
        known[name] = sum(of(i) for i in module.within(name))
    return known[name]
