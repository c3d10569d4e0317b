"""A tiny random model that writes, and the whole forward pass to compare it with."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from t_elaine.generation.batch import Engine
from t_elaine.generation.engine import make_engine
from t_elaine.generation.requests import Generated
from t_elaine.model import llama
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.parallel.sharding import RULES, shardings
from tests.random_params import random_params

CONFIG = LlamaConfig(
    vocab_size=96,
    embed=32,
    mlp=64,
    layers=2,
    q_heads=8,
    kv_heads=4,
    head_dim=8,
    max_position=256,
    initializer_range=0.25,
    qkv_bias=True,
)
COMPUTE = ComputeConfig(dtype="float32", remat="none")
# One printable character an id; 1 and 2 are special.
VOCABULARY = SimpleNamespace(pieces=tuple(bytes([32 + i % 95]) for i in range(96)), special_ids=(1, 2))


@functools.cache
def engine(rows: int = 4, mesh: MeshConfig | None = None, dtype: str = "float32", **changes: Any) -> Engine:
    """An engine over CONFIG with random parameters; on one device, or on the mesh given."""
    config = LlamaConfig(**{**CONFIG.__dict__, **changes})
    where = make_mesh(mesh or MeshConfig(fsdp=1), None if mesh else jax.devices()[:1])
    params = jax.device_put(random_params(config, 3), shardings(llama.parameter_axes(config), where, RULES))
    compute = ComputeConfig(dtype=dtype, remat="none")
    return make_engine(params, config, compute, where, VOCABULARY, rows=rows, donate=True)


def prompts(count: int, seed: int = 0, shared: int = 0, longest: int = 40) -> list[np.ndarray]:
    """Random prompts of 1 … longest tokens after `shared` common ones."""
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.integers(3, CONFIG.vocab_size, n).astype(np.int32)  # noqa: E731
    beginning = draw(shared)
    return [np.concatenate([beginning, draw(rng.integers(1, longest + 1))]) for _ in range(count)]


@functools.cache
def _logits(config: LlamaConfig) -> Callable[[np.ndarray], np.ndarray]:
    params = jax.device_put(random_params(config, 3))
    run = jax.jit(lambda params, tokens: llama.logits(params, config, COMPUTE, tokens))
    return lambda tokens: np.asarray(run(params, tokens))


def check_greedy(prompt: np.ndarray, answer: Generated, **changes: Any) -> None:
    """Each token is the likeliest after those before it, by one pass of training's own forward function over all."""
    whole = np.concatenate([prompt, answer.tokens])
    padded = np.zeros((1, CONFIG.max_position), np.int32)
    padded[0, : len(whole)] = whole
    scores = _logits(LlamaConfig(**{**CONFIG.__dict__, **changes}))(padded)[0, len(prompt) - 1 : len(whole) - 1]
    assert len(answer.tokens) and answer.tokens.tolist() == scores.argmax(-1).tolist()
    top = scores.max(-1)
    norm = top + np.log(np.exp(scores - top[:, None]).sum(-1))
    np.testing.assert_allclose(answer.logprobs, top - norm, atol=2e-5)
