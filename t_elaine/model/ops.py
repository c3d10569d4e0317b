"""The pieces of a layer whose gradients are written out by hand: matmul, RMSNorm, gated unit, stacks of layers.

By hand, because the automatic gradients save more than is needed and order their matmuls so that a CPU transposes the
large operand. Results are the textbook ones; the tests compare them with automatic differentiation.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def _contract(a: jax.Array, b: jax.Array, a_axes: range, b_axes: range) -> jax.Array:
    return jax.lax.dot_general(a, b, ((tuple(a_axes), tuple(b_axes)), ((), ())))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: jax.Array, w: jax.Array, axes: int = 1) -> jax.Array:
    """Contract the last `axes` dimensions of x [B,T,...] with the first of w; the dtype is theirs.

    The weight's gradient is computed with its narrower operand first: a CPU transposes the first one in memory.
    """
    return _contract(x, w, range(x.ndim - axes, x.ndim), range(axes))


def _linear_forward(x: jax.Array, w: jax.Array, axes: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return linear(x, w, axes), (x, w)


def _linear_backward(axes: int, residuals: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = residuals
    rows = x.ndim - axes
    dx = _contract(dy, w, range(rows, dy.ndim), range(axes, w.ndim))
    if math.prod(x.shape[rows:]) <= math.prod(dy.shape[rows:]):
        return dx, _contract(x, dy, range(rows), range(rows))
    dw = _contract(dy, x, range(rows), range(rows))
    outputs = dy.ndim - rows
    return dx, jnp.transpose(dw, (*range(outputs, dw.ndim), *range(outputs)))


linear.defvjp(_linear_forward, _linear_backward)


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
