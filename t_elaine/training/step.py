"""The training step: a free function (state, batch) → (state, metrics), jitted once with explicit shardings.

It reads no data, writes no file and keeps nothing between calls. `make_evaluation` is the same loss without gradients.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t_elaine.model import llama
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.model.lora import Lora
from t_elaine.model.loss import chunked_cross_entropy
from t_elaine.parallel import sharding as layouts
from t_elaine.training import objective as objectives
from t_elaine.training import optimizer as optim
from t_elaine.training.objective import Batch
from t_elaine.training.optimizer import AdamW
from t_elaine.training.preference import Preference, answers, preferred
from t_elaine.training.trained import BASE, DROPOUT, PARAMS, Trained

State = dict[str, Any]

# Rows of the per-group sums [4,G]: nats over all targets, their number; nats over targets that are text, their bytes.
SUMS = ("nll", "tokens", "text_nll", "bytes")


class Step(NamedTuple):
    """A jitted step, and the layouts and types that it expects and gives.

    `evaluate` gives the sums [4,G] of rows [B,T], `answers` the log-probability of each of their segments [B,S].
    """

    run: Any
    state_shardings: Any
    batch_sharding: NamedSharding
    evaluate: Any
    state_shapes: Any
    answers: Any
    arrays: tuple[str, ...] = ()


def init_state(params: Any, first_moment_dtype: str = "float32", extras: tuple[str, ...] = ()) -> State:
    """A fresh state around given parameters.

    `step` counts batches (skipped ones too); `tokens` is the number of targets trained on as two uint32 words (low,
    high), since 32 bits end at 4 billion; `skipped` counts all skipped updates, `skipped_in_a_row` the latest ones.
    """
    zero = jnp.zeros((), jnp.int32)
    return {
        "params": params,
        "opt_state": optim.init_optimizer(params, first_moment_dtype, extras),
        "step": zero,
        "tokens": jnp.zeros((2,), jnp.uint32),
        "skipped": zero,
        "skipped_in_a_row": zero,
    }


def token_count(tokens: Any) -> int:
    """The two words of `state["tokens"]` (on the host) as one number."""
    low, high = (int(word) for word in np.asarray(tokens))
    return low + (high << 32)


def weights(state: State) -> Any:
    """What the model is computed from: the parameters, or adapters and the frozen base (what `Step.evaluate` takes)."""
    return {PARAMS: state[PARAMS], BASE: state[BASE]} if BASE in state else state[PARAMS]


def state_shardings(
    config: LlamaConfig,
    mesh: Mesh,
    rules: Mapping[str, tuple[str, ...]],
    lora: Lora | None = None,
    extras: tuple[str, ...] = (),
) -> Any:
    """The state's tree of shardings: moments (and an average) lie as the parameters do, counters on every device."""
    trained = Trained(config, lora)
    params = trained.shardings(mesh, rules)
    here = NamedSharding(mesh, PartitionSpec())
    counters = dict.fromkeys(("step", "tokens", "skipped", "skipped_in_a_row"), here)
    frozen = {BASE: trained.frozen_shardings(mesh, rules)} if lora is not None else {}
    further = {optim.AVERAGE: params, optim.SPIKES: {"mean": here, "seen": here}}
    optimizer = {"mu": params, "nu": params, "count": here} | {name: further[name] for name in extras}
    return {"params": params, "opt_state": optimizer, **counters, **frozen}


def state_shapes(
    config: LlamaConfig, shardings: Any, first_moment_dtype: str = "float32", lora: Lora | None = None
) -> State:
    """The state as `ShapeDtypeStruct`s with shardings: what a restore is asked for, what a compilation is given."""
    trained = Trained(config, lora)
    extras = optim.extras_of(shardings["opt_state"])
    fresh = partial(init_state, first_moment_dtype=first_moment_dtype, extras=extras)
    shapes = jax.eval_shape(fresh, trained.shapes())
    shapes |= {BASE: trained.frozen_shapes()} if lora is not None else {}
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)


def batch_layout(mesh: Mesh, rules: Mapping[str, tuple[str, ...]] = layouts.RULES) -> NamedSharding:
    """The sharding of a global batch [A,B,T]."""
    return layouts.sharding(mesh, rules, None, "batch", "sequence")


