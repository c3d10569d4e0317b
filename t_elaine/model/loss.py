"""Cross-entropy over a large vocabulary, a few positions at a time: no float32 [B,T,V] ever exists.

Knows tokens and tables, no model. `weighted_nll` is what a training step uses: it computes the gradient beside the
loss, chunk by chunk, so that logits are computed once.
"""

import jax
import jax.numpy as jnp

from t_elaine.model.placement import constrain


def _chunks(x: jax.Array, chunk: int) -> jax.Array:
    """[B,T,...] → [N,B,chunk,...], zeros behind the last position."""
    B, T = x.shape[:2]
    N = -(-T // chunk)
    x = jnp.pad(x, [(0, 0), (0, N * chunk - T)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(B, N, chunk, *x.shape[2:]).swapaxes(0, 1)


def _rows(x: jax.Array, T: int) -> jax.Array:
    """[N,B,chunk,...] → [B,T,...], the inverse of `_chunks`."""
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :T]


def _logits(x_BCD: jax.Array, w_DV: jax.Array) -> jax.Array:
    logits = jnp.einsum("BCD,DV->BCV", x_BCD, w_DV, preferred_element_type=jnp.float32)
    return constrain(logits, "batch", None, "vocab")


def _nll(logits_BCV: jax.Array, targets_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log likelihood of the targets and the log normaliser, float32 [B,C] each."""
    normaliser = jax.nn.logsumexp(logits_BCV, axis=-1)
    picked = jnp.take_along_axis(logits_BCV, targets_BC[:, :, None], axis=-1)[:, :, 0]
    return normaliser - picked, normaliser


def chunked_cross_entropy(x_BTD: jax.Array, w_DV: jax.Array, targets_BT: jax.Array, chunk: int) -> jax.Array:
    """Negative log likelihood of each target in nats: float32 [B,T].

    Args:
        x_BTD: after the final norm, any float dtype.
        w_DV: output table; cast to x's dtype for the matmul, which accumulates in float32.
        targets_BT: int32 ids.
        chunk: positions of each row whose logits exist at a time.

    Its gradient recomputes each chunk's logits; `weighted_nll` is faster where only the weighted sum is differentiated.
    """
    w = w_DV.astype(x_BTD.dtype)

    @jax.checkpoint
    def body(w: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x_BCD, targets_BC = pair
        return w, _nll(_logits(x_BCD, w), targets_BC)[0]

    _, nll = jax.lax.scan(body, w, (_chunks(x_BTD, chunk), _chunks(targets_BT, chunk)))
    return _rows(nll, x_BTD.shape[1])


def weighted_nll(
    x_BTD: jax.Array, w_DV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Sum of weighted negative log likelihoods, and each target's own: (float32 [], float32 [B,T]).

    Arguments as for `chunked_cross_entropy`; weights_BT float32. Gradients flow from the sum into x and w only; the
    second result is for metrics.
    """
    T = x_BTD.shape[1]

    def forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        nll = chunked_cross_entropy(x, w, targets_BT, chunk)
        return jnp.sum(nll * weights_BT), nll

    @jax.custom_vjp
    def run(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        return forward(x, w)

    def run_forward(x: jax.Array, w: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        table = w.astype(x.dtype)

        def body(dw: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            x_BCD, targets, weights = part
            logits = _logits(x_BCD, table)
            nll, normaliser = _nll(logits, targets)
            hit = targets[:, :, None] == jnp.arange(logits.shape[-1])[None, None, :]
            error = (jnp.exp(logits - normaliser[:, :, None]) - hit) * weights[:, :, None]
            error = error.astype(x_BCD.dtype)
            dx = jnp.einsum("BCV,DV->BCD", error, table, preferred_element_type=jnp.float32)
            dw = dw + jnp.einsum("BCD,BCV->DV", x_BCD, error, preferred_element_type=jnp.float32)
            return constrain(dw, None, "vocab"), (nll, dx.astype(x.dtype))

        parts = (_chunks(x, chunk), _chunks(targets_BT, chunk), _chunks(weights_BT, chunk))
        dw, (nll, dx) = jax.lax.scan(body, jnp.zeros(w.shape, jnp.float32), parts)
        nll = _rows(nll, T)
        return (jnp.sum(nll * weights_BT), nll), (_rows(dx, T), dw.astype(w.dtype))

    def run_backward(
        residuals: tuple[jax.Array, jax.Array], cotangents: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        dx, dw = residuals
        scale = cotangents[0]
        return (dx * scale.astype(dx.dtype)), dw * scale.astype(dw.dtype)

    run.defvjp(run_forward, run_backward)
    return run(x_BTD, w_DV)
