"""Flash attention for packed rows on TPUs, as two Pallas kernels; it runs anywhere, slowly, in interpret mode.

Against JAX's splash kernels, which attend the same: the backward pass is one kernel that adds the queries' gradient up
on the chip (splash writes one partial sum for each block of keys and adds them outside); above the diagonal of a block
on the diagonal nothing is computed; blocks with no document in common are skipped, and blocks with one document only
need no mask. The algorithm is Dao's (2023, arXiv 2307.08691). Grouped heads are never repeated in memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from t_elaine.model import flash_tpu_blocks as blocks
from t_elaine.model.placement import per_shard
from t_elaine.model.tpu import LANES, VMEM


def flash(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    segments_BT: jax.Array,
    block: int,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention within segments: [B,T,H,h] in q's dtype; the softmax is float32.

    Args:
        q_BTHh: turned queries, not yet scaled.
        k_BTKh: turned keys; H is a multiple of K.
        v_BTKh: values.
        segments_BT: int32.
        block: queries and keys a block, a multiple of 128 that divides T (a shorter row is one block).
        interpret: compute in plain JAX what the kernel would.
    """
    q_axes, kv_axes = (("batch", heads, None, "head_dim") for heads in ("q_heads", "kv_heads"))
    kernel = partial(_attend, min(block, q_BTHh.shape[1]), interpret)
    flat = _flat(q_BTHh.shape[-1])
    attend = per_shard(
        kernel, (q_axes, kv_axes, kv_axes, ("batch", None)), ("batch", None, "q_heads") if flat else q_axes
    )
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BTHh, k_BTKh, v_BTKh))
    out = attend(q, k, v, segments_BT)
    return out.reshape(q_BTHh.shape) if flat else out.transpose(0, 2, 1, 3)


def _flat(head_dim: int) -> bool:
    """Whether results go straight to [B,T,H*h], which the output projection reads: heads must fill whole lanes."""
    return head_dim % LANES == 0


def _results(block: int, h: int, index: Callable[..., tuple[Any, Any, Any]]) -> pl.BlockSpec:
    """One head's block of the result, which the kernel sees as [1,block,h] or [1,1,block,h]; index: → (b, head, i)."""
    if not _flat(h):
        return pl.BlockSpec((1, 1, block, h), lambda *at: (*index(*at), 0))

    def flat(*at: Any) -> tuple[Any, Any, Any]:
        b, head, i = index(*at)
        return b, i, head

    return pl.BlockSpec((1, block, h), flat)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    block: int, interpret: bool, q_BHTh: jax.Array, k_BKTh: jax.Array, v_BKTh: jax.Array, segments_BT: jax.Array
) -> jax.Array:
    return _forward(block, interpret, q_BHTh, k_BKTh, v_BKTh, segments_BT)[0]


def _compiler(dimensions: int) -> pltpu.CompilerParams:
    # Batch and heads may be split between a chip's cores; blocks are added up one after the other.
    kinds: Any = ("parallel", "parallel") + ("arbitrary",) * (dimensions - 2)
    return pltpu.CompilerParams(dimension_semantics=kinds, vmem_limit_bytes=VMEM)


def _told(block: int) -> dict[str, str]:
    """What a profile shows of a kernel: the mask's grain, above which nothing is computed."""
    grain = blocks.grain(block)
    return {"xprof_metadata": f'{{"block_q": {grain}, "block_kv": {grain}, "block_moved": {block}}}'}