def batch_shapes(
    accumulation: int, rows: int, length: int, where: NamedSharding, more: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A global batch [A,B,T] as `ShapeDtypeStruct`s; `more`: the objective's own arrays (`Step.arrays`)."""
    kinds = dict.fromkeys(("tokens", "targets", "segments", "positions", "groups"), jnp.int32)
    kinds |= dict.fromkeys(("weights", *more), jnp.float32)
    shape = (accumulation, rows, length)
    return {name: jax.ShapeDtypeStruct(shape, kind, sharding=where) for name, kind in kinds.items()}


def make_step(
    config: LlamaConfig,
    compute: ComputeConfig,
    adamw: AdamW,
    rate: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    groups: int,
    byte_lengths: np.ndarray,
    rules: Mapping[str, tuple[str, ...]] = layouts.RULES,
    compiler_options: Mapping[str, str] | None = None,
    z_loss: float = 0.0,
    lora: Lora | None = None,
    seed: int = 0,
    preference: Preference | None = None,
) -> Step:
    """The jitted step for one model on one mesh.

    Args:
        config: the model.
        compute: how it is computed.
        adamw: optimizer settings.
        rate: step → learning rate.
        mesh: devices.
        groups: G, number of (language, category) groups.
        byte_lengths: int32 [V], UTF-8 bytes of each token; 0 for special tokens, which then count in no bits-per-byte.
        rules: logical axis → mesh axes.
        compiler_options: XLA options of this computation; an unknown one is an exception, not an abort.
        z_loss: coefficient of the squared log-normaliser in what is minimised (`model.loss.weighted_nll`).
        lora: train adapters of these settings beside a frozen base; None: train the model.
        seed: of the adapters' dropout.
        preference: learn from pairs of answers; None: from every trained token.
    """
    chunk = compute.loss_chunk
    objective = preferred(preference, chunk, groups) if preference else objectives.likelihood(chunk, z_loss)
    trained = Trained(config, lora)
    shardings = state_shardings(config, mesh, rules, lora, adamw.extras)
    where = batch_layout(mesh, rules)
    here = NamedSharding(mesh, PartitionSpec())
    mask = optim.decay_mask(trained.roles())
    sums = _group_sums(groups, byte_lengths)

    def states(params: Any, part: Batch, base: Any) -> tuple[jax.Array, jax.Array]:
        params = trained.whole(params, base, part.get(DROPOUT))
        x_BTD = llama.hidden(params, config, compute, part["tokens"], part["positions"], part["segments"])
        return x_BTD, llama.head_table(params, config)

    def loss(params: Any, part: Batch, base: Any = None) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        total, nll_BT, extra = objective.minimised(*states(params, part, base), part, base is not None)
        return total, (sums(nll_BT, part), extra)

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        batch = batch | objective.whole(batch) | trained.keys(seed, state["step"], batch["tokens"].shape[0])
        base = state.get(BASE)
        with layouts.placing(mesh, rules):
            gradients, total, (sums_4G, extra) = accumulate(loss, state["params"], batch, shardings["params"], base)
        divisor = objective.divisor(sums_4G, extra)
        state, metrics = apply(adamw, mask, rate, state, gradients, total, sums_4G, divisor)
        state |= {} if base is None else {BASE: base}
        return state, metrics | dict(objective.told(extra, divisor))

    def nll(held: Any, part: Batch) -> jax.Array:
        given = (held, part, None) if lora is None else (held[PARAMS], part, held[BASE])
        return chunked_cross_entropy(*states(*given), part["targets"], chunk)

    def evaluate(held: Any, part: Batch) -> jax.Array:
        with layouts.placing(mesh, rules):
            return sums(nll(held, part), part)

    def answered(held: Any, part: Batch) -> jax.Array:
        with layouts.placing(mesh, rules):
            return answers(nll(held, part), part)

    run = jax.jit(
        step,
        in_shardings=(shardings, where),
        out_shardings=(shardings, here),
        donate_argnums=0,
        compiler_options=dict(compiler_options or {}) or None,
    )
    rows = layouts.sharding(mesh, rules, "batch", "sequence")
    held_out, segments = (
        jax.jit(what, in_shardings=(weights(shardings), rows), out_shardings=here) for what in (evaluate, answered)
    )
    shapes = state_shapes(config, shardings, adamw.first_moment_dtype, lora)
    return Step(run, shardings, where, held_out, shapes, segments, objective.arrays)


def _group_sums(groups: int, byte_lengths: np.ndarray) -> Callable[[jax.Array, Batch], jax.Array]:
    """Function from nats [B,T] and a microbatch to sums [4,G] in the order of `SUMS`."""
    lengths_V = np.asarray(byte_lengths, np.float32)

    def sums(nll_BT: jax.Array, part: Batch) -> jax.Array:
        weights_BT = part["weights"]
        bytes_BT = jnp.take(jnp.asarray(lengths_V), part["targets"], axis=0) * weights_BT
        nll_BT = nll_BT * weights_BT
        values = jnp.stack([nll_BT, weights_BT, jnp.where(bytes_BT > 0, nll_BT, 0.0), bytes_BT])
        hit_GBT = part["groups"][None] == jnp.arange(groups, dtype=jnp.int32)[:, None, None]
        # A reduction over a comparison: XLA fuses it, no [4,G,B,T] is stored.
        return jnp.sum(jnp.where(hit_GBT[None], values[:, None], 0.0), axis=(2, 3))

    return sums


def accumulate(
    loss: Callable[[Any, Batch, Any], tuple[jax.Array, Any]],
    params: Any,
    batch: Batch,
    shardings: Any,
    base: Any = None,
) -> tuple[Any, jax.Array, Any]:
    """Sums over the A microbatches of a batch: gradients, loss, other sums. Nothing is divided here.

    Args:
        loss: (params, microbatch [B,T], base) → (what is minimised [], other sums).
        params: float32.
        batch: arrays [A,B,T].
        shardings: of the parameters; gradients lie the same way between microbatches.
        base: frozen parameters beside them, if any.
    """

    def body(carry: tuple[Any, jax.Array, Any], part: Batch) -> tuple[tuple[Any, jax.Array, Any], None]:
        gradients, total, sums = carry
        # Held together, or the compiler gathers the tables once for all microbatches and keeps them whole (2 GiB a
        # chip for Llama-3's two).
        held, part, frozen = jax.lax.optimization_barrier((params, part, base))
        (more_total, more_sums), more = jax.value_and_grad(loss, has_aux=True)(held, part, frozen)
        with jax.named_scope("accumulation"):
            gradients = jax.tree.map(lambda g, m: g + m.astype(jnp.float32), gradients, more)
            gradients = jax.lax.with_sharding_constraint(gradients, shardings)
        return (gradients, total + more_total, jax.tree.map(jnp.add, sums, more_sums)), None

    only = jax.tree.map(lambda x: x[0], batch)
    if jax.tree.leaves(batch)[0].shape[0] == 1:
        (total, sums), gradients = jax.value_and_grad(loss, has_aux=True)(params, only, base)
        gradients = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
        return jax.lax.with_sharding_constraint(gradients, shardings), total, sums
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    zeros = jax.lax.with_sharding_constraint(zeros, shardings)
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(loss, params, only, base))
    return jax.lax.scan(body, (zeros, *nothing), batch)[0]


