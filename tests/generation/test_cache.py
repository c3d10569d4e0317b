"""Attention of prompts a few queries at a time: the same numbers, and no larger piece of scores than allowed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.generation import cache

B, T, H, K, h, P = 2, 48, 4, 2, 8, 20


def drawn(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("shared", [True, False])
def test_few_queries_at_a_time_change_nothing(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sees = cache.in_prompts(jnp.int32(0), T, T, jnp.array([0, 5]))
    common = (drawn(K, P, h), drawn(K, P, h)) if shared else None

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return cache.attend(q, (k, v), sees, common, jnp.int32(3))

    given = (drawn(B, T, H, h), drawn(B, K, T, h), drawn(B, K, T, h))
    at_once = jax.jit(attend)(*given)
    keys = T + (P if shared else 0)
    bound = 4 * B * H * keys * 12  # twelve queries
    monkeypatch.setattr(cache, "SCORES_CPU", bound)
    program = jax.jit(lambda *x: attend(*x))
    np.testing.assert_allclose(program(*given), at_once, atol=1e-6)
    shapes = re.findall(r"tensor<([\dx]+)xf32>", program.lower(*given).as_text())
    largest = max(int(np.prod([int(n) for n in shape.split("x")])) for shape in shapes)
    assert largest <= max(bound // 4, B * T * H * h)
