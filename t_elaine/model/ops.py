"""The pieces of a layer whose gradients are written out by hand: matmuls, RMSNorm, gated unit, look-up, stacks.

By hand, for three reasons. Automatic gradients save more than is needed; they order matmuls so that a CPU transposes
the large operand; and between devices the order of gathers, matmuls and sums decides what is hidden behind what
(`_weight_gradient`). Results are the textbook ones; the tests compare them with automatic differentiation.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from t_elaine.model.apart import by_device, summed
from t_elaine.model.placement import constrain, gathered, pieces

Axes = tuple[str, str]


def _contract(a: jax.Array, b: jax.Array, a_axes: tuple[int, ...], b_axes: tuple[int, ...]) -> jax.Array:
    return jax.lax.dot_general(a, b, ((a_axes, b_axes), ((), ())))


def _gathered(w_DF: jax.Array, axes: Axes) -> jax.Array:
    return constrain(w_DF, *(None if axis == "embed" else axis for axis in axes))


def _apart() -> bool:
    """Whether tokens lie on several devices, so that weights' gradients are sums over devices."""
    return pieces("batch") * pieces("sequence") > 1


def _weight_gradient(
    x_BTD: jax.Array, dy_BTF: jax.Array, w_DF: jax.Array, axes: Axes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradient dw [D,F], and dy and w again: compute dx from those, and `_tie` it to dw.

    Barriers set this order, one collective behind each matmul: w's pieces are gathered during the matmul for dw, dw is
    summed over the devices during the one for dx. Left alone, the TPU compiler keeps all sums for the end of a layer,
    where nothing hides them.
    """
    if _apart():
        w_DF, dy_BTF = jax.lax.optimization_barrier((w_DF, dy_BTF))
        inside = (None if axis == "embed" else axis for axis in axes)
        dw = jax.lax.dot_general(by_device(x_BTD), by_device(dy_BTF), (((2,), (2,)), ((0, 1), (0, 1))))
        dw, dy_BTF = jax.lax.optimization_barrier((constrain(dw, "batch", "sequence", *inside), dy_BTF))
        return summed(dw, w_DF.dtype, *axes), dy_BTF, w_DF
    if x_BTD.shape[2] <= dy_BTF.shape[2]:
        return _contract(x_BTD, dy_BTF, (0, 1), (0, 1)), dy_BTF, w_DF
    # The narrower operand first: a CPU transposes the first one in memory.
    return _contract(dy_BTF, x_BTD, (0, 1), (0, 1)).T, dy_BTF, w_DF


def _tie(results: Any) -> Any:
    """What follows needs all of `results`: no sum of a weight's gradient slips past the matmul that hides it."""
    return jax.lax.optimization_barrier(results) if _apart() else results


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x_BTD: jax.Array, w_DF: jax.Array, axes: Axes) -> jax.Array:
    """[B,T,F]; the dtype is theirs.

    Args:
        x_BTD: laid out by ("batch", "sequence", None or the weight's first axis).
        w_DF: as it is stored: by `axes`. Its pieces along "embed" are gathered here and, for the gradient, again.
        axes: the weight's logical axes, one of them "embed".
    """
    return _contract(x_BTD, _gathered(w_DF, axes), (2,), (0,))


def _linear_forward(x_BTD: jax.Array, w_DF: jax.Array, axes: Axes) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return linear(x_BTD, w_DF, axes), (x_BTD, w_DF)


