"""Attention by JAX's splash kernel, which runs on TPUs (and anywhere, slowly, in Pallas's interpret mode).

The kernel is JAX's (`jax.experimental.pallas.ops.tpu.splash_attention`); here stand its mask, its blocks, and the names
under which its results are saved for the backward pass. Grouped heads are never repeated in memory.
"""

from functools import lru_cache, partial
from typing import Any

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from t_elaine.model.placement import per_shard


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
        q_BTHh: turned queries, not yet scaled.
        k_BTKh: turned keys; H is a multiple of K.
        v_BTKh: values.
        segments_BT: int32.
        block: queries and keys a block, a multiple of 128 that divides T (a shorter row is one block).
        fused_backward: one kernel for all three gradients: five matmuls a block for seven, but partial sums of dq in
            memory, one for each block of keys.
        interpret: compute in plain JAX what the kernel would.
    """
    kernel = partial(_rows, block=block, fused_backward=fused_backward, interpret=interpret)
    q_axes, kv_axes = (("batch", None, heads, "head_dim") for heads in ("q_heads", "kv_heads"))
    attend = per_shard(kernel, (q_axes, kv_axes, kv_axes, ("batch", None)), q_axes)
    return attend(q_BTHh * q_BTHh.shape[-1] ** -0.5, k_BTKh, v_BTKh, segments_BT)


def _rows(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    segments_BT: jax.Array,
    block: int,
    fused_backward: bool,
    interpret: bool,
) -> jax.Array:
    T, H = q_BTHh.shape[1:3]
    kernel = _kernel(T, H, min(block, T), fused_backward, interpret)
    by_head = [x.transpose(0, 2, 1, 3) for x in (q_BTHh, k_BTKh, v_BTKh)]
    attend: Any = jax.vmap(kernel)
    out: jax.Array = attend(*by_head, segment_ids=kernels.SegmentIds(segments_BT, segments_BT))
    return out.transpose(0, 2, 1, 3)


@lru_cache(maxsize=8)
def _kernel(T: int, H: int, block: int, fused_backward: bool, interpret: bool) -> kernels.SplashAttentionKernel:
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=None if fused_backward else block,
        block_kv_dq=None if fused_backward else block,
        use_fused_bwd_kernel=fused_backward,
    )
    with jax.ensure_compile_time_eval():  # the mask's tables are constants, not values of the traced function
        return kernels.make_splash_mha(
            masks.MultiHeadMask([masks.CausalMask((T, T))] * H),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            # Output and log-normaliser are both saved, or the backward pass would run the forward kernel again.
            residual_checkpoint_name="attention",
            interpret=interpret,
        )
