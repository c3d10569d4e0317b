"""What is compiled: weights laid out for generation, a layer over pieces of prompts, and the loop that writes tokens.

A prompt is read layer by layer, each a small program: one compilation (a fraction of a second) serves all layers, and
prompts come in many lengths. Writing is one program of all layers, unrolled, in a loop on the device: layers' weights
and caches are arrays of their own, because on a CPU a scan over stacked ones copies every layer's slice at every token
(measured with SmolLM2-135M: twice the time a token). The functions are the model's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from t_elaine.errors import UserError
from t_elaine.generation import cache
from t_elaine.generation.cache import Layer, Shared
from t_elaine.generation.sampling import Array, How, Rows, choose
from t_elaine.model import llama, rope
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.model.ops import rms_norm
from t_elaine.parallel.sharding import RULES, placing, shardings

STEPS = 16  # tokens of each row a call of `write`


class State(NamedTuple):
    """What lives on the device between calls. B rows.

    Attributes:
        layers: ring caches.
        slot: where the next token is written.
        held: of each row, tokens in its ring.
        token: the last token of each row, not yet in the ring.
        live: whether a row still writes.
        made: new tokens so far.
        seen: bool [B,V] of tokens in prompt and answer, or None where no penalty asks for it.
        rows: settings.
    """

    layers: tuple[Layer, ...]
    slot: Array
    held: Array
    token: Array
    live: Array
    made: Array
    seen: Array | None
    rows: Rows


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Jitted functions; see the ones below that they are made of."""

    enter: Callable[..., Any]
    read: Callable[..., Any]
    leave: Callable[..., Any]
    empty: Callable[..., Any]
    insert: Callable[..., Any]
    admit: Callable[..., Any]
    write: Callable[..., Any]


def lay_out(params: Any, config: LlamaConfig, compute: ComputeConfig, mesh: Mesh, donate: bool) -> Any:
    """Parameters as generation reads them: `layers` a list of trees, matrices and tables in the compute dtype.

    Args:
        params: the stacked tree, float32, on the mesh.
        config, compute, mesh: of the engine.
        donate: free each stacked tensor when its layers are there.
    """
    layouts = shardings(llama.parameter_axes(config), mesh, RULES)
    norms = jax.tree.map(lambda role: role == "norm", llama.parameter_roles(config))

    def split(x: jax.Array, layout: Any, norm: bool) -> list[jax.Array]:
        of_one = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*layout.spec[1:]))
        dtype = x.dtype if norm else compute.dtype
        made = jax.jit(lambda x: [y.astype(dtype) for y in x], out_shardings=[of_one] * config.layers)(x)
        if donate:
            x.delete()
        return made

    def whole(x: jax.Array, layout: Any, norm: bool) -> jax.Array:
        return x if norm or x.dtype == compute.dtype else jax.jit(lambda x: x.astype(compute.dtype))(x)

    top = {name: jax.tree.map(whole, params[name], layouts[name], norms[name]) for name in params if name != "layers"}
    lists = jax.tree.map(split, params["layers"], layouts["layers"], norms["layers"])
    is_list = lambda leaf: isinstance(leaf, list)  # noqa: E731
    pick = lambda i: jax.tree.map(lambda leaves: leaves[i], lists, is_leaf=is_list)  # noqa: E731
    return {**top, "layers": [pick(i) for i in range(config.layers)]}


