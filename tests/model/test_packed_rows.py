"""A row of several documents computes what each document computes alone: logits and gradients, every way to compute."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.model import llama, loss
from t_elaine.model.config import SAVEABLE, ComputeConfig, LlamaConfig
from tests.random_params import random_params

CONFIG = LlamaConfig(vocab_size=61, embed=16, mlp=40, layers=3, q_heads=4, kv_heads=2, head_dim=8, qkv_bias=True)
# Lengths on both sides of a block's border, one of a single token, and padding at the end.
LENGTHS, T = (13, 1, 8, 17), 45
WAYS = {
    "reference": {},
    "blocked": {"attention": "blocked", "attention_block": 8},
    "one block": {"attention": "blocked", "attention_block": 64},
    "full remat": {"remat": "full", "attention": "blocked", "attention_block": 16},
    "minimal remat": {"remat": "minimal"},
    "named remat": {"remat": "names", "saved": SAVEABLE[:4], "attention": "blocked", "attention_block": 16},
    "unrolled": {"scan_layers": False, "attention": "blocked", "attention_block": 16},
    "two a turn": {"scan_unroll": 2},
}


QUICK = ("reference", "blocked")
EACH_WAY = [pytest.param(way, marks=[] if way in QUICK else pytest.mark.slow) for way in WAYS]


def compute(**changes: Any) -> ComputeConfig:
    return ComputeConfig(**{"dtype": "float32", "remat": "none", "loss_chunk": 16, **changes})


@functools.cache
def params() -> Any:
    values = random_params(CONFIG, 3)
    # Larger weights, and norms and biases that are not one and zero: a mistake must show.

    def changed(leaf: np.ndarray) -> jax.Array:
        return jnp.asarray(leaf * 4 + 0.05 * np.cos(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape))

    return jax.tree.map(changed, values)


@functools.cache
def documents() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(5)
    return tuple(rng.integers(0, 61, length + 1).astype(np.int32) for length in LENGTHS)


def packed() -> dict[str, np.ndarray]:
    """All documents in one row [1,T], padded behind."""
    parts = documents()
    spare = T - sum(LENGTHS)
    join = lambda arrays, fill: np.concatenate([*arrays, np.full(spare, fill)])[None].astype(np.int32)  # noqa: E731
    return {
        "tokens": join([part[:-1] for part in parts], 7),
        "targets": join([part[1:] for part in parts], 7),
        "positions": join([np.arange(n) for n in LENGTHS], 0),
        "segments": join([np.full(n, i + 1) for i, n in enumerate(LENGTHS)], 0),
    }


def total_loss(values: Any, row: dict[str, Any], settings: ComputeConfig) -> jax.Array:
    weights = jnp.asarray(row["segments"] > 0, jnp.float32)
    x = llama.hidden(values, CONFIG, settings, row["tokens"], row["positions"], row["segments"])
    return loss.weighted_nll(x, llama.head_table(values, CONFIG), row["targets"], weights, settings.loss_chunk)[0]


@functools.cache
def alone() -> tuple[np.ndarray, Any]:
    """(logits [sum of lengths, V], gradients summed) of the documents one by one, the plainest way, differentiated
    through a log-softmax over all logits."""
    plain = compute()

    def nll(values: Any, document: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = llama.logits(values, CONFIG, plain, document[None, :-1])[0]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), document[1:, None], axis=1).sum(), logits

    found = [jax.jit(jax.grad(nll, has_aux=True))(params(), jnp.asarray(part)) for part in documents()]
    gradients = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), [gradient for gradient, _ in found])
    return np.concatenate([logits for _, logits in found]), gradients


@pytest.mark.parametrize("way", WAYS)
def test_logits(way: str) -> None:
    row = packed()
    found = jax.jit(functools.partial(llama.logits, config=CONFIG, compute=compute(**WAYS[way])))(
        params(), tokens_BT=row["tokens"], positions_BT=row["positions"], segments_BT=row["segments"]
    )
    expected, _ = alone()
    assert np.ptp(expected) > 3
    np.testing.assert_allclose(found[0, : sum(LENGTHS)], expected, atol=2e-5, rtol=0)
    assert np.isfinite(found).all(), "padding must stay finite"


@pytest.mark.parametrize("way", EACH_WAY)
def test_gradients(way: str) -> None:
    gradients = jax.jit(jax.grad(total_loss), static_argnums=2)(params(), packed(), compute(**WAYS[way]))
    _, expected = alone()
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected), strict=True):
        scale = float(jnp.abs(theirs).max())
        assert scale > 0, path
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * scale, rtol=0, err_msg=jax.tree_util.keystr(path))


def test_without_segments_the_documents_do_see_each_other() -> None:
    """The comparison above can fail."""
    row = packed()
    together = llama.logits(params(), CONFIG, compute(), row["tokens"], row["positions"], np.ones_like(row["segments"]))
    assert np.abs(np.asarray(together)[0, LENGTHS[0] : sum(LENGTHS)] - alone()[0][LENGTHS[0] :]).max() > 1e-2


def test_a_token_does_not_see_what_follows() -> None:
    row = packed()
    changed = row["tokens"].copy()
    changed[0, 10:] = (changed[0, 10:] + 5) % 61
    settings = compute(attention="blocked", attention_block=8)
    one, two = (
        np.asarray(llama.logits(params(), CONFIG, settings, tokens, row["positions"], row["segments"]))
        for tokens in (row["tokens"], changed)
    )
    np.testing.assert_array_equal(one[0, :10], two[0, :10])
    assert np.abs(one[0, 10:13] - two[0, 10:13]).max() > 1e-3
