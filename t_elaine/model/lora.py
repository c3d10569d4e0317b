"""Low-rank adapters beside a frozen model: which matrices get them, their tree of parameters, and both made one again.

A tree of adapters has {"down" [L,in,r], "up" [L,r,out]} (DoRA: and "magnitude" [L,out]) where the model has a matrix;
the frozen base has matrices [L,in,out] in the dtype it is kept in. The arithmetic of one matrix is `adapted`'s.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t_elaine.errors import UserError
from t_elaine.model import llama
from t_elaine.model.adapted import Adapted, column_lengths, values
from t_elaine.model.config import LlamaConfig
from t_elaine.model.quantised import KINDS, Quantised, quantise, quantised_shapes

Tree = dict[str, Any]
BASES = ("bfloat16", "float32", *KINDS)


class Matrix(NamedTuple):
    """A matrix that can have an adapter: where it is, its sizes and the logical axes of both sides."""

    group: str
    name: str
    rows: int
    columns: int
    axes: tuple[str, str]

    @property
    def path(self) -> str:
        """In the model's tree."""
        return f"layers/{self.group}/{self.name}"

    def shapes(self, config: LlamaConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Inputs and outputs as the model's own array has them: heads and their size are two dimensions there."""
        H, K, h = config.q_heads, config.kv_heads, config.head_dim
        sides = {"embed": (config.embed,), "mlp": (config.mlp,), "q_heads": (H, h), "kv_heads": (K, h)}
        return sides[self.axes[0]], sides[self.axes[1]]

    @property
    def names(self) -> tuple[str, ...]:
        """What settings may call it: ours, and Hugging Face's."""
        theirs = f"{self.name}_proj"
        return self.name, f"{self.group}/{self.name}", theirs, f"{HF_GROUPS[self.group]}.{theirs}", "all-linear"


HF_GROUPS = {"attention": "self_attn", "mlp": "mlp"}


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Train low-rank adapters beside a frozen model (LoRA, Hu et al. 2021, arXiv 2106.09685), not the model itself.

    Args:
        rank: r, of each adapter.
        alpha: an adapter's product is scaled by alpha / rank.
        dropout: share of each adapter's inputs that a step drops; the same ones whenever it is computed.
        targets: matrices with an adapter: q, k, v, o, gate, up, down, Hugging Face's names (q_proj …), "all-linear", or
            patterns of these ("mlp/*").
        rslora: scale by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732).
        dora: learn the length of each column beside its direction (Liu et al. 2024, arXiv 2402.09353).
        base: what the frozen matrices are kept in: "bfloat16", "float32", "int8" or "nf4" (QLoRA, Dettmers et al. 2023,
            arXiv 2305.14314; blocks of 64 inputs share a float32 scale). Tables are kept in bfloat16 unless "float32".
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    rslora: bool = False
    dora: bool = False
    base: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            what = f"rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}"
            raise UserError(what, "Lora", "give a rank of at least 1, alpha above 0, and dropout of 0 or more, below 1")
        if self.base not in BASES:
            raise UserError(f"base is {self.base!r}", "Lora.base", f"give one of {', '.join(BASES)}")
        known = [name for group, name in MATRICES for name in Matrix(group, name, 1, 1, ("", "")).names]
        for pattern in self.targets or ("",):
            if not any(fnmatchcase(name, pattern) for name in known):
                listed = ", ".join(name for _, name in MATRICES)
                mend = f"give some of {listed}, all-linear, Hugging Face's names or patterns of them"
                raise UserError(f"{pattern!r} names no matrix of a layer", "Lora.targets", mend)

    @property
    def scale(self) -> float:
        """Of an adapter's product."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def record(self) -> dict[str, Any]:
        """Plain values, for a checkpoint's record."""
        return asdict(self) | {"targets": list(self.targets)}


MATRICES = (
    *(("attention", "q"), ("attention", "k"), ("attention", "v"), ("attention", "o")),
    *(("mlp", "gate"), ("mlp", "up"), ("mlp", "down")),
)


def from_record(fields: Mapping[str, Any]) -> Lora:
    """The settings from a checkpoint's record."""
    return Lora(**{**fields, "targets": tuple(fields["targets"])})


def matrices(config: LlamaConfig) -> list[Matrix]:
    """Every matrix of a layer."""
    D, F, q, kv = (
        config.embed,
        config.mlp,
        config.q_heads * config.head_dim,
        config.kv_heads * config.head_dim,
    )
    sizes = {"q": (D, q), "k": (D, kv), "v": (D, kv), "o": (q, D), "gate": (D, F), "up": (D, F), "down": (F, D)}
    return [Matrix(group, name, *sizes[name], _sides(name)) for group, name in MATRICES]


