"""Cross-entropy over a large vocabulary, a few positions at a time: no float32 [B,T,V] ever exists.

Knows tokens and tables, no model. `weighted_nll` is what a training step uses: it computes the gradient beside the
loss, chunk by chunk, so that logits are computed once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t_elaine.model.apart import by_device, in_rows, summed
from t_elaine.model.placement import constrain, gathered


def _chunks(x: jax.Array, chunk: int) -> jax.Array:
    """[B,T,...] → [N,P,S,C,...]: each device's tokens in N chunks of C, `chunk` positions of its rows; zeros behind."""
    B, rest = x.shape[0], x.shape[2:]
    x = by_device(x)
    P, S, n = x.shape[:3]
    C = min(chunk * (B // P), n)
    N = -(-n // C)
    x = jnp.pad(x, [(0, 0), (0, 0), (0, N * C - n)] + [(0, 0)] * len(rest))
    x = jnp.moveaxis(x.reshape(P, S, N, C, *rest), 2, 0)
    return constrain(x, None, "batch", "sequence", None, *[None] * len(rest))


def _rows(x: jax.Array, B: int, T: int) -> jax.Array:
    """[N,P,S,C,...] → [B,T,...], the inverse of `_chunks`."""
    _, P, S = x.shape[:3]
    return in_rows(jnp.moveaxis(x, 0, 2).reshape(P, S, -1, *x.shape[4:])[:, :, : B * T // (P * S)], B, T)


def _logits(x_PSCD: jax.Array, w_DV: jax.Array) -> jax.Array:
    logits = jnp.einsum("PSCD,DV->PSCV", x_PSCD, w_DV, preferred_element_type=jnp.float32)
    return constrain(logits, "batch", "sequence", None, "vocab")


def _nll(logits_PSCV: jax.Array, targets_PSC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log likelihood of the targets and the log normaliser, float32 [P,S,C] each."""
    normaliser = jax.nn.logsumexp(logits_PSCV, axis=-1)
    picked = jnp.take_along_axis(logits_PSCV, targets_PSC[..., None], axis=-1)[..., 0]
    return normaliser - picked, normaliser


def _chunks_a_group(x_NPSCD: jax.Array) -> int:
    """How many chunks' errors are kept for one matmul: a divisor of N, such that they take no more room than dw does.

    One matmul over many chunks is faster than adding each chunk's product to a float32 [D,V].
    """
    N, _, _, C, D = x_NPSCD.shape
    most = max(1, 4 * D // (C * x_NPSCD.dtype.itemsize))
    return max(size for size in range(1, N + 1) if N % size == 0 and size <= most)


def _in_groups(
    group: Callable[..., tuple[Any, Any]], kept: jax.Array, parts: tuple[jax.Array, ...]
) -> tuple[jax.Array, Any]:
    """Scan over groups of chunks: `group` ((dw or None, kept [G,...]), parts [G,...]) → (carry, results [G,...])."""
    N, size = parts[0].shape[0], kept.shape[0]
    if size == N:
        (dw, _), results = group((None, kept), parts)
        return dw, results
    split = jax.tree.map(lambda x: x.reshape(N // size, size, *x.shape[1:]), parts)
    first, rest = (jax.tree.map(lambda x, cut=cut: x[cut], split) for cut in (0, slice(1, None)))
    carry, begun = group((None, kept), first)
    (dw, _), others = jax.lax.scan(group, carry, rest)
    return dw, jax.tree.map(lambda a, b: jnp.concatenate([a, b.reshape(-1, *b.shape[2:])]), begun, others)


def chunked_cross_entropy(x_BTD: jax.Array, w_DV: jax.Array, targets_BT: jax.Array, chunk: int) -> jax.Array:
    """Negative log likelihood of each target in nats: float32 [B,T].

    Args:
        x_BTD: after the final norm, any float dtype.
        w_DV: output table; cast to x's dtype for the matmul, which accumulates in float32.
        targets_BT: int32 ids.
        chunk: positions of each row whose logits exist at a time.

    Its gradient recomputes each chunk's logits; `weighted_nll` is faster where only the weighted sum is differentiated.
    """
    return _chunked(x_BTD, w_DV, targets_BT, chunk)[0]


def _chunked(x_BTD: jax.Array, w_DV: jax.Array, targets_BT: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """Negative log likelihoods and log normalisers, float32 [B,T] each."""
    w = gathered(w_DV, x_BTD.dtype, None, "vocab")

    @jax.checkpoint
    def body(w: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        x_PSCD, targets_PSC = pair
        return w, _nll(_logits(x_PSCD, w), targets_PSC)

    _, (nll, normaliser) = jax.lax.scan(body, w, (_chunks(x_BTD, chunk), _chunks(targets_BT, chunk)))
    return _rows(nll, *x_BTD.shape[:2]), _rows(normaliser, *x_BTD.shape[:2])


Sums = tuple[jax.Array, jax.Array, jax.Array]


@jax.named_scope("loss")
def weighted_nll(
    x_BTD: jax.Array,
    w_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk: int,
    z_loss: float = 0.0,
    frozen: bool = False,
) -> Sums:
    """What is minimised, each target's negative log likelihood, the z-loss: float32 [], [B,T], [].

    The first is the weighted sum of the second, plus the third: `z_loss` times the weighted sum of squared
    log-normalisers (Chowdhery et al. 2022, arXiv 2204.02311, section 5), which keeps logits from drifting. Other
    arguments as for `chunked_cross_entropy`; weights_BT float32. Gradients flow from the first into x and w only (of a
    frozen table none is computed); the others are for metrics.
    """
    B, T = x_BTD.shape[:2]

    def penalised(normaliser: jax.Array) -> jax.Array:
        return z_loss * jnp.sum(jnp.square(normaliser) * weights_BT) if z_loss else jnp.zeros((), jnp.float32)

    def forward(x: jax.Array, w: jax.Array) -> Sums:
        nll, normaliser = _chunked(x, w, targets_BT, chunk)
        penalty = penalised(normaliser)
        return jnp.sum(nll * weights_BT) + penalty, nll, penalty

    @jax.custom_vjp
    def run(x: jax.Array, w: jax.Array) -> Sums:
        return forward(x, w)

    def run_forward(x: jax.Array, w: jax.Array) -> tuple[Sums, tuple[jax.Array, Any]]:
        table = gathered(w, x.dtype, None, "vocab")  # once, not for each chunk

        def one(kept: jax.Array, indexed: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            index, x_PSCD, targets, weights = indexed
            logits = _logits(x_PSCD, table)
            nll, normaliser = _nll(logits, targets)
            hit = targets[..., None] == jnp.arange(logits.shape[-1])[None, None, None, :]
            softmax = jnp.exp(logits - normaliser[..., None])
            if z_loss:
                softmax = softmax * (1 + 2 * z_loss * normaliser[..., None])
            error = ((softmax - hit) * weights[..., None]).astype(x.dtype)
            dx = jnp.einsum("PSCV,DV->PSCD", error, table, preferred_element_type=jnp.float32)
            if not frozen:
                kept = jax.lax.dynamic_update_index_in_dim(kept, error, index, 0)
            return kept, (nll, normaliser, dx.astype(x.dtype))

        def group(carry: tuple[Any, jax.Array], part: tuple[jax.Array, ...]) -> tuple[Any, tuple[jax.Array, ...]]:
            dw, kept = carry  # one room for all groups: a TPU fills each new one with zeros first
            kept, results = jax.lax.scan(one, kept, (jnp.arange(kept.shape[0]), *part))
            if frozen:
                return carry, results
            more = jnp.einsum("GPSCD,GPSCV->PSDV", part[0], kept, preferred_element_type=jnp.float32)
            more = constrain(more, "batch", "sequence", None, "vocab")
            return ((more if dw is None else dw + more), kept), results

        parts = (_chunks(x, chunk), _chunks(targets_BT, chunk), _chunks(weights_BT, chunk))
        kept = jnp.zeros((_chunks_a_group(parts[0]), *parts[0].shape[1:4], 0 if frozen else table.shape[1]), x.dtype)
        dw, results = _in_groups(group, constrain(kept, None, "batch", "sequence", None, "vocab"), parts)
        nll, normaliser, dx = (_rows(result, B, T) for result in results)
        penalty = penalised(normaliser)
        dtable = None if frozen else summed(dw, x.dtype, "embed", "vocab").astype(w.dtype)
        return (jnp.sum(nll * weights_BT) + penalty, nll, penalty), (dx, dtable)

    def run_backward(residuals: tuple[jax.Array, Any], cotangents: Sums) -> tuple[jax.Array, Any]:
        dx, dw = residuals
        scale = cotangents[0]
        return (dx * scale.astype(dx.dtype)), None if frozen else dw * scale.astype(dw.dtype)

    run.defvjp(run_forward, run_backward)
    return run(x_BTD, w_DV)
