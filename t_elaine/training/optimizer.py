"""AdamW and its learning rate: optax's pieces, so that a skipped update moves the schedule and nothing else.

The schedule is a function of the run's step, not of the optimizer's own count. Knows no mesh and no model.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t_elaine.errors import UserError

KINDS = ("cosine", "linear", "constant")
DECAYED = ("matrix", "embedding")
MOMENTS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate over a run: linear warm-up to the peak, then down to a floor.

    Args:
        peak: highest learning rate.
        warmup_steps: steps of warm-up; None: taken from `warmup_fraction`.
        warmup_fraction: share of all steps, used where `warmup_steps` is None.
        floor_fraction: the last step's rate as a share of the peak.
        kind: the way down: "cosine", "linear" or "constant" (stays at the peak).
    """

    peak: float = 2e-5
    warmup_steps: int | None = None
    warmup_fraction: float = 0.01
    floor_fraction: float = 0.1
    kind: str = "cosine"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"kind is {self.kind!r}", "Schedule", f"give one of {', '.join(KINDS)}")
        for name in ("warmup_fraction", "floor_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}", "Schedule", "give a share between 0 and 1")
        if self.peak <= 0:
            raise UserError(f"peak is {self.peak}", "Schedule", "give a positive learning rate")


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
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0
    first_moment_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.first_moment_dtype not in MOMENTS:
            what = f"first_moment_dtype is {self.first_moment_dtype!r}"
            raise UserError(what, "AdamW", f"give one of {', '.join(MOMENTS)}")


def learning_rate(schedule: Schedule, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Function from the step about to be done (0 first) to its rate; the first one is above 0, the last the floor.

    Args:
        schedule: its shape.
        steps: of the whole run.

    Raises:
        UserError: the warm-up is longer than the run.
    """
    warmup = schedule.warmup_steps
    if warmup is None:
        warmup = round(schedule.warmup_fraction * steps)
    if warmup > steps:
        raise UserError(f"warm-up of {warmup} steps in a run of {steps}", "Schedule", f"give at most {steps}")
    floor, rest = schedule.peak * schedule.floor_fraction, max(steps - warmup, 1)
    down = {
        "cosine": optax.cosine_decay_schedule(schedule.peak, rest, schedule.floor_fraction),
        "linear": optax.linear_schedule(schedule.peak, floor, rest),
        "constant": optax.constant_schedule(schedule.peak),
    }[schedule.kind]
    rate = optax.join_schedules([optax.linear_schedule(0.0, schedule.peak, max(warmup, 1)), down], [warmup])
    return lambda step: jnp.asarray(rate(step + 1), jnp.float32)


def init_optimizer(params: Any, first_moment_dtype: str = "float32") -> dict[str, Any]:
    """Zero moments, the second in float32, laid out as the parameters, and a count of the updates done."""
    zeros = lambda dtype: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), params)  # noqa: E731
    return {"mu": zeros(first_moment_dtype), "nu": zeros("float32"), "count": jnp.zeros((), jnp.int32)}


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
    return params, {"mu": state.mu, "nu": state.nu, "count": state.count}, norm