def _sides(name: str) -> tuple[str, str]:
    inner = {"q": "q_heads", "k": "kv_heads", "v": "kv_heads", "o": "q_heads"}.get(name, "mlp")
    return (inner, "embed") if name in ("o", "down") else ("embed", inner)


def targets(config: LlamaConfig, lora: Lora) -> list[Matrix]:
    """The matrices that get an adapter.

    Raises:
        UserError: the rank is above what the largest of them can have: its adapter would be larger than itself.
    """
    names = target_names(lora.targets)
    chosen = [matrix for matrix in matrices(config) if matrix.name in names]
    full = max(min(matrix.rows, matrix.columns) for matrix in chosen)
    if lora.rank > full:
        what = f"rank {lora.rank}, and no matrix with an adapter has a rank above {full}"
        raise UserError(what, "Lora.rank", "give a smaller one (usual: 8 to 256), or train without adapters")
    return chosen


def target_names(patterns: Sequence[str]) -> list[str]:
    """Our names of the matrices that patterns choose, in their order: "all-linear" and a list of all are the same."""
    chosen = lambda m: any(fnmatchcase(name, pattern) for pattern in patterns for name in m.names)  # noqa: E731
    return [name for group, name in MATRICES if chosen(Matrix(group, name, 1, 1, ("", "")))]


class Leaf(NamedTuple):
    """One array of the adapters: shape, logical axes (None: never split), role."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    role: str


def _leaves(config: LlamaConfig, lora: Lora) -> Iterator[tuple[Matrix, dict[str, Leaf]]]:
    L, r = config.layers, lora.rank
    for m in targets(config, lora):
        found = {
            "down": Leaf((L, m.rows, r), ("layers", m.axes[0], None), "matrix"),
            "up": Leaf((L, r, m.columns), ("layers", None, m.axes[1]), "matrix"),
        }
        if lora.dora:  # decayed, a column's length would go to zero: it decays as little as a norm's scale
            found["magnitude"] = Leaf((L, m.columns), ("layers", m.axes[1]), "norm")
        yield m, found


def _tree(config: LlamaConfig, lora: Lora, part: Any) -> Tree:
    tree: Tree = {}
    for m, leaves in _leaves(config, lora):
        named = {name: part(leaf) for name, leaf in leaves.items()}
        tree.setdefault("layers", {}).setdefault(m.group, {})[m.name] = named
    return tree


def adapter_shapes(config: LlamaConfig, lora: Lora) -> Tree:
    """The tree of adapters as float32 `ShapeDtypeStruct`s."""
    return _tree(config, lora, lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32))


def adapter_axes(config: LlamaConfig, lora: Lora) -> Tree:
    """The same tree: logical axes."""
    return _tree(config, lora, lambda leaf: leaf.axes)


def adapter_roles(config: LlamaConfig, lora: Lora) -> Tree:
    """The same tree: roles."""
    return _tree(config, lora, lambda leaf: leaf.role)


def base_shapes(config: LlamaConfig, kept: str) -> Tree:
    """The frozen base as `ShapeDtypeStruct`s: matrices [L,in,out] as `kept`, tables in a float dtype, norms float32."""
    tree = llama.parameter_shapes(config)
    wide = jnp.float32 if kept == "float32" else jnp.bfloat16
    for table in ("embed", "head"):
        if table in tree:
            tree[table]["table"] = jax.ShapeDtypeStruct(tree[table]["table"].shape, wide)
    for m in matrices(config):
        shape = (config.layers, m.rows, m.columns)
        whole = jax.ShapeDtypeStruct(shape, wide)
        tree["layers"][m.group][m.name] = quantised_shapes(shape, kept) if kept in KINDS else whole
    return tree


def base_axes(config: LlamaConfig, kept: str) -> Tree:
    """The same tree: logical axes; scales have the matrix's, though there may be too few of them to divide."""
    tree = llama.parameter_axes(config)
    for m in matrices(config):
        axes = ("layers", *m.axes)
        tree["layers"][m.group][m.name] = Quantised(axes, axes, kept) if kept in KINDS else axes
    return tree


def kept_as(w: jax.Array, kept: str, matrix: bool) -> Any:
    """A parameter as the base holds it: a matrix [...,in,out] of a layer, or a table."""
    if matrix and kept in KINDS:
        return quantise(w, kept)
    return w.astype(jnp.float32 if kept == "float32" else jnp.bfloat16)


