"""AdamW and its learning rate: optax's pieces, so that a skipped update moves the schedule and nothing else.

The schedule is a function of the run's step, not of the optimizer's own count. Knows no mesh and no model.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t_elaine.errors import UserError

KINDS = ("cosine", "linear", "constant", "wsd")
DECAYS = ("sqrt", "linear", "cosine", "exponential")
DECAYED = ("matrix", "embedding")
MOMENTS = ("float32", "bfloat16")
AVERAGE, SPIKES = "average", "spikes"  # what an optimizer's state may hold beside its moments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate over a run: linear warm-up to the peak, then down to a floor.

    With kind="wsd" the rate stays where it is between warm-up and a decay that ends with the run, so that a run of any
    length is the same up to its decay: warmup-stable-decay (Hu et al., MiniCPM, arXiv 2404.06395; Hägele et al., arXiv
    2405.18392). With a cool-down to a lower constant it is the infinite schedule of Ibrahim et al. (arXiv 2403.08763).

    Args:
        peak: highest learning rate.
        warmup_steps: steps of warm-up; None: taken from `warmup_fraction`.
        warmup_fraction: share of all steps, used where `warmup_steps` is None.
        start_fraction: the rate that the warm-up begins from, as a share of the peak.
        floor_fraction: the last step's rate as a share of the peak.
        kind: the way down: "cosine", "linear", "constant" (stays at the peak) or "wsd".
        cooldown_steps: for "wsd": steps of a cosine from the peak to the constant part.
        constant_fraction: for "wsd": rate of the constant part as a share of the peak.
        decay_steps: for "wsd": steps of the last part; None: taken from `decay_fraction`; 0: it never decays.
        decay_fraction: for "wsd": share of all steps.
        decay: for "wsd": the last part's form: "sqrt" (1 - the root of its share that is done), "linear", "cosine" or
            "exponential".
        restarts: steps at which it begins anew, warm-up and all: re-warming and re-decaying (Gupta et al., arXiv
            2308.04014), from the floor; fractions are then of what lies between.
    """

    peak: float = 2e-5
    warmup_steps: int | None = None
    warmup_fraction: float = 0.01
    start_fraction: float = 0.0
    floor_fraction: float = 0.1
    kind: str = "cosine"
    cooldown_steps: int = 0
    constant_fraction: float = 1.0
    decay_steps: int | None = None
    decay_fraction: float = 0.1
    decay: str = "sqrt"
    restarts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("kind", KINDS), ("decay", DECAYS)):
            if getattr(self, name) not in known:
                what = f"{name} is {getattr(self, name)!r}"
                raise UserError(what, "Schedule", f"give one of {', '.join(known)}")
        for name in ("warmup_fraction", "start_fraction", "floor_fraction", "constant_fraction", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}", "Schedule", "give a share between 0 and 1")
        if self.peak <= 0:
            raise UserError(f"peak is {self.peak}", "Schedule", "give a positive learning rate")
        if self.kind == "wsd" and self.decay == "exponential" and not self.floor_fraction:
            what = "an exponential decay never reaches a floor of 0"
            raise UserError(what, "Schedule.floor_fraction", "give a share above 0, or another decay")
        if list(self.restarts) != sorted({step for step in self.restarts if step > 0}):
            what = f"restarts are {self.restarts}"
            raise UserError(what, "Schedule.restarts", "give steps above 0, each later than the one before it")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101).

    Args:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: times the learning rate; on matrices and embeddings, never on norms and biases.
        clip: largest global gradient norm; None: no clipping.
        first_moment_dtype: "float32", or "bfloat16" to save two bytes a parameter; the second moment is float32.
        average: share of the running average of the weights that each update keeps, as 0.999 (Polyak and Juditsky 1992;
            the average a run keeps beside its weights, four bytes a parameter more, and `export --average` writes);
            None: none is kept.
        skip_above: an update whose gradient norm is more than so many times the running mean of the norms is skipped
            (loss spikes: Chowdhery et al., PaLM, arXiv 2204.02311, section 5.1, skip batches by hand); None: none is.
        skip_after: updates before the first that may be skipped.
        skip_memory: share of that running mean that each update keeps.
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0
    first_moment_dtype: str = "float32"
    average: float | None = None
    skip_above: float | None = None
    skip_after: int = 100
    skip_memory: float = 0.99

    def __post_init__(self) -> None:
        if self.first_moment_dtype not in MOMENTS:
            what = f"first_moment_dtype is {self.first_moment_dtype!r}"
            raise UserError(what, "AdamW", f"give one of {', '.join(MOMENTS)}")
        for name in ("average", "skip_memory"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise UserError(f"{name} is {value}", f"AdamW.{name}", "give a share between 0 and 1, as 0.999")
        if self.skip_above is not None and self.skip_above <= 1:
            what = f"skip_above is {self.skip_above}: ordinary updates would be skipped"
            raise UserError(what, "AdamW.skip_above", "give a number above 1, as 5, or None")

    @property
    def extras(self) -> tuple[str, ...]:
        """What the optimizer's state holds beside its moments."""
        return (AVERAGE,) * (self.average is not None) + (SPIKES,) * (self.skip_above is not None)


def learning_rate(schedule: Schedule, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Function from the step about to be done (0 first) to its rate; the first one is above 0, the last the floor.

    Args:
        schedule: its shape.
        steps: of the whole run.

    Raises:
        UserError: its parts are longer than the run (or than what lies between two restarts).
    """
    begins = [0, *(step for step in schedule.restarts if step < steps)]
    parts, edges = [], []
    for begin, end in zip(begins, [*begins[1:], steps], strict=True):
        lowest = schedule.floor_fraction if begin else schedule.start_fraction
        several, lengths = _cycle(schedule, end - begin, lowest)
        parts += several
        edges += [begin + length for length in lengths] + [end]
    rate = optax.join_schedules(parts, edges[:-1])
    return lambda step: jnp.asarray(rate(step + 1), jnp.float32)


def _cycle(schedule: Schedule, steps: int, lowest: float) -> tuple[list[optax.Schedule], list[int]]:
    """Warm-up and way down over some steps: the parts, and where each but the first begins."""
    warmup = schedule.warmup_steps
    if warmup is None:
        warmup = round(schedule.warmup_fraction * steps)
    if warmup > steps:
        raise UserError(f"warm-up of {warmup} steps in a run of {steps}", "Schedule", f"give at most {steps}")
    peak, floor, rest = schedule.peak, schedule.peak * schedule.floor_fraction, max(steps - warmup, 1)
    up = optax.linear_schedule(peak * lowest, peak, max(warmup, 1))
    if schedule.kind != "wsd":
        down = {
            "cosine": optax.cosine_decay_schedule(peak, rest, schedule.floor_fraction),
            "linear": optax.linear_schedule(peak, floor, rest),
            "constant": optax.constant_schedule(peak),
        }[schedule.kind]
        return [up, down], [warmup]
    decay = round(schedule.decay_fraction * steps) if schedule.decay_steps is None else schedule.decay_steps
    cooled = warmup + schedule.cooldown_steps
    if cooled + decay > steps:
        what = f"warm-up, cool-down and decay take {cooled + decay} steps of {steps}"
        raise UserError(what, "Schedule", f"give decay_steps of at most {max(steps - cooled, 0)}, or a longer run")
    stable = peak * schedule.constant_fraction
    cooldown = optax.cosine_decay_schedule(peak, max(schedule.cooldown_steps, 1), schedule.constant_fraction)
    last = partial(_decayed, schedule.decay, stable, floor, max(decay, 1))
    return [up, cooldown, optax.constant_schedule(stable), last], [warmup, cooled, steps - decay]


def _decayed(form: str, start: float, floor: float, steps: int, count: jax.Array) -> jax.Array:
    """Rate `count` steps into the last part, of `steps`."""
    share = jnp.clip(count / steps, 0.0, 1.0)
    if form == "exponential":
        return start * (floor / start) ** share
    done = {"sqrt": jnp.sqrt(share), "linear": share, "cosine": (1 - jnp.cos(jnp.pi * share)) / 2}[form]
    return start - (start - floor) * done  # exactly `start` at its first step, whatever the run's length


def init_optimizer(params: Any, first_moment_dtype: str = "float32", extras: tuple[str, ...] = ()) -> dict[str, Any]:
    """Zero moments, the second in float32, laid out as the parameters, and a count of the updates done.

    `extras` (`AdamW.extras`) adds the running average of the weights, which begins as they are, and that of the norms.
    """
    zeros = lambda dtype: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), params)  # noqa: E731
    state = {"mu": zeros(first_moment_dtype), "nu": zeros("float32"), "count": jnp.zeros((), jnp.int32)}
    return state | init_extras(params, extras)


def init_extras(params: Any, extras: tuple[str, ...]) -> dict[str, Any]:
    """The parts of a fresh state that `extras` names."""
    made: dict[str, Any] = {}
    if AVERAGE in extras:
        made[AVERAGE] = jax.tree.map(jnp.copy, params)  # buffers of its own: the step is given both to overwrite
    if SPIKES in extras:
        made[SPIKES] = {"mean": jnp.zeros((), jnp.float32), "seen": jnp.zeros((), jnp.int32)}
    return made


def extras_of(opt_state: dict[str, Any]) -> tuple[str, ...]:
    """The names of the extras that a state holds."""
    return tuple(name for name in (AVERAGE, SPIKES) if name in opt_state)


def is_calm(adamw: AdamW, above: float, opt_state: dict[str, Any], norm: jax.Array) -> jax.Array:
    """False where a gradient norm is a spike: more than `above` times the mean of those of the updates before it."""
    spikes = opt_state[SPIKES]
    return (spikes["seen"] < adamw.skip_after) | (norm <= above * spikes["mean"])


def _moved_extras(adamw: AdamW, opt_state: dict[str, Any], params: Any, norm: jax.Array) -> dict[str, Any]:
    """The extras after an update to `params`."""
    moved: dict[str, Any] = {}
    if adamw.average is not None:
        rest = 1.0 - adamw.average
        moved[AVERAGE] = jax.tree.map(lambda a, p: a + rest * (p - a), opt_state[AVERAGE], params)
    if adamw.skip_above is not None:
        mean, seen = opt_state[SPIKES]["mean"], opt_state[SPIKES]["seen"]
        part = jnp.maximum(1.0 - adamw.skip_memory, 1.0 / (seen + 1))  # a plain mean until there are enough
        moved[SPIKES] = {"mean": mean + part * (norm - mean), "seen": seen + 1}
    return moved


def decay_mask(roles: Any) -> Any:
    """True where weight decay applies: by what a parameter is for, since stacked norms have two dimensions too."""
    return jax.tree.map(lambda role: role in DECAYED, roles)


def update(
    adamw: AdamW, mask: Any, params: Any, gradients: Any, opt_state: dict[str, Any], rate: jax.Array
) -> tuple[Any, dict[str, Any], jax.Array]:
    """One AdamW update.

    Args:
        adamw: settings.
        mask: tree of bool, where to decay.
        params: float32.
        gradients: float32, divided by the token count already, not clipped.
        opt_state: from `init_optimizer`.
        rate: learning rate, float32 [].

    Returns:
        new parameters, new optimizer state, global norm of the gradients before clipping (float32 []).
    """
    norm = optax.tree.norm(gradients)
    if adamw.clip is not None:
        scale = jnp.minimum(1.0, adamw.clip / jnp.maximum(norm, 1e-30))
        gradients = jax.tree.map(lambda g: g * scale, gradients)
    # The update is computed from the first moment in float32; it is rounded where it is stored.
    adam = optax.scale_by_adam(adamw.b1, adamw.b2, adamw.eps, mu_dtype=jnp.dtype(adamw.first_moment_dtype))
    state = optax.ScaleByAdamState(count=opt_state["count"], mu=opt_state["mu"], nu=opt_state["nu"])
    direction, state = adam.update(gradients, state)
    decay = optax.add_decayed_weights(adamw.weight_decay, mask)
    direction, _ = decay.update(direction, decay.init(params), params)
    params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
    moved = _moved_extras(adamw, opt_state, params, norm)
    return params, {"mu": state.mu, "nu": state.nu, "count": state.count, **moved}, norm