def _forward(
    block: int, interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array, segments_BT: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    B, H, T, h = q.shape
    group = H // k.shape[1]
    pairs = blocks.by_query(T // block)
    queries = pl.BlockSpec((1, 1, block, h), lambda b, n, t, *s: (b, n, s[0][t], 0))
    keys = pl.BlockSpec((1, 1, block, h), lambda b, n, t, *s: (b, jax.lax.div(n, group), s[1][t], 0))
    of_queries = pl.BlockSpec((1, 1, block), lambda b, n, t, *s: (b, 0, s[0][t]))
    of_keys = pl.BlockSpec((1, 1, block), lambda b, n, t, *s: (b, 0, s[1][t]))
    norms = pl.BlockSpec((1, 1, 1, block), lambda b, n, t, *s: (b, n, 0, s[0][t]))
    call: Any = pl.pallas_call(
        partial(blocks.forward, scale=h**-0.5),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(B, H, len(pairs[0])),
            in_specs=[queries, keys, keys, of_queries, of_keys],
            out_specs=[_results(block, h, lambda b, n, t, *s: (b, n, s[0][t])), norms],
            scratch_shapes=[
                pltpu.VMEM((block, h), q.dtype),
                pltpu.VMEM((block, LANES), jnp.float32),
                pltpu.VMEM((block, LANES), jnp.float32),
                pltpu.VMEM((block, h), jnp.float32),
                pltpu.VMEM((block, LANES), jnp.int32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, T, H * h) if _flat(h) else q.shape, q.dtype),
            jax.ShapeDtypeStruct((B, H, 1, T), jnp.float32),
        ],
        compiler_params=_compiler(3),
        interpret=interpret,
        name="flash_attention_fwd",
        metadata=_told(block),
    )
    rows = segments_BT[:, None, :]
    out, norm = call(*pairs, *_ends(segments_BT, block), q, k, v, rows, rows)
    # Both are saved, or the backward pass would run the forward kernel again.
    out, norm = checkpoint_name(out, "attention"), checkpoint_name(norm, "attention")
    # Only what is saved bears the names: JAX rounds a named tensor that others read once more, in a pass of its own.
    q, k, v = (checkpoint_name(x, name) for x, name in zip((q, k, v), "qkv", strict=True))
    return out, (q, k, v, segments_BT, out, norm)


def _ends(segments_BT: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """The lowest and the highest segment of each block: int32 [B,N] each."""
    by_block = segments_BT.reshape(segments_BT.shape[0], -1, block)
    return by_block.min(-1), by_block.max(-1)


def _backward(
    block: int, interpret: bool, residuals: tuple[jax.Array, ...], dout: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, segments_BT, out, norm = residuals
    B, H, T, h = q.shape
    K = k.shape[1]
    group = H // K
    pairs = blocks.by_key(T // block)
    head = lambda n, g: n * group + g  # noqa: E731
    queries = pl.BlockSpec((1, 1, block, h), lambda b, n, g, t, *s: (b, head(n, g), s[0][t], 0))
    results = _results(block, h, lambda b, n, g, t, *s: (b, head(n, g), s[0][t]))
    # Only read with the first block of keys.
    once = _results(block, h, lambda b, n, g, t, *s: (b, head(n, g), jnp.where(s[1][t] == 0, s[0][t], 0)))
    keys = pl.BlockSpec((1, 1, block, h), lambda b, n, g, t, *s: (b, n, s[1][t], 0))
    of_queries = pl.BlockSpec((1, 1, block), lambda b, n, g, t, *s: (b, 0, s[0][t]))
    of_keys = pl.BlockSpec((1, 1, block), lambda b, n, g, t, *s: (b, 0, s[1][t]))
    norms = pl.BlockSpec((1, 1, 1, block), lambda b, n, g, t, *s: (b, head(n, g), 0, s[0][t]))
    all_queries = pl.BlockSpec((1, 1, T, h), lambda b, n, g, t, *s: (b, head(n, g), 0, 0))
    all_keys = pl.BlockSpec((1, 1, T, h), lambda b, n, g, t, *s: (b, n, 0, 0))
    call: Any = pl.pallas_call(
        partial(blocks.backward, scale=h**-0.5),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(B, K, group, len(pairs[0])),
            in_specs=[queries, keys, keys, of_queries, of_keys, norms, results, once],
            out_specs=[all_queries, all_keys, all_keys],
            scratch_shapes=[
                *(pltpu.VMEM((T, h), jnp.float32) for _ in range(3)),
                pltpu.VMEM((1, T), jnp.float32),
                pltpu.VMEM((block, LANES), jnp.int32),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        compiler_params=_compiler(4),
        interpret=interpret,
        name="flash_attention_bwd",
        metadata=_told(block),
    )
    rows = segments_BT[:, None, :]
    dq, dk, dv = call(*pairs, *_ends(segments_BT, block), q, k, v, rows, rows, norm, dout, out)
    return dq, dk, dv, None


_attend.defvjp(_forward, _backward)