def make_programs(config: LlamaConfig, compute: ComputeConfig, mesh: Mesh) -> Programs:
    """The functions of an engine, for one mesh.

    Raises:
        UserError: the mesh cuts rows.
    """
    if mesh.shape["context"] > 1:
        mend = "give its devices to fsdp or tensor; tensor is the faster where heads divide by it"
        raise UserError("a mesh that cuts rows (context) cannot write token by token", "MeshConfig.context", mend)
    compute = replace(compute, remat="none", saved=(), offloaded=(), attention="reference")

    def placed(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def inside(*arguments: Any) -> Any:
            with placing(mesh):
                return function(config, compute, *arguments)

        inside.__name__ = function.__name__
        return jax.jit(inside, **options)

    return Programs(
        enter=placed(_enter),
        read=placed(_read, donate_argnums=(1, 4)),
        leave=placed(_leave),
        empty=placed(_empty, static_argnums=(0, 1)),
        insert=placed(_insert, donate_argnums=0),
        admit=placed(_admit, donate_argnums=0, static_argnums=4),
        write=placed(_write, donate_argnums=1, static_argnums=5),
    )


def _enter(
    config: LlamaConfig, compute: ComputeConfig, weights: Any, tokens_BT: jax.Array, positions_BT: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Embedded tokens, and the cosines and sines of their positions."""
    return llama.embed(weights, compute, tokens_BT), *rope.angles(positions_BT, config)


def _read(
    config: LlamaConfig,
    compute: ComputeConfig,
    w: Any,
    x_BTD: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    layer: Layer,
    start: jax.Array,
    pads_B: jax.Array,
    shared: Layer | None,
    pad: jax.Array | None,
) -> tuple[jax.Array, Layer]:
    """One layer over places start … start + T of prompts [B,K,S,h]: the stream after it, and its cache."""
    sees = cache.in_prompts(start, x_BTD.shape[1], layer[0].shape[2], pads_B)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Layer]:
        kept = cache.write(layer, k, v, start)
        return cache.attend(q, kept, sees, shared, pad), kept

    return llama.plain_layer(config, compute, cos, sin, attend)(x_BTD, w)


def _leave(config: LlamaConfig, compute: ComputeConfig, weights: Any, x_BTD: jax.Array) -> jax.Array:
    """float32 logits [B,V] of the last place."""
    x_BD = rms_norm(x_BTD[:, -1:], weights["final_norm"]["scale"], config.norm_eps)[:, 0]
    if config.tied_embeddings:  # the table as it lies: its transpose would be a copy of it at every token
        return jnp.einsum("BD,VD->BV", x_BD, weights["embed"]["table"], preferred_element_type=jnp.float32)
    return jnp.einsum("BD,DV->BV", x_BD, weights["head"]["table"], preferred_element_type=jnp.float32)


def _empty(config: LlamaConfig, compute: ComputeConfig, rows: int, slots: int) -> Layer:
    return cache.empty(rows, config.kv_heads, slots, config.head_dim, compute.dtype)


def _insert(
    config: LlamaConfig, compute: ComputeConfig, ring: Layer, prompts: Layer, where_G: jax.Array, slot: jax.Array
) -> Layer:
    k, v = (cache.insert(old, new, where_G, slot) for old, new in zip(ring, prompts, strict=True))
    return k, v


def _admit(
    config: LlamaConfig,
    compute: ComputeConfig,
    state: State,
    fresh: State,
    logits_GV: jax.Array,
    where_G: jax.Array,
    how: How,
) -> tuple[State, jax.Array, jax.Array]:
    """Rows `where_G` of the state (B: nowhere) become the fresh ones, with their first token [G], logprob [G].

    Both states come without layers; `fresh` without token, live and made.
    """
    none = jnp.zeros_like(fresh.held)
    token, logprob = choose(logits_GV, fresh.rows, none, fresh.seen, how)
    begun = fresh._replace(token=token, made=none + 1, slot=state.slot)
    begun = begun._replace(live=_goes_on(begun), seen=_with_seen(begun.seen, token))
    merged = jax.tree.map(
        lambda old, new: old if old.ndim == 0 else old.at[where_G].set(new, mode="drop"), state, begun
    )
    return merged, token, logprob


def _goes_on(state: State) -> jax.Array:
    ended = jnp.any(state.token[:, None] == state.rows.ends, axis=1)
    return ~ended & (state.made < state.rows.max_new)


def _with_seen(seen_BV: jax.Array | None, token_B: jax.Array) -> jax.Array | None:
    return None if seen_BV is None else seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)


def _write(
    config: LlamaConfig,
    compute: ComputeConfig,
    weights: Any,
    state: State,
    shared: Shared | None,
    alive_B: jax.Array,
    limit: jax.Array,
    how: How,
) -> tuple[State, jax.Array, jax.Array]:
    """Up to `limit` (at most STEPS) tokens of each row: the state, tokens [B,STEPS] (-1: none) and logprobs.

    It ends where no row is live. `alive_B`: rows that the host has not stopped.
    """
    B = state.token.shape[0]
    step = partial(_step, config, compute, weights, shared=shared, how=how)

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        j, state, tokens, logprobs = carry
        live = state.live
        state, logprob = step(state)
        at = (0, j)
        tokens = jax.lax.dynamic_update_slice(tokens, jnp.where(live, state.token, -1)[:, None], at)
        return j + 1, state, tokens, jax.lax.dynamic_update_slice(logprobs, logprob[:, None], at)

    start = (
        jnp.int32(0),
        state._replace(live=state.live & alive_B),
        jnp.full((B, STEPS), -1, jnp.int32),
        jnp.zeros((B, STEPS), jnp.float32),
    )
    _, state, tokens, logprobs = jax.lax.while_loop(
        lambda carry: (carry[0] < limit) & jnp.any(carry[1].live), body, start
    )
    return state, tokens, logprobs


def _step(
    config: LlamaConfig, compute: ComputeConfig, weights: Any, state: State, shared: Shared | None, how: How
) -> tuple[State, jax.Array]:
    """The last tokens go through the model, and each row gets its next one: the state, logprobs [B]."""
    before = 0 if shared is None else shared.length
    x, cos, sin = _enter(config, compute, weights, state.token[:, None], (before + state.held)[:, None])
    slot = state.slot % state.layers[0][0].shape[2]
    held = state.held + state.live
    sees = cache.in_ring(state.layers[0][0].shape[2], slot, held)
    kept: list[Layer] = []
    for index, w in enumerate(weights["layers"]):

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, index: int = index) -> tuple[jax.Array, Layer]:
            layer = cache.write(state.layers[index], k, v, slot)
            common, pad = (None, None) if shared is None else (shared.layers[index], shared.pad)
            return cache.attend(q, layer, sees, common, pad), layer

        x, layer = llama.plain_layer(config, compute, cos, sin, attend)(x, w)
        kept.append(layer)
    token, logprob = choose(_leave(config, compute, weights, x), state.rows, state.made, state.seen, how)
    token = jnp.where(state.live, token, state.token)
    state = state._replace(
        layers=tuple(kept),
        slot=state.slot + 1,
        held=held,
        token=token,
        made=state.made + state.live,
        seen=_with_seen(state.seen, token),
    )
    return state._replace(live=state.live & _goes_on(state)), logprob
