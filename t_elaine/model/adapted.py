"""A frozen matrix with a low-rank adapter, which a layer multiplies with as it does with a plain one.

Here is the arithmetic of one matrix; which matrices of a model have adapters is `lora`'s. The frozen part gets no
gradient, and none is computed for it. LoRA: Hu et al. 2021, arXiv 2106.09685; DoRA: Liu et al. 2024, arXiv 2402.09353.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from t_elaine.model import ops
from t_elaine.model.placement import constrain, gathered
from t_elaine.model.quantised import Quantised, dequantised

Axes = tuple[str, str]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("base", "down", "up", "magnitude", "key"),
    meta_fields=("scale", "dropout"),
)
@dataclass(frozen=True)
class Adapted:
    """A matrix of one layer, or of all layers (then each array has a leading layer axis).

    Args:
        base: [in,out], frozen: floats or `Quantised`.
        down: float32 [in,r]; None: the matrix has no adapter.
        up: float32 [r,out].
        magnitude: float32 [out], DoRA's; None: plain LoRA.
        key: uint32 [2], of this step's dropout; None: nothing is dropped.
        scale: of the adapter's product.
        dropout: share of the adapter's inputs that are dropped.
    """

    base: Any
    down: Any = None
    up: Any = None
    magnitude: Any = None
    key: Any = None
    scale: float = 1.0
    dropout: float = 0.0


def linear(x_BTD: jax.Array, w: Any, axes: Axes) -> jax.Array:
    """`ops.linear`, of an adapted matrix too."""
    return _adapted(x_BTD, w, axes) if isinstance(w, Adapted) else ops.linear(x_BTD, w, axes)


def normed_linears(
    x_BTD: jax.Array, scale_D: jax.Array, weights: tuple[Any, ...], axes: tuple[Axes, ...], eps: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """`ops.normed_linears`, of adapted matrices too."""
    if not any(isinstance(w, Adapted) for w in weights):
        return ops.normed_linears(x_BTD, scale_D, weights, axes, eps)
    y = ops.rms_norm(x_BTD, jax.lax.stop_gradient(scale_D), eps)
    return x_BTD, tuple(linear(y, w, each) for w, each in zip(weights, axes, strict=True))


def gated_linear(gate: jax.Array, up: jax.Array, w: Any, axes: Axes) -> jax.Array:
    """`ops.gated_linear`, of an adapted matrix too."""
    if isinstance(w, Adapted):
        return _adapted(ops.gated(gate, up), w, axes)
    return ops.gated_linear(gate, up, w, axes)


def _adapted(x_BTD: jax.Array, w: Adapted, axes: Axes) -> jax.Array:
    """xW + s·(xA)B; with DoRA its columns at the learned lengths. The dtype is x's."""
    y = frozen_linear(x_BTD, w.base, axes)
    if w.down is None:
        return y
    inside = [None if axis == "embed" else axis for axis in axes]
    down = constrain(w.down.astype(x_BTD.dtype), inside[0], None)
    up = constrain(w.up.astype(x_BTD.dtype), None, inside[1])
    y = y + low_rank(_dropped(x_BTD, w), down, up) * jnp.asarray(w.scale, x_BTD.dtype)
    if w.magnitude is None:
        return y
    # Section 4.3 of the paper: the length counts as a constant in the gradient.
    lengths = jax.lax.stop_gradient(column_lengths(values(w.base), w.down, w.up, w.scale))
    return y * constrain((w.magnitude / lengths).astype(y.dtype), inside[1])[None, None]


def _dropped(x_BTD: jax.Array, w: Adapted) -> jax.Array:
    if w.key is None or not w.dropout:
        return x_BTD
    kept = jax.random.bernoulli(jax.random.wrap_key_data(w.key), 1 - w.dropout, x_BTD.shape)
    return jnp.where(kept, x_BTD / jnp.asarray(1 - w.dropout, x_BTD.dtype), jnp.zeros((), x_BTD.dtype))


def column_lengths(base: jax.Array, down: jax.Array, up: jax.Array, scale: float) -> jax.Array:
    """float32 [out], the length of each column of base + scale·(down up), whose product is never made whole."""
    down, up = down.astype(jnp.float32), up.astype(jnp.float32)
    with jax.default_matmul_precision("highest"):
        crossed = jnp.einsum("Dr,DF->rF", down, base.astype(jnp.float32))
        own = jnp.einsum("Dr,Ds,sF->rF", down, down, up)
    squares = jnp.sum(jnp.square(base.astype(jnp.float32)), axis=0)
    return jnp.sqrt(squares + jnp.sum((2 * scale * crossed + scale**2 * own) * up, axis=0))


def values(base: Any) -> jax.Array:
    """A frozen matrix in float32, laid out as it is stored."""
    return dequantised(base, jnp.float32) if isinstance(base, Quantised) else base.astype(jnp.float32)


def whole(base: Any, axes: Axes, dtype: Any) -> jax.Array:
    """A frozen matrix in the compute dtype, its pieces along "embed" gathered: codes travel, not their values."""
    inside = [None if axis == "embed" else axis for axis in axes]
    if not isinstance(base, Quantised):
        return gathered(base, dtype, *inside)
    codes, scales = constrain(base.codes, *inside), constrain(base.scales, None, inside[1])
    return dequantised(Quantised(codes, scales, base.kind), dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def frozen_linear(x_BTD: jax.Array, base: Any, axes: Axes) -> jax.Array:
    """x times a frozen matrix; keeps nothing for the backward pass but the matrix as it is stored."""
    return jax.lax.dot_general(x_BTD, whole(base, axes, x_BTD.dtype), (((2,), (0,)), ((), ())))


def _frozen_forward(x_BTD: jax.Array, base: Any, axes: Axes) -> tuple[jax.Array, Any]:
    return frozen_linear(x_BTD, base, axes), base


def _frozen_backward(axes: Axes, base: Any, dy_BTF: jax.Array) -> tuple[jax.Array, None]:
    return jax.lax.dot_general(dy_BTF, whole(base, axes, dy_BTF.dtype), (((2,), (1,)), ((), ()))), None


frozen_linear.defvjp(_frozen_forward, _frozen_backward)


@jax.custom_vjp
def low_rank(x_BTD: jax.Array, down: jax.Array, up: jax.Array) -> jax.Array:
    """(x down) up: [B,T,out]."""
    return _low_rank_forward(x_BTD, down, up)[0]


def _low_rank_forward(x_BTD: jax.Array, down: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    z_BTr = jnp.einsum("BTD,Dr->BTr", x_BTD, down)
    return jnp.einsum("BTr,rF->BTF", z_BTr, up), (x_BTD, down, up, z_BTr)


def _low_rank_backward(residuals: tuple[jax.Array, ...], dy_BTF: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x_BTD, down, up, z_BTr = residuals
    dz_BTr = jnp.einsum("BTF,rF->BTr", dy_BTF, up)
    # The narrower operand first: a CPU transposes the first one in memory.
    d_down = jnp.einsum("BTr,BTD->rD", dz_BTr, x_BTD).T
    return jnp.einsum("BTr,Dr->BTD", dz_BTr, down), d_down, jnp.einsum("BTr,BTF->rF", z_BTr, dy_BTF)


low_rank.defvjp(_low_rank_forward, _low_rank_backward)
