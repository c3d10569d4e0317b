"""Rows cut over devices (mesh axis `context`) compute what one device computes, documents across the cuts included."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.errors import UserError
from t_elaine.model import context, llama, loss
from t_elaine.model.attention import attend, reference
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.parallel.sharding import RULES, placing, sharding, shardings
from tests.random_params import random_params

CONFIG = LlamaConfig(
    vocab_size=64, embed=16, mlp=32, layers=2, q_heads=4, kv_heads=2, head_dim=8, initializer_range=0.1
)
B, T = 4, 96
# No document ends on a cut (multiples of 12 for four pieces), one has a single token, one spans three pieces.
LENGTHS = ((7, 1, 70, 10), (95,), (13, 40, 43), (30, 30, 30))
MESHES = {
    "2": MeshConfig(context=2, fsdp=1),
    "4": MeshConfig(context=4, fsdp=1),
    "fsdp 2 x context 2 x tensor 2": MeshConfig(fsdp=2, context=2, tensor=2),
}
WAYS = {"reference": {}, "blocked": {"attention": "blocked", "attention_block": 10, "remat": "full"}}


def mesh_of(config: MeshConfig) -> jax.sharding.Mesh:
    return make_mesh(config, jax.devices()[: max(config.fsdp, 1) * config.context * config.tensor])


def segments(lengths: tuple[tuple[int, ...], ...], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids and positions [B,T]; what is left over is padding."""
    ids, places = (np.zeros((len(lengths), length), np.int32) for _ in range(2))
    for row, parts in enumerate(lengths):
        start = 0
        for number, n in enumerate(parts, 1):
            ids[row, start : start + n], places[row, start : start + n] = number, np.arange(n)
            start += n
    return ids, places


@functools.cache
def rows() -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(2).integers(0, 64, (B, T + 1), dtype=np.int32)
    ids, places = segments(LENGTHS, T)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segments": ids, "positions": places}


def compute(**changes: Any) -> ComputeConfig:
    return ComputeConfig(**{"dtype": "float32", "remat": "none", "loss_chunk": 16, **changes})


def model(params: Any, arrays: Any, settings: ComputeConfig) -> Any:
    """Logits where there is text, and gradients of the loss."""
    text = arrays["segments"] > 0

    def total(params: Any) -> tuple[jax.Array, jax.Array]:
        x = llama.hidden(params, CONFIG, settings, arrays["tokens"], arrays["positions"], arrays["segments"])
        w = llama.head_table(params, CONFIG)
        value, *_ = loss.weighted_nll(x, w, arrays["targets"], text.astype(jnp.float32), settings.loss_chunk)
        return value, jnp.einsum("BTD,DV->BTV", x, w) * text[..., None]

    gradients, logits = jax.grad(total, has_aux=True)(params)
    return logits, gradients


@functools.cache
def alone() -> Any:
    return jax.jit(functools.partial(model, settings=compute()))(random_params(CONFIG, 1), rows())


def close(found: Any, wanted: Any, tolerance: float) -> None:
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        scale = float(np.abs(b).max())
        assert scale > 0, path
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MESHES)
def test_logits_and_gradients_are_those_of_one_device(name: str, way: str) -> None:
    mesh = mesh_of(MESHES[name])
    where = shardings(llama.parameter_axes(CONFIG), mesh, shapes=llama.parameter_shapes(CONFIG))
    params = jax.device_put(random_params(CONFIG, 1), where)
    arrays = jax.device_put(rows(), sharding(mesh, RULES, "batch", "sequence"))

    def placed(params: Any, arrays: Any) -> Any:
        with placing(mesh):
            return model(params, arrays, compute(**WAYS[way]))

    close(jax.jit(placed)(params, arrays), alone(), 2e-5)


SPLASH = (2, 512, 4, 2, 128)
DOCUMENTS = ((100, 1, 300, 90), (130, 382))


@pytest.mark.parametrize(
    ("mesh", "fused"),
    [
        pytest.param(MESHES["2"], True, marks=pytest.mark.slow),
        (MESHES["4"], False),
        (MESHES["fsdp 2 x context 2 x tensor 2"], True),
    ],
    ids=str,
)
def test_splash_over_pieces_equals_the_reference(mesh: MeshConfig, fused: bool) -> None:
    b, length, H, K, h = SPLASH
    ids, _ = segments(DOCUMENTS, length)
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((b, length, H, h), (b, length, K, h), (b, length, K, h), (b, length, H, h))
    *qkv, weights = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    text = (ids > 0)[..., None, None]
    settings = compute(attention="splash", attention_block=128, attention_fused_backward=fused)
    devices = mesh_of(mesh)

    def placed(*qkv: jax.Array) -> jax.Array:
        with placing(devices):
            return context.in_order(attend(*map(context.dealt, (*qkv, jnp.asarray(ids))), settings))

    def both(function: Any) -> Any:
        total = lambda *qkv: (jnp.sum(function(*qkv) * weights * text), function(*qkv) * text)  # noqa: E731
        gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*qkv)
        return out, gradients

    close(both(placed), both(lambda *qkv: reference(*qkv, jnp.asarray(ids))), 2e-5)


@pytest.mark.parametrize("C", [2, 3, 4, 8])
def test_every_device_has_the_same_causal_work(C: int) -> None:
    """Queries see as many keys on each device, and dealing loses no token."""
    places = context.dealt_places(48 * C, C)
    assert sorted(places) == list(range(48 * C))
    work = (places.reshape(C, -1) + 1).sum(axis=1)
    assert (work == work[0]).all()


def test_a_row_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="rows of 100 tokens") as caught:
        context.check_length(100, 8)
    assert "multiple of 16" in caught.value.mend