def _linear_backward(
    axes: Axes, residuals: tuple[jax.Array, jax.Array], dy_BTF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    dw, dy, w = _weight_gradient(residuals[0], dy_BTF, residuals[1], axes)
    dx, dw = _tie((_contract(dy, _gathered(w, axes), (2,), (1,)), dw))
    return dx, dw


linear.defvjp(_linear_forward, _linear_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normed_linears(
    x_BTD: jax.Array, scale_D: jax.Array, weights: tuple[jax.Array, ...], axes: tuple[Axes, ...], eps: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """x itself, and `linear` of `rms_norm(x)` with each weight.

    One operation, and x passed through it, so that in the gradient the norm and the residual stream's sum join the
    last matmul's output instead of reading it again.
    """
    return _normed_forward(x_BTD, scale_D, weights, axes, eps)[0]


def _normed_forward(
    x_BTD: jax.Array, scale_D: jax.Array, weights: tuple[jax.Array, ...], axes: tuple[Axes, ...], eps: float
) -> tuple[tuple[jax.Array, tuple[jax.Array, ...]], tuple[Any, ...]]:
    y, kept = _norm_forward(x_BTD, scale_D, eps)
    return (x_BTD, tuple(linear(y, w, each) for w, each in zip(weights, axes, strict=True))), (y, kept, weights)


def _normed_backward(
    axes: tuple[Axes, ...],
    eps: float,
    residuals: tuple[Any, ...],
    gradients: tuple[jax.Array, tuple[jax.Array, ...]],
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    y, kept, weights = residuals
    dx_passed, dys = gradients
    dys_by_weight: list[jax.Array] = []
    dws: list[jax.Array] = []
    for w, out, each in zip(weights, dys, axes, strict=True):
        if dws:
            out, dys_by_weight[-1], dws[-1] = _tie((out, dys_by_weight[-1], dws[-1]))
        dw, out, w = _weight_gradient(y, out, w, each)
        dys_by_weight.append(_contract(out, _gathered(w, each), (2,), (1,)))
        dws.append(dw)
    dx, product_BTD = _norm_products(kept, sum(dys_by_weight[1:], dys_by_weight[0]))
    dx, apart, dws = _tie((dx_passed + dx, jnp.sum(by_device(product_BTD), axis=2), dws))
    scale_D = kept[1]
    return dx, summed(apart, jnp.dtype("float32"), "norm").astype(scale_D.dtype), tuple(dws)


normed_linears.defvjp(_normed_forward, _normed_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def gated_linear(gate: jax.Array, up: jax.Array, w_FD: jax.Array, axes: Axes) -> jax.Array:
    """`linear` of `gated(gate, up)`; one operation, so that the gate's gradient joins the matmul before it."""
    return linear(gated(gate, up), w_FD, axes)


def _gated_linear_forward(
    gate: jax.Array, up: jax.Array, w_FD: jax.Array, axes: Axes
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    x = gated(gate, up)
    return linear(x, w_FD, axes), (gate, up, x, w_FD)


def _gated_linear_backward(
    axes: Axes, residuals: tuple[jax.Array, ...], dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    gate, up, x, w = residuals
    dw, dy, w = _weight_gradient(x, dy, w, axes)
    dgate, dup = _gated_backward((gate, up), _contract(dy, _gathered(w, axes), (2,), (1,)))
    dgate, dup, dw = _tie((dgate, dup, dw))
    return dgate, dup, dw


gated_linear.defvjp(_gated_linear_forward, _gated_linear_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x_BTD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): computed in float32, result in x's dtype."""
    return _norm_forward(x_BTD, scale_D, eps)[0]


def _norm_forward(
    x_BTD: jax.Array, scale_D: jax.Array, eps: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    x = x_BTD.astype(jnp.float32)
    inverse = checkpoint_name(jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps), "norm")
    y = x * inverse * scale_D.astype(jnp.float32)[None, None, :]
    return y.astype(x_BTD.dtype), (x_BTD, scale_D, inverse)


def _norm_products(residuals: tuple[jax.Array, jax.Array, jax.Array], dy_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """dx, and the float32 [B,T,D] whose sum over tokens is the scale's gradient."""
    x_BTD, scale_D, inverse = residuals
    x, dy = x_BTD.astype(jnp.float32) * inverse, dy_BTD.astype(jnp.float32)
    dn = dy * scale_D.astype(jnp.float32)[None, None, :]
    dx = (dn - x * jnp.mean(dn * x, axis=-1, keepdims=True)) * inverse
    return dx.astype(x_BTD.dtype), dy * x


def _norm_backward(
    eps: float, residuals: tuple[jax.Array, jax.Array, jax.Array], dy_BTD: jax.Array
) -> tuple[jax.Array, jax.Array]:
    dx, product_BTD = _norm_products(residuals, dy_BTD)
    return dx, jnp.sum(product_BTD, axis=(0, 1)).astype(residuals[1].dtype)


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


@jax.custom_vjp
def unstack(tree: Any) -> list[Any]:
    """One tree a layer from a tree of stacked arrays [L,...]; gradients are stacked once (slices would add L times)."""
    count = jax.tree.leaves(tree)[0].shape[0]
    return [jax.tree.map(lambda leaf, i=index: leaf[i], tree) for index in range(count)]


def _unstack_forward(tree: Any) -> tuple[list[Any], None]:
    return unstack(tree), None


def _unstack_backward(_: None, layers: list[Any]) -> tuple[Any]:
    def stacked(*leaves: Any) -> Any:
        if leaves[0].dtype != jax.dtypes.float0:
            return jnp.stack(leaves)
        return np.zeros((len(leaves), *leaves[0].shape), jax.dtypes.float0)  # of codes and keys, which have no gradient

    return (jax.tree.map(stacked, *layers),)


unstack.defvjp(_unstack_forward, _unstack_backward)
