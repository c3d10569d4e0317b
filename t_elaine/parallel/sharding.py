"""The rules: which logical axis lies along which mesh axes. A layout is a table here, not an edit of the model.

Knows no parameter by name; errors carry the path that the caller's tree gives.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t_elaine.errors import UserError
from t_elaine.model import placement

Axes = tuple[str | None, ...]
Rules = Mapping[str, tuple[str, ...]]

RULES: Rules = MappingProxyType(
    {
        "batch": ("replica", "fsdp"),
        "sequence": ("context",),
        "embed": ("fsdp", "context"),  # devices that share rows need not each keep whole parameters
        "norm": (),  # a few kB a layer: gathering them would cost more than keeping them
        "mlp": ("tensor",),
        "vocab": ("tensor",),
        "q_heads": ("tensor",),
        "kv_heads": ("tensor",),
        "head_dim": (),
        "layers": (),
    }
)


def spec(
    axes: Axes, mesh: Mesh, rules: Rules = RULES, shape: Sequence[int] | None = None, name: str = "a tensor"
) -> PartitionSpec:
    """The mesh axes of each dimension.

    Args:
        axes: a logical axis or None (not split) for each dimension.
        mesh: its sizes are what dimensions must divide by.
        rules: logical axis → mesh axes.
        shape: checked where given.
        name: of the tensor, for errors.

    Raises UserError for an axis without a rule, two dimensions along one mesh axis, a dimension that does not divide.
    """
    parts: list[tuple[str, ...]] = []
    taken: dict[str, str] = {}
    for index, axis in enumerate(axes):
        if axis is not None and axis not in rules:
            raise UserError(
                f"{name}: no rule for the logical axis {axis!r}", "sharding rules", f"add one beside {', '.join(rules)}"
            )
        part = () if axis is None else tuple(rules[axis])
        for mesh_axis in part:
            _check_axis(mesh_axis, str(axis), taken, mesh, name, axes)
            taken[mesh_axis] = str(axis)
        if shape is not None:
            _check_size(shape[index], str(axis), part, mesh, name)
        # An axis of one device splits nothing; without it equal layouts have equal specs.
        parts.append(tuple(mesh_axis for mesh_axis in part if mesh.shape[mesh_axis] > 1))
    return PartitionSpec(*(part[0] if len(part) == 1 else part or None for part in parts))


def _check_axis(mesh_axis: str, axis: str, taken: Mapping[str, str], mesh: Mesh, name: str, axes: Axes) -> None:
    if mesh_axis not in mesh.shape:
        raise UserError(
            f"{name}: the rule for {axis} names the mesh axis {mesh_axis!r}",
            "sharding rules",
            f"give one of {', '.join(mesh.shape)}",
        )
    if mesh_axis in taken:
        raise UserError(
            f"{name} {axes}: {taken[mesh_axis]} and {axis} both lie along the mesh axis {mesh_axis!r}",
            "sharding rules",
            f"give {taken[mesh_axis]} or {axis} another mesh axis, or none",
        )


def _check_size(size: int, axis: str, part: tuple[str, ...], mesh: Mesh, name: str) -> None:
    ways = math.prod(mesh.shape[mesh_axis] for mesh_axis in part)
    if size % ways:
        divisors = [n for n in range(1, mesh.size + 1) if size % n == 0 and mesh.size % n == 0]
        raise UserError(
            f"{name}: {axis} is {size}, which does not divide into {ways} pieces along {' x '.join(part)}",
            "MeshConfig and sharding rules",
            f"on {mesh.size} devices, make {' x '.join(part)} one of {', '.join(map(str, divisors))}, "
            f"or give {axis} no mesh axis",
        )


def sharding(mesh: Mesh, rules: Rules, *axes: str | None) -> NamedSharding:
    """One tensor's sharding by its logical axes; no axes at all: a copy on every device."""
    return NamedSharding(mesh, spec(axes, mesh, rules))


def shardings(axes_tree: Any, mesh: Mesh, rules: Rules = RULES, shapes: Any = None) -> Any:
    """A tree of NamedShardings for a tree of tuples of logical axes.

    Args:
        axes_tree: nested dicts with tuples of logical axis names at the leaves.
        mesh: where to.
        rules: logical axis → mesh axes.
        shapes: the same tree of things with a shape; where given, each dimension is checked to divide.
    """
    is_axes = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    paths, structure = jax.tree.flatten_with_path(axes_tree, is_leaf=is_axes)
    sizes = [None] * len(paths) if shapes is None else [leaf.shape for leaf in jax.tree.leaves(shapes)]
    if len(sizes) != len(paths):
        raise ValueError(f"{len(paths)} tensors have axes, {len(sizes)} have shapes")
    made = [
        NamedSharding(mesh, spec(axes, mesh, rules, size, jax.tree_util.keystr(path, simple=True, separator="/")))
        for (path, axes), size in zip(paths, sizes, strict=True)
    ]
    return jax.tree.unflatten(structure, made)


@dataclass(frozen=True)
class MeshPlacement:
    """`model.placement.Placement` for one mesh and one table of rules."""

    mesh: Mesh
    rules: Rules

    def pieces(self, axis: str) -> int:
        """In how many pieces the rules cut a dimension with this logical axis."""
        return math.prod(self.mesh.shape[mesh_axis] for mesh_axis in self.rules[axis])

    def mesh_axes(self, axis: str) -> tuple[str, ...]:
        """The mesh axes of this logical axis."""
        return tuple(self.rules[axis])

    @property
    def platform(self) -> str:
        """What the mesh's devices are."""
        return str(self.mesh.devices.flat[0].platform)

    def constrain(self, x: jax.Array, axes: Axes) -> jax.Array:
        """Ask the compiler to lay x out by its logical axes."""
        if len(axes) != x.ndim:
            raise ValueError(f"{len(axes)} axes {axes} for a tensor of shape {x.shape}")
        layout = spec(axes, self.mesh, self.rules, x.shape, f"an activation of shape {x.shape}")
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, layout))

    def per_shard(self, kernel: Callable[..., Any], in_axes: Sequence[Axes], out_axes: Any) -> Callable[..., Any]:
        """Run the kernel on each device's piece, through `jax.shard_map`."""
        is_axes = lambda leaf: isinstance(leaf, tuple) and all(a is None or isinstance(a, str) for a in leaf)  # noqa: E731
        to_spec = lambda axes: spec(axes, self.mesh, self.rules)  # noqa: E731
        return jax.shard_map(
            kernel,
            mesh=self.mesh,
            in_specs=tuple(to_spec(axes) for axes in in_axes),
            out_specs=jax.tree.map(to_spec, out_axes, is_leaf=is_axes),
            # Pallas kernels do not say how their results vary over the mesh.
            check_vma=False,
        )


@contextmanager
def placing(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
    """While a model is traced, give its logical axes this mesh. Enter it inside the function that is jitted.

    A function that was jitted under one mesh must not be called under another: make it anew.
    """
    with placement.using(MeshPlacement(mesh, rules)):
        yield
