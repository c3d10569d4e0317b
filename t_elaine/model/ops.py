"""The pieces of a layer whose gradients are written out by hand: matmul, RMSNorm, gated unit, stacks of layers.

By hand, because the automatic gradients save more than is needed and order their matmuls so that a CPU transposes the
large operand. Results are the textbook ones; the tests compare them with automatic differentiation.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from t_elaine.model.apart import by_device, summed
from t_elaine.model.placement import constrain, gathered, pieces


def _contract(a: jax.Array, b: jax.Array, a_axes: tuple[int, ...], b_axes: tuple[int, ...]) -> jax.Array:
    return jax.lax.dot_general(a, b, ((a_axes, b_axes), ((), ())))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x_BTD: jax.Array, w_DF: jax.Array, axes: tuple[str, str]) -> jax.Array:
    """[B,T,F]; the dtype is theirs.

    Args:
        x_BTD: laid out by ("batch", "sequence", None or the weight's first axis).
        w_DF: as it is stored: by `axes`. Its pieces along "embed" are gathered here and, for the gradient, again.
        axes: the weight's logical axes, one of them "embed".
    """
    return _contract(x_BTD, _gathered(w_DF, axes), (2,), (0,))


def _gathered(w_DF: jax.Array, axes: tuple[str, str]) -> jax.Array:
    return constrain(w_DF, *(None if axis == "embed" else axis for axis in axes))


def _linear_forward(
    x_BTD: jax.Array, w_DF: jax.Array, axes: tuple[str, str]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return linear(x_BTD, w_DF, axes), (x_BTD, w_DF)


def _linear_backward(
    axes: tuple[str, str], residuals: tuple[jax.Array, jax.Array], dy_BTF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_BTD, w_DF = residuals
    dw_DF: jax.Array
    if pieces("batch") * pieces("sequence") > 1:
        inside = (None if axis == "embed" else axis for axis in axes)
        dw = jax.lax.dot_general(by_device(x_BTD), by_device(dy_BTF), (((2,), (2,)), ((0, 1), (0, 1))))
        # The weight's gradient first: summing it over the devices is then hidden behind the matmul for dx.
        dw, dy_BTF = jax.lax.optimization_barrier((constrain(dw, "batch", "sequence", *inside), dy_BTF))
        dw_DF = summed(dw, w_DF.dtype, *axes)
    elif x_BTD.shape[2] <= dy_BTF.shape[2]:
        dw_DF = _contract(x_BTD, dy_BTF, (0, 1), (0, 1))
    else:
        # The narrower operand first: a CPU transposes the first one in memory.
        dw_DF = _contract(dy_BTF, x_BTD, (0, 1), (0, 1)).T
    return _contract(dy_BTF, _gathered(w_DF, axes), (2,), (1,)), dw_DF


linear.defvjp(_linear_forward, _linear_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table_VD: jax.Array, tokens_BT: jax.Array, dtype: str) -> jax.Array:
    """Rows of the table: [B,T,D] in `dtype`. The gradient adds up in float32 on each device."""
    return jnp.take(gathered(table_VD, dtype, "vocab", None), tokens_BT, axis=0)


def _look_up_forward(
    table_VD: jax.Array, tokens_BT: jax.Array, dtype: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return look_up(table_VD, tokens_BT, dtype), (jnp.zeros((0, *table_VD.shape), table_VD.dtype), tokens_BT)


def _look_up_backward(dtype: str, residuals: tuple[jax.Array, jax.Array], dx_BTD: jax.Array) -> tuple[jax.Array, None]:
    like, tokens_BT = residuals  # an empty array, for the table's shape
    zero = jnp.zeros(like.shape[1:], jnp.float32)
    add = jax.vmap(jax.vmap(lambda tokens, dx: zero.at[tokens].add(dx)))
    d_PSVD = add(by_device(tokens_BT), by_device(dx_BTD.astype(jnp.float32)))
    d_PSVD = constrain(d_PSVD, "batch", "sequence", "vocab", None)
    return summed(d_PSVD, jnp.dtype(dtype), "vocab", "embed").astype(like.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x_BTD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): computed in float32, result in x's dtype."""
    return _norm_forward(x_BTD, scale_D, eps)[0]


def _norm_forward(
    x_BTD: jax.Array, scale_D: jax.Array, eps: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    x = x_BTD.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    y = x * inverse * scale_D.astype(jnp.float32)[None, None, :]
    return y.astype(x_BTD.dtype), (x_BTD, scale_D, inverse)


def _norm_backward(
    eps: float, residuals: tuple[jax.Array, jax.Array, jax.Array], dy_BTD: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_BTD, scale_D, inverse = residuals
    x, dy = x_BTD.astype(jnp.float32) * inverse, dy_BTD.astype(jnp.float32)
    dn = dy * scale_D.astype(jnp.float32)[None, None, :]
    dx = (dn - x * jnp.mean(dn * x, axis=-1, keepdims=True)) * inverse
    dscale = jnp.sum(dy * x, axis=(0, 1))
    return dx.astype(x_BTD.dtype), dscale.astype(scale_D.dtype)


rms_norm.defvjp(_norm_forward, _norm_backward)


@jax.custom_vjp
def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """SwiGLU's product (Shazeer 2020, arXiv 2002.05202): silu(gate) * up, any shape; saves only its inputs."""
    return jax.nn.silu(gate) * up


def _gated_forward(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return gated(gate, up), (gate, up)


def _gated_backward(residuals: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate, up = residuals
    sigmoid = jax.nn.sigmoid(gate)
    silu = gate * sigmoid
    return dy * up * (sigmoid + silu * (1 - sigmoid)), dy * silu


gated.defvjp(_gated_forward, _gated_backward)


@jax.custom_vjp
def unstack(tree: Any) -> list[Any]:
    """One tree a layer from a tree of stacked arrays [L,...]; gradients are stacked once (slices would add L times)."""
    count = jax.tree.leaves(tree)[0].shape[0]
    return [jax.tree.map(lambda leaf, i=index: leaf[i], tree) for index in range(count)]


def _unstack_forward(tree: Any) -> tuple[list[Any], None]:
    return unstack(tree), None


def _unstack_backward(_: None, layers: list[Any]) -> tuple[Any]:
    return (jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers),)


unstack.defvjp(_unstack_forward, _unstack_backward)
