"""Blocks of numbers into the order and dtype that a file has: rounding, turning, and no new memory for either.

It knows neither names nor files; `tensors.py` writes what comes out.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np


def orderer() -> Callable[[tuple[np.ndarray, np.dtype]], np.ndarray]:
    """A function from a block to its bytes as the file holds them (uint8 [n]), good until the call after the next.

    It is the block's own memory where nothing is to change; else memory that is used again and again, because fresh
    pages for every block cost more than turning it.
    """
    spare = [np.empty(0, np.uint8)] * 3
    calls = itertools.count()

    def room(index: int, dtype: np.dtype, *shape: int) -> np.ndarray:
        size = math.prod(shape) * dtype.itemsize
        if spare[index].size < size:
            spare[index] = np.empty(size, np.uint8)
        return spare[index][:size].view(dtype).reshape(shape)

    def in_order(run: tuple[np.ndarray, np.dtype]) -> np.ndarray:
        block, dtype = run
        if block.dtype == dtype and block.flags.c_contiguous:
            return block.reshape(-1).view(np.uint8)
        out = room(next(calls) % 2, dtype, *block.shape)
        if block.ndim == 2 and block.T.flags.c_contiguous:
            # Rounded first, then turned. Rows of a power of two in length would put a column of it into few sets of the
            # cache, which makes turning four times slower; 64 bytes more in each row spread it.
            longer = room(2, dtype, block.shape[1], block.shape[0] + 64 // dtype.itemsize)[:, : block.shape[0]]
            np.copyto(longer, block.T, casting="unsafe")
            block = longer.T
        np.copyto(out, block, casting="unsafe")
        return out.reshape(-1).view(np.uint8)

    return in_order
