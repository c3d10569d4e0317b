"""JAX's Triton attention, interpreted, beside the reference; lowered for GPUs that are not there; run where one is."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.model.attention import attend, reference
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.parallel.sharding import placing

B, T, H, K, h = 2, 256, 4, 2, 64
# Documents that end on a block's border, inside a block and after one token; padding behind.
ROWS = ((128, 1, 127), (60, 130))
COMPUTE = ComputeConfig(attention="flash_gpu", attention_block=128)


def segments() -> jax.Array:
    rows = np.zeros((B, T), np.int32)
    for row, lengths in zip(rows, ROWS, strict=True):
        for number, (end, length) in enumerate(zip(np.cumsum(lengths), lengths, strict=True), 1):
            row[end - length : end] = number
    return jnp.asarray(rows)


def both(function: Callable[..., jax.Array], dtype: str = "float32", head: int = h) -> tuple[Any, Any]:
    """Output where there is text, and gradients of a weighted sum of it."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((B, T, H, head), (B, T, K, head), (B, T, K, head))
    qkv = [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=False)]
    text = (segments() > 0)[:, :, None, None]
    weights = jax.random.normal(keys[3], shapes[0]) * text

    def total(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = function(*qkv, segments())
        return jnp.sum(out.astype(jnp.float32) * weights), out * text

    gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return out, gradients


def close(found: Any, wanted: Any, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def ours(*arguments: jax.Array) -> jax.Array:
    return attend(*arguments, COMPUTE)


@pytest.mark.parametrize(("dtype", "head", "tolerance"), [("float32", 64, 1e-5), ("bfloat16", 128, 2e-2)])
def test_equals_the_reference(dtype: str, head: int, tolerance: float) -> None:
    close(both(ours, dtype, head), both(reference, dtype, head), tolerance)


def test_each_device_computes_its_rows_and_heads() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])

    def placed(*arguments: jax.Array) -> jax.Array:
        with placing(mesh):
            return ours(*arguments)

    close(both(placed), both(reference), 1e-5)


def lowered() -> str:
    """Forward and backward pass for CUDA, as it is handed to XLA."""
    from t_elaine.model.flash_gpu import flash

    total = lambda q, k, v: jnp.sum(flash(q, k, v, segments(), 128).astype(jnp.float32))  # noqa: E731
    shapes = ((B, T, H, 128), (B, T, K, 128), (B, T, K, 128))
    qkv = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    return jax.jit(jax.grad(total, (0, 1, 2))).trace(*qkv).lower(lowering_platforms=("cuda",)).as_text()


def test_it_lowers_to_triton_and_repeats_no_keys() -> None:
    """Three kernels (forward, row sums, backward); keys and values go in as they are, with K heads."""
    text = lowered()
    calls = re.findall(r"custom_call @__gpu\$xla\.gpu\.triton\(([^)]*)\)", text)
    signatures = re.findall(r"name = \"(mha_\w+)\".*?: \((.*?)\) -> ", text)
    assert len(calls) == len(signatures) == 3
    keys = f"tensor<{B}x{T}x{K}x128xbf16>"
    takes = {name: inputs for name, inputs in signatures}
    assert takes["mha_forward"].count(keys) == 2 and takes["mha_backward"].count(keys) == 2


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU: its attention runs interpreted and lowered only")
@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_on_a_gpu_it_equals_the_reference(dtype: str) -> None:
    close(both(ours, dtype, 128), both(reference, dtype, 128), 2e-2)
