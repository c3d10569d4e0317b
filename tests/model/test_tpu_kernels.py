"""The kernels for TPUs, interpreted, beside the reference: outputs and gradients, alone and on a mesh of 8 devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.model import heads_tpu, rope
from t_elaine.model.attention import attend, reference
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.parallel.sharding import RULES, placing, sharding

B, T, H, K, h = 4, 256, 4, 2, 128
# Documents that end on a block's border, inside a block and after one token; padding behind.
ROWS = ((128, 128), (100, 1, 155), (256,), (60, 130, 0))


def inputs() -> tuple[list[jax.Array], jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((B, T, H, h), (B, T, K, h), (B, T, K, h))
    rows = np.zeros((B, T), np.int32)
    for row, lengths in zip(rows, ROWS, strict=True):
        ends = np.cumsum(lengths)
        for number, (end, length) in enumerate(zip(ends, lengths, strict=True), 1):
            row[end - length : end] = number
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)], jnp.asarray(rows)


def both(function: Callable[..., jax.Array], qkv: list[jax.Array], segments: jax.Array) -> tuple[Any, Any]:
    """Output, and gradients of a weighted sum of it, where there is text."""
    text = (segments > 0)[:, :, None, None]
    weights = jnp.cos(jnp.arange(B * T * H * h, dtype=jnp.float32)).reshape(B, T, H, h) * text

    def total(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = function(*qkv, segments)
        return jnp.sum(out * weights), out * text

    (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return out, gradients


def kernel(name: str, block: int = 128, fused: bool = False) -> Callable[..., jax.Array]:
    compute = ComputeConfig(attention=name, attention_block=block, attention_fused_backward=fused)
    return lambda q, k, v, segments: attend(q, k, v, segments, compute)


SETTINGS = [("splash", 128, False), ("splash", 128, True), ("splash", 512, False), ("flash_tpu", 128, False)]


@pytest.mark.parametrize(("name", "block", "fused"), SETTINGS)
def test_equals_the_reference(name: str, block: int, fused: bool) -> None:
    found, wanted = both(kernel(name, block, fused), *inputs()), both(reference, *inputs())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=0), found, wanted)


@pytest.mark.parametrize("name", ["splash", "flash_tpu"])
def test_each_device_computes_its_rows_and_heads(name: str) -> None:
    qkv, segments = inputs()
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    place = lambda x, *axes: jax.device_put(x, sharding(mesh, RULES, *axes))  # noqa: E731
    apart = [
        place(x, "batch", None, heads, None) for x, heads in zip(qkv, ("q_heads", "kv_heads", "kv_heads"), strict=True)
    ]

    def placed(*arguments: jax.Array) -> jax.Array:
        with placing(mesh):
            return kernel(name, fused=True)(*arguments)

    found = both(placed, apart, place(segments, "batch", None))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=0), found, both(reference, qkv, segments)
    )
    text = jax.jit(placed).lower(*apart, place(segments, "batch", None)).compile().as_text()
    assert "all-gather" not in text and "all-reduce" not in text


@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_block_on_the_diagonal_in_steps_and_several_blocks(head_dim: int) -> None:
    """Blocks of 512 are computed in steps of 256 at the diagonal; documents end inside, at and across blocks."""
    keys = jax.random.split(jax.random.key(1), 3)
    qkv = [
        jax.random.normal(key, (2, 1536, heads, head_dim), jnp.float32)
        for key, heads in zip(keys, (2, 1, 1), strict=True)
    ]
    segments = np.ones((2, 1536), np.int32)
    segments[0, 700:], segments[1, 512:], segments[1, 1024:], segments[1, 1500:] = 2, 2, 3, 0
    outs, text = [], (segments > 0)[:, :, None, None]
    for attend_by in (kernel("flash_tpu", 512), reference):
        value, pull = jax.vjp(lambda *x, by=attend_by: by(*x, jnp.asarray(segments)) * text, *qkv)
        outs.append((value, pull(jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5, rtol=0), *outs)


def test_the_gradients_of_blocks_with_no_document_in_common_are_exactly_zero() -> None:
    """They are skipped: where the reference multiplies by a rounded zero, a leak would show."""
    (q, k, v), _ = inputs()
    segments = jnp.asarray(np.repeat([[1, 2]], B, 0).repeat(128, 1), jnp.int32)

    def first_document(k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(kernel("flash_tpu")(q, k, v, segments)[:, :128])

    for gradient in jax.grad(first_document, argnums=(0, 1))(k, v):
        assert np.all(np.asarray(gradient[:, 128:]) == 0) and np.any(np.asarray(gradient[:, :128]) != 0)


@pytest.mark.parametrize("mesh", [None, MeshConfig(fsdp=4, context=2)])
def test_heads_are_split_turned_and_laid_out_in_one_pass(mesh: MeshConfig | None) -> None:
    """As rope.rotate on slices of the projections; gradients too."""
    y = jax.random.normal(jax.random.key(2), (B, T, (H + 2 * K) * h), jnp.float32)
    angles = jax.random.uniform(jax.random.key(3), (B, T, h // 2), jnp.float32, 0, 6.3)
    cos, sin = jnp.cos(angles), jnp.sin(angles)

    def plain(y: jax.Array) -> tuple[jax.Array, ...]:
        q, k, v = (x.reshape(B, T, -1, h) for x in jnp.split(y, (H * h, (H + K) * h), axis=2))
        return rope.rotate(q, cos, sin), rope.rotate(k, cos, sin), v

    def ours(y: jax.Array) -> tuple[jax.Array, ...]:
        if mesh is None:
            return heads_tpu.turned(y, cos, sin, H, K)
        with placing(make_mesh(mesh)):
            return heads_tpu.turned(y, cos, sin, H, K)

    outs = []
    for function in (ours, plain):
        value, pull = jax.vjp(jax.jit(function), y)
        outs.append((value, pull(tuple(jnp.cos(x * 7) for x in plain(y)))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=0), *outs)
