"""Matrices in eight or four bits: blocks along the input share a scale. They are read back, never computed with.

int8: symmetric, -127…127 over a block's largest magnitude. nf4: the sixteen values of NormalFloat (Dettmers et al.
2023, arXiv 2305.14314, appendix E), as bitsandbytes has them: an adapter trained here meets the same base there.
Knows no model and no mesh.
"""

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from t_elaine.errors import UserError

BLOCK = 64
KINDS = ("int8", "nf4")
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
BORDERS = tuple((low + high) / 2 for low, high in itertools.pairwise(NF4))


@partial(jax.tree_util.register_dataclass, data_fields=("codes", "scales"), meta_fields=("kind",))
@dataclass(frozen=True)
class Quantised:
    """A matrix [in,out], or a stack of them [L,in,out].

    Args:
        codes: int8 [...,in,out]; of nf4 uint8 [...,in/2,out]: a byte's low half is of the first half of its block.
        scales: float32 [...,in/block,out].
        kind: "int8" or "nf4".
    """

    codes: Any
    scales: Any
    kind: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix itself."""
        *stack, rows, columns = self.codes.shape
        return (*stack, rows * (2 if self.kind == "nf4" else 1), columns)


def block(rows: int) -> int:
    """Inputs that share a scale: 64, or the largest share of 64 that divides the matrix's inputs."""
    return math.gcd(rows, BLOCK)


def quantised_shapes(shape: tuple[int, ...], kind: str) -> Quantised:
    """Shapes and dtypes that a matrix of this shape is kept in.

    Raises:
        UserError: nf4 of a matrix with an odd number of inputs.
    """
    *stack, rows, columns = shape
    if kind == "nf4" and rows % 2:
        raise UserError(f"a matrix of {rows} inputs", "Lora.base", "two of nf4 share a byte: take int8 or bfloat16")
    codes = (rows // 2, jnp.uint8) if kind == "nf4" else (rows, jnp.int8)
    return Quantised(
        jax.ShapeDtypeStruct((*stack, codes[0], columns), codes[1]),
        jax.ShapeDtypeStruct((*stack, rows // block(rows), columns), jnp.float32),
        kind,
    )


def quantise(w: jax.Array, kind: str) -> Quantised:
    """A float matrix [...,in,out] in `kind`; every value goes to the nearest that there is."""
    *stack, rows, columns = w.shape
    blocks = w.astype(jnp.float32).reshape(*stack, -1, block(rows), columns)
    largest = jnp.max(jnp.abs(blocks), axis=-2)
    scales = largest / (127.0 if kind == "int8" else 1.0)
    shares = blocks / jnp.where(scales == 0, 1.0, scales)[..., None, :]
    if kind == "int8":
        return Quantised(jnp.round(shares).astype(jnp.int8).reshape(w.shape), scales, kind)
    codes = sum((shares > border).astype(jnp.uint8) for border in BORDERS)
    low, high = jnp.split(jnp.asarray(codes), 2, axis=-2)
    return Quantised((low | (high << 4)).reshape(*stack, rows // 2, columns), scales, kind)


def dequantised(w: Quantised, dtype: Any) -> jax.Array:
    """The matrix [...,in,out] again, computed in float32 and rounded to `dtype`."""
    *stack, blocks, columns = w.scales.shape
    codes = w.codes.reshape(*stack, blocks, -1, columns)
    if w.kind == "nf4":
        values = jnp.concatenate([_nf4(codes & 15), _nf4(codes >> 4)], axis=-2)
    else:
        values = codes.astype(jnp.float32)
    return (values * w.scales[..., None, :]).reshape(w.shape).astype(dtype)


def _nf4(codes: jax.Array) -> jax.Array:
    """Values of codes 0…15 by a tree of choices: element by element, where a look-up would be a gather."""
    values: list[Any] = [jnp.float32(value) for value in NF4]
    for bit in range(4):
        odd = (codes >> bit) & 1 == 1
        values = [jnp.where(odd, b, a) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]