def as_kept(w: jax.Array, kept: str, matrix: bool) -> jax.Array:
    """The float32 values that the base has for a parameter: those that training saw."""
    return values(kept_as(w, kept, matrix))


def init(config: LlamaConfig, lora: Lora, base: Tree, key: jax.Array) -> Tree:
    """New adapters that change nothing: `down` uniform within 1/sqrt(in), as PEFT's, `up` zero, lengths the base's."""
    tree: Tree = {}
    for index, (m, leaves) in enumerate(_leaves(config, lora)):
        bound = 1 / math.sqrt(m.rows)
        made = {
            "down": jax.random.uniform(
                jax.random.fold_in(key, index), leaves["down"].shape, jnp.float32, -bound, bound
            ),
            "up": jnp.zeros(leaves["up"].shape, jnp.float32),
        }
        if lora.dora:
            stacked = base["layers"][m.group][m.name]
            made["magnitude"] = jax.lax.map(lengths, stacked)
        tree.setdefault("layers", {}).setdefault(m.group, {})[m.name] = made
    return tree


def lengths(w: Any) -> jax.Array:
    """float32 [out]: lengths of the columns of one layer's matrix."""
    return jnp.sqrt(jnp.sum(jnp.square(values(w)), axis=0))


def combine(config: LlamaConfig, lora: Lora, base: Tree, adapters: Tree, key: jax.Array | None = None) -> Tree:
    """Base and adapters as parameters that `llama.hidden` takes; nothing is multiplied here.

    Args:
        config: the model.
        lora: settings.
        base: frozen.
        adapters: what is trained.
        key: uint32 [2] of this microbatch's dropout; None: nothing is dropped.
    """
    base = jax.tree.map(jax.lax.stop_gradient, base)
    tree = {**base, "layers": {name: dict(group) for name, group in base["layers"].items()}}
    for index, m in enumerate(matrices(config)):
        own = adapters["layers"].get(m.group, {}).get(m.name, {})
        keys = None
        if own and key is not None and lora.dropout:
            mine = jax.random.fold_in(jax.random.wrap_key_data(key), index)
            keys = jax.random.key_data(jax.random.split(mine, config.layers))
        tree["layers"][m.group][m.name] = Adapted(
            base["layers"][m.group][m.name], **own, key=keys, scale=lora.scale, dropout=lora.dropout
        )
    return tree


def freeze(config: LlamaConfig, kept: str, params: Tree) -> Tree:
    """The base of float32 parameters: what `base_shapes` describes."""
    tree = jax.tree.map(lambda leaf: leaf, params)
    for table in ("embed", "head"):
        if table in tree:
            tree[table]["table"] = kept_as(params[table]["table"], kept, matrix=False)
    for m in matrices(config):
        w = params["layers"][m.group][m.name].reshape(config.layers, m.rows, m.columns)
        tree["layers"][m.group][m.name] = kept_as(w, kept, matrix=True)
    return tree


def merge(config: LlamaConfig, lora: Lora, params: Tree, adapters: Tree) -> Tree:
    """Float32 parameters of the parent with the adapters in them: the model that training saw, in one piece."""
    tree = jax.tree.map(lambda leaf: leaf, params)
    for table in ("embed", "head"):
        if table in tree:
            tree[table]["table"] = as_kept(params[table]["table"], lora.base, matrix=False)
    for m in matrices(config):
        w = params["layers"][m.group][m.name]
        stacked = w.reshape(config.layers, m.rows, m.columns)
        own = adapters["layers"].get(m.group, {}).get(m.name, {})
        found = jax.lax.map(lambda pair: merged(lora, *pair), (stacked, own))
        tree["layers"][m.group][m.name] = found.reshape(w.shape)
    return tree


def merged(lora: Lora, w: jax.Array, adapter: Mapping[str, jax.Array]) -> jax.Array:
    """One layer's matrix [in,out] with its adapter in it, float32; the base's own values as training saw them.

    Args:
        lora: settings.
        w: float32 [in,out] as the parent's checkpoint has it.
        adapter: {"down" [in,r], "up" [r,out], and DoRA's "magnitude" [out]}; empty where the matrix has none.
    """
    w = as_kept(w, lora.base, matrix=True)
    if not adapter:
        return w
    with jax.default_matmul_precision("highest"):
        found = w + lora.scale * (adapter["down"] @ adapter["up"])
    if "magnitude" not in adapter:
        return found
    return found * (adapter["magnitude"] / column_lengths(w, adapter["down"], adapter["up"], lora.scale))[None]