@jax.named_scope("optimizer")
def apply(
    adamw: AdamW,
    mask: Any,
    rate: Callable[[jax.Array], jax.Array],
    state: State,
    gradients: Any,
    total: jax.Array,
    sums_4G: jax.Array,
    divisor: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
    """Divide by the divisor, clip, update; keep the old parameters and moments where that would do harm.

    That is where anything is not finite, and where the gradient norm is a spike (`AdamW.skip_above`).

    Returns:
        the new state, and metrics: loss (what is minimised, over the divisor), grad_norm, learning_rate, sums [4,G],
        skipped (0/1), skipped_in_a_row, tokens (two words).
    """
    tokens = jnp.sum(sums_4G[1])
    count = jnp.maximum(divisor, 1.0)
    gradients = jax.tree.map(lambda g: g / count, gradients)
    lr = rate(state["step"])
    params, opt_state, norm = optim.update(adamw, mask, state["params"], gradients, state["opt_state"], lr)
    good = jnp.isfinite(total) & jnp.isfinite(norm)
    if adamw.skip_above is not None:
        good &= optim.is_calm(adamw, adamw.skip_above, state["opt_state"], norm)
    keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731
    low = state["tokens"][0] + jnp.where(good, tokens, 0.0).astype(jnp.uint32)
    carry = (low < state["tokens"][0]).astype(jnp.uint32)
    new = {
        "params": jax.tree.map(keep, params, state["params"]),
        "opt_state": jax.tree.map(keep, opt_state, state["opt_state"]),
        "step": state["step"] + 1,
        "tokens": jnp.stack([low, state["tokens"][1] + carry]),
        "skipped": state["skipped"] + jnp.where(good, 0, 1),
        "skipped_in_a_row": jnp.where(good, 0, state["skipped_in_a_row"] + 1),
    }
    metrics = {
        "loss": total / count,
        "grad_norm": norm,
        "learning_rate": lr,
        "sums": sums_4G,
        "skipped": jnp.where(good, 0, 1),
        "skipped_in_a_row": new["skipped_in_a_row"],
        "tokens": new["tokens"],
    }
    return new, metrics
