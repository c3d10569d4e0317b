"""The Llama decoder: its parameters as a table of paths, and its forward pass as free functions over a nested dict.

Layers are stacked along a leading axis and run under `scan`. Knows no mesh (it names axes through `placement`), no file
format and no optimizer. `Llama` wraps the same functions as a Flax NNX module.

Parameters (float32): see `_table`. Letters: B batch, T sequence, D embed, H query heads, K kv heads, h head size,
F mlp, V vocabulary, L layers.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t_elaine.model import attention, context, heads_tpu, rope
from t_elaine.model.adapted import Adapted, gated_linear, linear, normed_linears
from t_elaine.model.config import OFFLOAD, SAVEABLE, ComputeConfig, LlamaConfig
from t_elaine.model.ops import look_up, rms_norm, unstack
from t_elaine.model.placement import constrain, row_major, stored

Params = dict[str, Any]
# (weights, their axes) → the residual stream, and the normed one times each of them.
Normed = Callable[[tuple[jax.Array, ...], tuple[tuple[str, str], ...]], tuple[jax.Array, tuple[jax.Array, ...]]]
# (q, k, v) → what each token takes from others, and what is kept of the layer beside it (a cache; nothing in training).
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class Parameter(NamedTuple):
    """One row of the table: where it is, how large, what its dimensions mean, and what it is for."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    role: str


def _table(config: LlamaConfig) -> Iterator[Parameter]:
    D, F, V, h = config.embed, config.mlp, config.vocab_size, config.head_dim
    H, K = config.q_heads, config.kv_heads

    def layer(path: str, shape: tuple[int, ...], axes: str, role: str) -> Parameter:
        return Parameter(("layers", *path.split("/")), (config.layers, *shape), ("layers", *axes.split()), role)

    yield Parameter(("embed", "table"), (V, D), ("vocab", "embed"), "embedding")
    yield layer("attention_norm/scale", (D,), "norm", "norm")
    for name, heads, axis in (("q", H, "q_heads"), ("k", K, "kv_heads"), ("v", K, "kv_heads")):
        yield layer(f"attention/{name}", (D, heads, h), f"embed {axis} head_dim", "matrix")
        if config.qkv_bias:
            yield layer(f"attention/{name}_bias", (heads, h), f"{axis} head_dim", "bias")
    yield layer("attention/o", (H, h, D), "q_heads head_dim embed", "matrix")
    yield layer("mlp_norm/scale", (D,), "norm", "norm")
    yield layer("mlp/gate", (D, F), "embed mlp", "matrix")
    yield layer("mlp/up", (D, F), "embed mlp", "matrix")
    yield layer("mlp/down", (F, D), "mlp embed", "matrix")
    yield Parameter(("final_norm", "scale"), (D,), ("norm",), "norm")
    if not config.tied_embeddings:
        yield Parameter(("head", "table"), (D, V), ("embed", "vocab"), "embedding")


def _tree(config: LlamaConfig, leaf: Callable[[int, Parameter], Any]) -> Params:
    tree: Params = {}
    for index, row in enumerate(_table(config)):
        node = tree
        for key in row.path[:-1]:
            node = node.setdefault(key, {})
        node[row.path[-1]] = leaf(index, row)
    return tree


def parameter_shapes(config: LlamaConfig) -> Params:
    """The tree of parameters as float32 `ShapeDtypeStruct`s."""
    return _tree(config, lambda _, row: jax.ShapeDtypeStruct(row.shape, jnp.float32))


def parameter_axes(config: LlamaConfig) -> Params:
    """The same tree, with each parameter's logical axis names as a tuple."""
    return _tree(config, lambda _, row: row.axes)


def parameter_roles(config: LlamaConfig) -> Params:
    """The same tree: "matrix", "norm", "bias" or "embedding" (what weight decay goes by)."""
    return _tree(config, lambda _, row: row.role)


def init(config: LlamaConfig, key: jax.Array) -> Params:
    """Random parameters: matrices and tables normal with `initializer_range`, norms one, biases zero.

    Jit it with out_shardings: values do not depend on the mesh.
    """

    def leaf(index: int, row: Parameter) -> jax.Array:
        if row.role in ("norm", "bias"):
            return jnp.full(row.shape, float(row.role == "norm"), jnp.float32)
        values = jax.random.normal(jax.random.fold_in(key, index), row.shape, jnp.float32)
        return values * config.initializer_range

    return _tree(config, leaf)


def _normed(x_BTD: jax.Array, scale_D: jax.Array, eps: float) -> Normed:
    return lambda weights, axes: normed_linears(x_BTD, scale_D, weights, axes, eps)


