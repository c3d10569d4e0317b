"""JAX's splash kernel, interpreted, beside the reference: outputs and gradients, alone and on a mesh of 8 devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def splash(fused: bool, block: int = 128) -> Callable[..., jax.Array]:
    compute = ComputeConfig(attention="splash", attention_block=block, attention_fused_backward=fused)
    return lambda q, k, v, segments: attend(q, k, v, segments, compute)


@pytest.mark.parametrize(("fused", "block"), [(False, 128), (True, 128), (False, 512)])
def test_equals_the_reference(fused: bool, block: int) -> None:
    found, wanted = both(splash(fused, block), *inputs()), both(reference, *inputs())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=0), found, wanted)


def test_each_device_computes_its_rows_and_heads() -> None:
    qkv, segments = inputs()
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    place = lambda x, *axes: jax.device_put(x, sharding(mesh, RULES, *axes))  # noqa: E731
    apart = [
        place(x, "batch", None, heads, None) for x, heads in zip(qkv, ("q_heads", "kv_heads", "kv_heads"), strict=True)
    ]

    def placed(*arguments: jax.Array) -> jax.Array:
        with placing(mesh):
            return splash(True)(*arguments)

    found = both(placed, apart, place(segments, "batch", None))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=0), found, both(reference, qkv, segments)
    )
    text = jax.jit(placed).lower(*apart, place(segments, "batch", None)).compile().as_text()
    assert "all-gather" not in text and "all-reduce" not in text
