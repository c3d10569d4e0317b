"""Preferences between two answers as an objective: DPO, and RPO, which adds the chosen answers' likelihood.

Rows hold pairs of segments: 2p+1 the chosen dialogue, 2p+2 the rejected one (p from 0). `reference` is, at the first
token of a segment, the sum of the log-probabilities that the run's start gives its trained tokens. No second model is
computed here, and none is kept.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t_elaine.errors import UserError
from t_elaine.model.loss import chunked_cross_entropy, weighted_nll
from t_elaine.training.objective import Batch, Extra, Objective

SHARE = "chosen_share"
# Rows of the sums [7,G]: of all pairs the loss, both rewards, how many are right, how many there are; nats of the
# chosen answers and their tokens.
PAIR_SUMS = ("loss", "chosen", "rejected", "right", "pairs", "nll", "tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """How answers that are preferred are learned from those that are not (DPO, arXiv 2305.18290; RPO, 2404.19733).

    Args:
        beta: weight of the log-ratios to the start: larger holds the model nearer to it.
        rpo_alpha: weight of the chosen answers' mean negative log likelihood a token; 0: DPO alone.
        label_smoothing: share of the pairs whose preference is taken for wrong (conservative DPO); below 0.5.
    """

    beta: float = 0.1
    rpo_alpha: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UserError(f"beta is {self.beta}", "Preference.beta", "give a number above 0")
        if not self.rpo_alpha >= 0:
            raise UserError(f"rpo_alpha is {self.rpo_alpha}", "Preference.rpo_alpha", "give 0 or more")
        if not 0 <= self.label_smoothing < 0.5:
            what = f"label_smoothing is {self.label_smoothing}"
            raise UserError(what, "Preference.label_smoothing", "give a share from 0 to below 0.5")


def preferred(preference: Preference, chunk: int, groups: int) -> Objective:
    """The mean over all pairs of an update of −log σ(β((log π/π₀)(chosen) − (log π/π₀)(rejected))); see `Preference`.

    The chosen answers' likelihood is averaged over all their tokens in the update, as TRL does ("sft" beside "sigmoid",
    once `rpo_alpha`); the paper averages within each answer first.

    Args:
        preference: settings.
        chunk: positions whose logits exist at a time.
        groups: G.
    """

    def whole(batch: Batch) -> Batch:
        segments, odd = batch["segments"], batch["segments"] % 2 == 1
        pairs = jnp.sum(jnp.max(segments, axis=2) // 2).astype(jnp.float32)
        tokens = jnp.sum(jnp.where(odd, batch["weights"], 0.0))
        return {SHARE: jnp.full(segments.shape[:1], pairs / jnp.maximum(tokens, 1.0))}

    def minimised(x_BTD: jax.Array, w_DV: jax.Array, part: Batch, frozen: bool) -> tuple[jax.Array, jax.Array, Extra]:
        # How a pair's loss bends is known once both answers are read: the likelihoods first, then their gradient.
        fixed = jax.lax.stop_gradient
        nll_BT = chunked_cross_entropy(fixed(x_BTD), fixed(w_DV), part["targets"], chunk)
        sums_7G, slopes_BT = _pairs(preference, nll_BT, part, groups)
        bent, *_ = weighted_nll(x_BTD, w_DV, part["targets"], fixed(slopes_BT), chunk, 0.0, frozen)
        return jnp.sum(sums_7G[0]) + bent - fixed(bent), nll_BT, {"pairs": sums_7G}

    return Objective(
        arrays=("reference",),
        whole=whole,
        minimised=minimised,
        divisor=lambda sums_4G, extra: jnp.sum(extra["pairs"][PAIR_SUMS.index("pairs")]),
        told=lambda extra, divisor: {"pairs": extra["pairs"]},
    )


def _pairs(preference: Preference, nll_BT: jax.Array, part: Batch, groups: int) -> tuple[jax.Array, jax.Array]:
    """`PAIR_SUMS` [7,G] of a microbatch, and d(its loss)/d(each target's negative log likelihood) [B,T]."""
    weights_BT, segments_BT = part["weights"], part["segments"]
    hit_BTS = _hits(segments_BT)
    ratios_BS = _by_segment(-nll_BT * weights_BT - part["reference"], hit_BTS)
    chosen_BP, rejected_BP = preference.beta * ratios_BS[:, ::2], preference.beta * ratios_BS[:, 1::2]
    there_BP = _by_segment((segments_BT > 0).astype(jnp.float32), hit_BTS)[:, 1::2] > 0
    losses_BP, slopes_BP = losses(preference, chosen_BP - rejected_BP)
    slopes_BP = jnp.where(there_BP, preference.beta * slopes_BP, 0.0)
    slopes_BS = jnp.stack([-slopes_BP, slopes_BP], axis=2).reshape(ratios_BS.shape)
    slopes_BT = jnp.sum(jnp.where(hit_BTS, slopes_BS[:, None, :], 0.0), axis=2) * weights_BT
    learnt_BT = jnp.where(segments_BT % 2 == 1, weights_BT, 0.0)
    nll_BP, tokens_BP = (_by_segment(x, hit_BTS)[:, ::2] for x in (nll_BT * learnt_BT, learnt_BT))
    if preference.rpo_alpha:
        slopes_BT = slopes_BT + preference.rpo_alpha * part[SHARE] * learnt_BT
        losses_BP = losses_BP + preference.rpo_alpha * part[SHARE] * nll_BP
    right_BP = (chosen_BP > rejected_BP).astype(jnp.float32)
    values_7BP = jnp.stack([losses_BP, chosen_BP, rejected_BP, right_BP, jnp.ones_like(losses_BP), nll_BP, tokens_BP])
    # The group of a pair is that of its first target: the dialogue's own second token.
    first_BT = jnp.where(part["positions"] == 0, part["groups"], 0).astype(jnp.float32)
    group_BP = _by_segment(first_BT, hit_BTS)[:, ::2].astype(jnp.int32)
    hit_GBP = there_BP[None] & (group_BP[None] == jnp.arange(groups, dtype=jnp.int32)[:, None, None])
    return jnp.sum(jnp.where(hit_GBP[None], values_7BP[:, None], 0.0), axis=(2, 3)), slopes_BT


def losses(preference: Preference, margin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """DPO's loss of reward margins, and its derivative by them; both float32 and shaped as they are."""
    wrong = preference.label_smoothing
    loss = -(1 - wrong) * jax.nn.log_sigmoid(margin) - wrong * jax.nn.log_sigmoid(-margin)
    return loss, wrong * jax.nn.sigmoid(margin) - (1 - wrong) * jax.nn.sigmoid(-margin)


def answers(nll_BT: jax.Array, part: Batch) -> jax.Array:
    """The sum of log-probabilities of each segment's trained tokens: float32 [B,S], S as many as a row can hold."""
    return _by_segment(-nll_BT * part["weights"], _hits(part["segments"]))


def _hits(segments_BT: jax.Array) -> jax.Array:
    """bool [B,T,S]: which segment each token is of. XLA fuses it into whatever sums over it."""
    most = most_pairs(segments_BT.shape[1])
    return segments_BT[:, :, None] == jnp.arange(1, 2 * most + 1, dtype=jnp.int32)[None, None, :]


def most_pairs(length: int) -> int:
    """How many pairs a row of T inputs (T+1 tokens) can hold: each dialogue has two tokens at least."""
    return max(1, (length + 1) // 4)


def _by_segment(values_BT: jax.Array, hit_BTS: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(hit_BTS, values_BT[:, :, None], 0.0), axis=1)


def pair_figures(sums_7: np.ndarray) -> dict[str, Any]:
    """Means over pairs for a record: loss, rewards (β times the log-ratio), margin, accuracy; nats a chosen token."""
    loss, chosen, rejected, right, pairs, nll, tokens = (float(value) for value in sums_7)
    if not pairs:
        return {"loss": None, "bits_per_byte": None, "tokens": 0, "pairs": 0}
    means: Mapping[str, float] = {
        "loss": loss / pairs,
        "reward_chosen": chosen / pairs,
        "reward_rejected": rejected / pairs,
        "margin": (chosen - rejected) / pairs,
        "accuracy": right / pairs,
        "chosen_nll": nll / max(tokens, 1.0),
    }
    finite = {name: value if np.isfinite(value) else None for name, value in means.items()}
    return {**finite, "bits_per_byte": None, "pairs": int(pairs), "tokens": int(tokens)}
