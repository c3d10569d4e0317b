"""Attention by JAX's splash kernel, which runs on TPUs (and anywhere, slowly, in Pallas's interpret mode).

The kernel is JAX's (`jax.experimental.pallas.ops.tpu.splash_attention`); here stand its mask, its blocks, and the names
under which its results are saved for the backward pass. Grouped heads are never repeated in memory.
"""

from functools import lru_cache
from typing import Any

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from t_elaine.model import context
from t_elaine.model.placement import per_shard, pieces


def splash(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    segments_BT: jax.Array,
    block: int,
    fused_backward: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention within segments: [B,T,H,h] in q's dtype; the softmax is float32.

    Args:
        q_BTHh: turned queries, not yet scaled; of dealt rows (`model.context`) where devices hold pieces of rows.
        k_BTKh: turned keys; H is a multiple of K.
        v_BTKh: values.
        segments_BT: int32.
        block: queries and keys a block, a multiple of 128 that divides a row or a device's piece of it (a shorter one
            is one block).
        fused_backward: one kernel for all three gradients: five matmuls a block for seven, but partial sums of dq in
            memory, one for each block of keys.
        interpret: compute in plain JAX what the kernel would.
    """
    T, C = q_BTHh.shape[1], context.pieces()
    heads = q_BTHh.shape[2] // pieces("q_heads")
    kernel = _kernel(T, C, heads, min(block, T // C), fused_backward, interpret)
    rows = (q_BTHh * q_BTHh.shape[-1] ** -0.5, k_BTKh, v_BTKh, segments_BT)
    if C > 1:  # the tables of blocks to skip differ by device: they are made for all and cut with the queries

        def of_piece(q: Any, k: Any, v: Any, own: Any, all_segments: Any, _: Any, table: Any) -> jax.Array:
            return _rows(table, q, k, v, own, all_segments)

        return context.over_pieces(of_piece, *rows, kernel)
    q_axes, kv_axes = (("batch", None, heads, "head_dim") for heads in ("q_heads", "kv_heads"))
    attend = per_shard(
        lambda q, k, v, segments: _rows(kernel, q, k, v, segments, segments),
        (q_axes, kv_axes, kv_axes, ("batch", None)),
        q_axes,
    )
    return attend(*rows)


def _rows(
    kernel: Any,
    q_BTHh: jax.Array,
    k_BSKh: jax.Array,
    v_BSKh: jax.Array,
    query_segments_BT: jax.Array,
    key_segments_BS: jax.Array,
) -> jax.Array:
    by_head = [x.transpose(0, 2, 1, 3) for x in (q_BTHh, k_BSKh, v_BSKh)]
    out: jax.Array = jax.vmap(kernel)(*by_head, segment_ids=kernels.SegmentIds(query_segments_BT, key_segments_BS))
    return out.transpose(0, 2, 1, 3)


@lru_cache(maxsize=8)
def _kernel(
    T: int, C: int, heads: int, block: int, fused_backward: bool, interpret: bool
) -> kernels.SplashAttentionKernel:
    apart = None if fused_backward else block
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=apart,
        block_kv_dq=apart,
        use_fused_bwd_kernel=fused_backward,
    )
    mask = masks.CausalMask((T, T))
    if C > 1:
        mask.q_sequence = context.dealt_places(T, C)
    with jax.ensure_compile_time_eval():  # the mask's tables are constants, not values of the traced function
        return kernels.make_splash_mha(
            masks.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=C,
            # Output and log-normaliser are both saved, or the backward pass would run the forward kernel again.
            residual_checkpoint_name="attention",
            interpret=interpret,
        )
