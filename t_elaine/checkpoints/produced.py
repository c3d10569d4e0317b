"""Saving arrays that no memory holds at once: each layer is made when it is written, and forgotten.

What a merge of models larger than the memory needs. Orbax is handed a leaf that only knows its shape; nothing is read.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint import type_handlers


@dataclass(frozen=True, kw_only=True, eq=False)
class Produced:
    """A float32 leaf of a tree of parameters that will be saved.

    Args:
        shape: of the whole array.
        make: layer → that layer's values [shape[1:]]; None → the whole array, of one that is not stacked.
        stacked: whether the first axis is the layers'.
    """

    shape: tuple[int, ...]
    make: Callable[[int | None], np.ndarray]
    stacked: bool

    dtype = np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the checkpoint."""
        return self.size * self.dtype.itemsize


class ProducedHandler(type_handlers.NumpyHandler):
    """Orbax's handler of numpy arrays, with a write that makes one layer at a time; it reads as that one does."""

    async def _open_and_write(self, value: Any, tspec: dict[str, Any], ts_context: tensorstore.Context) -> None:
        """Nothing is awaited, so leaves are written one after another and one layer is alive."""
        spec = tensorstore.Spec(tspec)
        store = tensorstore.open(spec, create=True, open=True, context=ts_context).result()
        for layer in range(value.shape[0]) if value.stacked else [None]:
            place = store if layer is None else store[layer]
            place.write(np.ascontiguousarray(value.make(layer), value.dtype)).result()


def registry() -> Any:
    """Orbax's types of leaves, and ours."""
    standard = [(kind, type_handlers.get_type_handler(kind)) for kind in (int, float, np.number, np.ndarray, jax.Array)]
    ours = (Produced, ProducedHandler(deepcopy_host_arrays=False))
    # Both call themselves np.ndarray in the checkpoint; the later one is what such a checkpoint is read by.
    return ocp.type_handlers.create_type_handler_registry(ours, *standard)