def _stored(w: Any, *shape: int) -> Any:
    """A weight as a matrix, still in pieces; an adapted one is a matrix already.

    (Left to reshape afterwards, the TPU compiler gathers [D,H,h] with few heads by summing whole tensors of zeros.)
    """
    return w if isinstance(w, Adapted) else stored(w.reshape(shape))


def _heads(
    config: LlamaConfig, w: Params, normed: Normed, cos: jax.Array, sin: jax.Array, compute: ComputeConfig
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The residual stream; queries and keys, turned, and values: [B,T,N,h] each."""
    D, H, K, h = config.embed, config.q_heads, config.kv_heads, config.head_dim
    if compute.attention == "flash_tpu" and heads_tpu.possible(h) and not isinstance(w["q"], Adapted):
        together = jnp.concatenate([w[name].reshape(D, -1) for name in "qkv"], axis=1)
        x, (y,) = normed((_stored(together, D, -1),), (("embed", "q_heads"),))
        if "q_bias" in w:
            y = y + jnp.concatenate([w[f"{name}_bias"].reshape(-1) for name in "qkv"])[None, None]
        return x, heads_tpu.turned(y, cos, sin, H, K)
    axes = ("q_heads", "kv_heads", "kv_heads")
    x, projected = normed(tuple(_stored(w[name], D, -1) for name in "qkv"), tuple(("embed", axis) for axis in axes))

    def by_head(name: str, axis: str, y: jax.Array) -> jax.Array:
        y = y.reshape(*y.shape[:2], -1, h)
        if f"{name}_bias" in w:
            y = y + w[f"{name}_bias"][None, None]
        return constrain(y, "batch", "sequence", axis, "head_dim")

    q, k, v = map(by_head, "qkv", axes, projected)
    return x, (rope.rotate(q, cos, sin), rope.rotate(k, cos, sin), v)


# (A kernel under a scope called attention would be taken for one by estimates, which go by names.)
@jax.named_scope("attn")
def _attention(
    config: LlamaConfig,
    w: Params,
    normed: Normed,
    cos: jax.Array,
    sin: jax.Array,
    attend: Attend,
    compute: ComputeConfig,
) -> tuple[jax.Array, Any]:
    x, (q, k, v) = _heads(config, w, normed, cos, sin, compute)
    out, kept = attend(q, k, v)
    y = linear(out.reshape(*out.shape[:2], -1), _stored(w["o"], -1, config.embed), ("q_heads", "embed"))
    return x + y, kept


@jax.named_scope("mlp")
def _mlp(config: LlamaConfig, w: Params, normed: Normed) -> jax.Array:
    D, F = config.embed, config.mlp
    x, wide = normed(tuple(_stored(w[name], D, F) for name in ("gate", "up")), (("embed", "mlp"),) * 2)
    gate, up = (
        checkpoint_name(constrain(y, "batch", "sequence", "mlp"), name)
        for y, name in zip(wide, ("gate", "up"), strict=True)
    )
    return x + gated_linear(gate, up, _stored(w["down"], F, D), ("mlp", "embed"))


def plain_layer(
    config: LlamaConfig, compute: ComputeConfig, cos: jax.Array, sin: jax.Array, attend: Attend
) -> Callable[[jax.Array, Params], tuple[jax.Array, Any]]:
    """One layer, (residual stream [B,T,D], its weights) → (the stream after it, what `attend` keeps); saves nothing.

    Args:
        config: the model.
        compute: dtype and attention, which may choose how heads are laid out.
        cos, sin: float32 [B,T,h/2], `rope.angles` of the tokens.
        attend: turned queries, keys and values [B,T,N,h] → [B,T,H,h], and anything beside it.
    """
    dtype = jnp.dtype(compute.dtype)
    is_adapted = lambda leaf: isinstance(leaf, Adapted)  # noqa: E731
    cast = lambda leaf: leaf if is_adapted(leaf) else leaf.astype(dtype)  # noqa: E731

    def layer(x_BTD: jax.Array, w: Params) -> tuple[jax.Array, Any]:
        matrices = jax.tree.map(cast, {"attention": w["attention"], "mlp": w["mlp"]}, is_leaf=is_adapted)
        normed = _normed(x_BTD, w["attention_norm"]["scale"], config.norm_eps)
        x_BTD, kept = _attention(config, matrices["attention"], normed, cos, sin, attend, compute)
        x_BTD = checkpoint_name(row_major(constrain(x_BTD, "batch", "sequence", None)), "middle")
        normed = _normed(x_BTD, w["mlp_norm"]["scale"], config.norm_eps)
        x_BTD = _mlp(config, matrices["mlp"], normed)
        return row_major(constrain(x_BTD, "batch", "sequence", None)), kept

    return layer


def _layer(
    config: LlamaConfig, compute: ComputeConfig, cos: jax.Array, sin: jax.Array, segments: jax.Array
) -> Callable:
    attend = lambda q, k, v: (attention.attend(q, k, v, segments, compute), None)  # noqa: E731
    layer = plain_layer(config, compute, cos, sin, attend)
    if compute.remat == "none":
        return layer
    # A norm is one number a token: never worth another pass over the residual stream.
    saved = {"full": (), "minimal": (*SAVEABLE, "norm"), "names": (*compute.saved, "norm")}[compute.remat]
    policy = jax.checkpoint_policies.save_only_these_names(*saved)
    if compute.offloaded:
        policy = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=saved,
            names_which_can_be_offloaded=compute.offloaded,
            offload_src="device",
            offload_dst=OFFLOAD,
        )
    # Inside scan the loop's border already keeps the compiler from merging the recomputation with the forward pass.
    return jax.checkpoint(layer, policy=policy, prevent_cse=not compute.scan_layers)


def hidden(
    params: Params,
    config: LlamaConfig,
    compute: ComputeConfig,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
) -> jax.Array:
    """The residual stream after the final norm: [B,T,D] in the compute dtype.

    Args:
        params: nested dict, float32.
        config: the model.
        compute: how to compute it.
        tokens_BT: int32 ids.
        positions_BT: int32 place of each token in its document.
        segments_BT: int32, 0 padding, 1… documents; a token sees only its own document.
    """
    tokens_BT, positions_BT, segments_BT = (context.dealt(x) for x in (tokens_BT, positions_BT, segments_BT))
    cos, sin = rope.angles(positions_BT, config)
    x = embed(params, compute, tokens_BT)
    layer = _layer(config, compute, cos, sin, segments_BT)
    if compute.scan_layers:
        x, _ = jax.lax.scan(layer, x, params["layers"], unroll=compute.scan_unroll)
    else:
        for weights in unstack(params["layers"]):
            x, _ = layer(x, weights)
    return context.in_order(rms_norm(x, params["final_norm"]["scale"], config.norm_eps))


@jax.named_scope("embed")
def embed(params: Params, compute: ComputeConfig, tokens_BT: jax.Array) -> jax.Array:
    """Look the tokens up: [B,T,D] in the compute dtype."""
    x = look_up(params["embed"]["table"], tokens_BT, compute.dtype)
    return constrain(x, "batch", "sequence", None)


def head_table(params: Params, config: LlamaConfig) -> jax.Array:
    """The output table [D,V], float32; the embedding's transpose where they are tied."""
    return params["embed"]["table"].T if config.tied_embeddings else params["head"]["table"]


def logits(
    params: Params,
    config: LlamaConfig,
    compute: ComputeConfig,
    tokens_BT: jax.Array,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """float32 logits [B,T,V], for small uses: training never makes them whole. One document a row by default."""
    B, T = tokens_BT.shape
    if positions_BT is None:
        positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
    if segments_BT is None:
        segments_BT = jnp.ones((B, T), jnp.int32)
    x = hidden(params, config, compute, tokens_BT, positions_BT, segments_BT)
    return jnp.einsum("BTD,DV->BTV", x, head_table(params, config).astype(x.dtype), preferred_element_type=jnp.float32)


class Llama(nnx.Module):
    """The decoder as an NNX module; `nnx.to_pure_dict(nnx.state(model, nnx.Param))` is the dict of parameters."""

    def __init__(
        self, config: LlamaConfig, compute: ComputeConfig, *, rngs: nnx.Rngs | None = None, params: Any = None
    ):
        """Wrap given parameters, or random ones from `rngs.params()`."""
        if params is None:
            params = init(config, (rngs or nnx.Rngs(0)).params())
        self.config, self.compute = config, compute
        for name, subtree in params.items():
            setattr(self, name, _as_module(subtree))

    def params(self) -> Params:
        """The parameters as a nested dict of arrays."""
        return nnx.to_pure_dict(nnx.state(self, nnx.Param))

    def __call__(
        self, tokens_BT: jax.Array, positions_BT: jax.Array | None = None, segments_BT: jax.Array | None = None
    ) -> jax.Array:
        """float32 logits [B,T,V], as `logits`."""
        return logits(self.params(), self.config, self.compute, tokens_BT, positions_BT, segments_BT)


def _as_module(tree: Any) -> Any:
    if isinstance(tree, dict):
        return nnx.Dict({name: _as_module(subtree) for name, subtree in tree.items()})
    return nnx.Param(tree)
