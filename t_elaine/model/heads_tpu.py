"""From one matrix of projections to the heads that attention reads, and back for the gradient: on TPUs one pass each.

Splitting, turning by rotary positions (`rope`) and changing the layout are one Pallas kernel; as separate operations
the TPU compiler reads and writes the same tensors five times.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from t_elaine.model.placement import per_shard, pieces, platform
from t_elaine.model.tpu import LANES

TOKENS = 1024  # a block


def possible(head_dim: int) -> bool:
    """Whether the kernel can be used: heads fill whole lanes and lie on every device."""
    return head_dim % LANES == 0 and pieces("q_heads") == 1


def turned(y_BTC: jax.Array, cos: jax.Array, sin: jax.Array, H: int, K: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [B,T,H,h] and keys [B,T,K,h], turned, and values [B,T,K,h], in y's dtype; float32 inside.

    Args:
        y_BTC: the projections side by side: C = (H + 2K) h.
        cos: float32 [B,T,h/2], from `rope.angles`.
        sin: likewise.
        H: query heads.
        K: key heads.
    """
    rows, heads = ("batch", "sequence", None), ("batch", None, "sequence", "head_dim")
    kernel = partial(_turn, H, K, platform() != "tpu")
    made = per_shard(kernel, (rows, rows, rows), (heads, heads, heads))(y_BTC, cos, sin)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in made)
    return q, k, v


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _turn(H: int, K: int, interpret: bool, y_BTC: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, ...]:
    B, T, C = y_BTC.shape
    shapes = [jax.ShapeDtypeStruct((B, heads, T, C // (H + 2 * K)), y_BTC.dtype) for heads in (H, K, K)]
    return tuple(_call(H, K, interpret, y_BTC, shapes, "turn_heads")(cos, sin, y_BTC))


def _turn_forward(
    H: int, K: int, interpret: bool, y_BTC: jax.Array, cos: jax.Array, sin: jax.Array
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    return _turn(H, K, interpret, y_BTC, cos, sin), (cos, sin)


def _turn_backward(
    H: int, K: int, interpret: bool, residuals: tuple[jax.Array, ...], dout: tuple[jax.Array, ...]
) -> tuple[jax.Array, None, None]:
    B, _, T, h = dout[0].shape
    shape = jax.ShapeDtypeStruct((B, T, (H + 2 * K) * h), dout[0].dtype)
    (dy,) = _call(H, K, interpret, shape, [shape], "turn_heads_back")(*residuals, *dout)
    return dy, None, None


_turn.defvjp(_turn_forward, _turn_backward)


def _call(H: int, K: int, interpret: bool, y: Any, shapes: list[jax.ShapeDtypeStruct], name: str) -> Callable[..., Any]:
    """The pallas_call that reads y and writes q, k, v (three shapes), or the other way round (one shape)."""
    B, T, C = y.shape
    h, tokens = C // (H + 2 * K), min(TOKENS, T)
    angles = pl.BlockSpec((1, tokens, h // 2), lambda b, i, n: (b, i, 0))
    matrix = pl.BlockSpec((1, tokens, h), lambda b, i, n: (b, i, n))
    # A head's block stays where it is while others are at work, so it moves once.
    heads = [
        pl.BlockSpec(
            (1, 1, tokens, h), lambda b, i, n, low=low, count=count: (b, jnp.clip(n - low, 0, count - 1), i, 0)
        )
        for low, count in ((0, H), (H, K), (H + K, K))
    ]
    back = len(shapes) == 1
    wide = pltpu.VMEM((tokens, h), jnp.float32)
    return pl.pallas_call(
        partial(_back if back else _there, H, K),
        grid=(B, pl.cdiv(T, tokens), H + 2 * K),
        in_specs=[angles, angles, *heads] if back else [angles, angles, matrix],
        out_specs=[matrix] if back else heads,
        out_shape=shapes,
        scratch_shapes=[wide, wide],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=6 * B * T * C, transcendentals=0, bytes_accessed=B * T * (2 * C * y.dtype.itemsize + 4 * h)
        ),
        interpret=interpret,
        name=name,
    )


def _widen(cos: Any, sin: Any, cos_wide: Any, sin_wide: Any) -> None:
    @pl.when(pl.program_id(2) == 0)
    def once() -> None:
        cos_wide[...] = jnp.concatenate([cos[0], cos[0]], axis=1)
        sin_wide[...] = jnp.concatenate([-sin[0], sin[0]], axis=1)


def _swapped(x: jax.Array) -> jax.Array:
    return pltpu.roll(x, x.shape[1] // 2, 1)


def _there(H: int, K: int, cos: Any, sin: Any, y: Any, q: Any, k: Any, v: Any, cos_wide: Any, sin_wide: Any) -> None:
    n = pl.program_id(2)
    _widen(cos, sin, cos_wide, sin_wide)

    def turn(out: Any) -> None:
        x = y[0].astype(jnp.float32)
        out[0, 0] = (x * cos_wide[...] + _swapped(x) * sin_wide[...]).astype(out.dtype)

    pl.when(n < H)(lambda: turn(q))
    pl.when((n >= H) & (n < H + K))(lambda: turn(k))

    @pl.when(n >= H + K)
    def copy() -> None:
        v[0, 0] = y[0]


def _back(H: int, K: int, cos: Any, sin: Any, dq: Any, dk: Any, dv: Any, dy: Any, cos_wide: Any, sin_wide: Any) -> None:
    n = pl.program_id(2)
    _widen(cos, sin, cos_wide, sin_wide)

    def turn(dout: Any) -> None:
        x = dout[0, 0].astype(jnp.float32)
        dy[0] = (x * cos_wide[...] - _swapped(x) * sin_wide[...]).astype(dy.dtype)

    pl.when(n < H)(lambda: turn(dq))
    pl.when((n >= H) & (n < H + K))(lambda: turn(dk))

    @pl.when(n >= H + K)
    def copy() -> None:
        dy[0] = dv[0, 0]
