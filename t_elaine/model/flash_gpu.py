"""Flash attention for packed rows on GPUs: JAX's Triton kernels, which take segment ids; interpreted elsewhere.

The kernels are JAX's (`jax.experimental.pallas.ops.gpu.attention`); here stand grouped heads, blocks, and the names
under which results are saved for the backward pass. They do not skip blocks between documents; rows must be whole.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.gpu import attention as kernels

from t_elaine.model.placement import per_shard

KEYS = 64  # a block of the forward pass: with 128 queries of 128 in bfloat16 it takes 96 KiB of an SM's shared memory
BACKWARD = 32  # JAX's own choice for all blocks of the backward pass


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
        block: queries a block of the forward pass, a power of two that divides T (a shorter row is one block).
        interpret: compute in plain JAX what the kernel would.
    """
    q_axes, kv_axes = (("batch", None, heads, "head_dim") for heads in ("q_heads", "kv_heads"))
    kernel = partial(_attend, block, interpret)
    return per_shard(kernel, (q_axes, kv_axes, kv_axes, ("batch", None)), q_axes)(q_BTHh, k_BTKh, v_BTKh, segments_BT)


def _by_group(x_BTHh: jax.Array, K: int) -> jax.Array:
    """[B,T,H,h] → [G,B,T,K,h]: the groups' first queries, their second …; the kernels' grid gets an axis for G.

    So keys and values need not be repeated in memory.
    """
    B, T, H, h = x_BTHh.shape
    return x_BTHh.reshape(B, T, K, H // K, h).transpose(3, 0, 1, 2, 4)


def _in_heads(x_GBTKh: jax.Array) -> jax.Array:
    G, B, T, K, h = x_GBTKh.shape
    return x_GBTKh.transpose(1, 2, 3, 0, 4).reshape(B, T, K * G, h)


def _sizes(block: int, T: int) -> kernels.BlockSizes:
    back = min(BACKWARD, T)
    return kernels.BlockSizes(
        block_q=min(block, T),
        block_k=min(block, KEYS, T),
        block_q_dkv=back,
        block_kv_dkv=back,
        block_q_dq=back,
        block_kv_dq=back,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(block: int, interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    return _forward(block, interpret, q, k, v, segments)[0]


def _forward(
    block: int, interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    T, h = q.shape[1], q.shape[3]

    def kernel(q: jax.Array) -> tuple[jax.Array, jax.Array]:
        mha: Any = kernels.mha
        return mha(  # type: ignore[no-any-return]
            q, k, v, segments, h**-0.5, True, _sizes(block, T), interpret=interpret, return_residuals=True
        )

    out, norm = jax.vmap(kernel)(_by_group(q, k.shape[2]))
    # Both are saved, or the backward pass would run the forward kernel again.
    out, norm = checkpoint_name(_in_heads(out), "attention"), checkpoint_name(norm, "attention")
    return out, (q, k, v, segments, out, norm)


def _backward(
    block: int, interpret: bool, residuals: tuple[jax.Array, ...], dout: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, segments, out, norm = residuals
    K, T, h = k.shape[2], q.shape[1], q.shape[3]
    rule: Any = kernels._mha_backward  # JAX's own derivative would save the forward's results without a name

    def kernel(q: jax.Array, out: jax.Array, norm: jax.Array, dout: jax.Array) -> tuple[jax.Array, ...]:
        static = (h**-0.5, True, _sizes(block, T), "triton", None, 2, None, interpret, False, False)
        return rule(*static, (q, k, v, segments, out, norm), dout)[:3]  # type: ignore[no-any-return]

    dq, dk, dv = jax.vmap(kernel)(_by_group(q, K), _by_group(out, K), norm, _by_group(dout, K))
    dk, dv = (x.astype(jnp.float32).sum(axis=0).astype(k.dtype) for x in (dk, dv))
    return _in_heads(dq), dk, dv, None


_attend.defvjp(_forward, _backward)
