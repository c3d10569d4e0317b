"""What a step minimises: the likelihood of the trained tokens, or preferences between two answers.

An objective gives sums over a microbatch; the step adds them up over all microbatches and divides once. It knows the
model's last hidden states and its output table, and no layer of it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t_elaine.model.loss import weighted_nll

Batch = dict[str, jax.Array]
Extra = dict[str, jax.Array]


class Objective(NamedTuple):
    """One kind of training.

    Attributes:
        arrays: float32 [A,B,T] arrays of a batch beside the usual ones.
        whole: a batch [A,B,T] → what each microbatch needs to know of it, leaves [A,…].
        minimised: (x_BTD, w_DV, microbatch, whether the table is frozen) → what is minimised, its gradient flowing into
            x and w; each target's negative log likelihood [B,T]; further sums for the metrics.
        divisor: (sums [4,G] of `step.SUMS`, further sums) → what sums and gradients are divided by.
        told: (further sums, divisor) → metrics.
    """

    arrays: tuple[str, ...]
    whole: Callable[[Batch], Batch]
    minimised: Callable[[jax.Array, jax.Array, Batch, bool], tuple[jax.Array, jax.Array, Extra]]
    divisor: Callable[[jax.Array, Extra], jax.Array]
    told: Callable[[Extra, jax.Array], Mapping[str, Any]]


def likelihood(chunk: int, z_loss: float = 0.0) -> Objective:
    """The mean negative log likelihood of the trained tokens.

    Args:
        chunk: positions whose logits exist at a time.
        z_loss: coefficient of the squared log-normaliser (`model.loss.weighted_nll`).
    """

    def minimised(x_BTD: jax.Array, w_DV: jax.Array, part: Batch, frozen: bool) -> tuple[jax.Array, jax.Array, Extra]:
        total, nll_BT, z = weighted_nll(x_BTD, w_DV, part["targets"], part["weights"], chunk, z_loss, frozen)
        return total, nll_BT, {"z_loss": z}

    return Objective(
        arrays=(),
        whole=lambda batch: {},
        minimised=minimised,
        divisor=lambda sums_4G, extra: jnp.sum(sums_4G[1]),
        told=lambda extra, divisor: {"z_loss": extra["z_loss"] / jnp.maximum(divisor, 1.0)} if z_loss else {},
    )
