"""Where model and mesh meet: the model names the axes of its tensors here, a mesh gives the names a meaning.

Knows neither. Without an implementation (`using`) constraints are identities, so that the model runs anywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import jax
from jax.experimental.layout import Layout, with_layout_constraint

Axes = tuple[str | None, ...]


class Placement(Protocol):
    """What `parallel.sharding` implements."""

    def constrain(self, x: jax.Array, axes: Axes) -> jax.Array:
        """Ask the compiler to lay x out by its logical axes."""
        ...

    def per_shard(self, kernel: Callable[..., Any], in_axes: Sequence[Axes], out_axes: Any) -> Callable[..., Any]:
        """Make the kernel run on each device's own piece."""
        ...

    def pieces(self, axis: str) -> int:
        """In how many pieces the devices hold a dimension with this logical axis."""
        ...

    def mesh_axes(self, axis: str) -> tuple[str, ...]:
        """The mesh axes that cut a dimension with this logical axis."""
        ...

    @property
    def platform(self) -> str:
        """What the devices are: "cpu", "gpu" or "tpu"."""
        ...


_current: ContextVar[Placement | None] = ContextVar("placement", default=None)


@contextmanager
def using(placement: Placement) -> Iterator[None]:
    """Use an implementation while a computation is traced. Nothing is kept past the `with` block."""
    token = _current.set(placement)
    try:
        yield
    finally:
        _current.reset(token)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lay x out by its logical axes, one name (or None: not split) a dimension; identity without a mesh."""
    placement = _current.get()
    return x if placement is None else placement.constrain(x, axes)


def gathered(w: jax.Array, dtype: Any, *axes: str | None) -> jax.Array:
    """A parameter in the compute dtype, laid out by `axes`.

    It is cast before it travels: behind the barrier the compiler cannot gather float32 and cast afterwards.
    """
    return constrain(stored(w.astype(dtype)), *axes)


def stored(w: jax.Array) -> jax.Array:
    """A parameter as it lies, in pieces: what was done to it is not moved past the gather that comes next."""
    return jax.lax.optimization_barrier(w) if pieces("embed") > 1 else w


def per_shard(kernel: Callable[..., Any], in_axes: Sequence[Axes], out_axes: Any) -> Callable[..., Any]:
    """Wrap a kernel that the partitioner cannot split (Pallas): it sees each device's piece; identity without a mesh.

    Args:
        kernel: takes and gives arrays.
        in_axes: logical axes of each argument.
        out_axes: logical axes of the result, or a tree of them in the result's shape.
    """
    placement = _current.get()
    return kernel if placement is None else placement.per_shard(kernel, in_axes, out_axes)


def platform() -> str:
    """What the computation is traced for: the mesh's devices, which need not be there, else JAX's own."""
    placement = _current.get()
    return jax.default_backend() if placement is None else placement.platform


def pieces(axis: str) -> int:
    """In how many pieces the devices hold a dimension with this logical axis; 1 without a mesh."""
    placement = _current.get()
    return 1 if placement is None else placement.pieces(axis)


def mesh_axes(axis: str) -> tuple[str, ...]:
    """The mesh axes along which a dimension with this logical axis is cut, for collectives inside `per_shard`."""
    placement = _current.get()
    return () if placement is None else placement.mesh_axes(axis)


def row_major(x: jax.Array) -> jax.Array:
    """Ask a TPU's compiler to keep x's last dimension innermost, as kernels and loops read it; nothing elsewhere.

    Left alone, it may turn a matmul's result for the matmul's sake and copy it for every later reader.
    """
    if platform() != "tpu":
        return x
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))
