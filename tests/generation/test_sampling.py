"""Choosing a token, beside plain numpy, and draws beside the probabilities that they are drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.errors import UserError
from t_elaine.generation import sampling
from t_elaine.generation.sampling import How, Rows, Sampling

ALL = How(sampled=True, nucleus=True, penalised=True, least=True)


def rows(count: int, **changes: object) -> Rows:
    """Settings that change nothing, but for those given."""
    plain = {"max_new": 9, "min_new": 0, "temperature": 0.0, "top_p": 1.0, "penalty": 1.0, "seed": 0, "number": 0}
    whole = ("max_new", "min_new", "seed", "number")
    made = {n: np.full(count, v, np.int32 if n in whole else np.float32) for n, v in plain.items()}
    made |= {n: np.asarray(v, made[n].dtype) for n, v in changes.items() if n != "ends"}
    return Rows(**made, ends=np.asarray(changes.get("ends", np.full((count, 1), 10_000)), np.int32))


def plain_penalty(x: np.ndarray, seen: set[int], penalty: float) -> np.ndarray:
    return np.array([v if i not in seen else v / penalty if v > 0 else v * penalty for i, v in enumerate(x)])


def plain_nucleus(x: np.ndarray, top_p: float) -> set[int]:
    """Tokens of the nucleus, the likeliest first until their sum reaches top_p."""
    p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    kept, total = set(), 0.0
    for token in np.argsort(-p):
        kept.add(int(token))
        total += p[token]
        if total >= top_p:
            break
    return kept


@pytest.mark.parametrize("penalty", [1.2, 0.8, 3.0])
def test_the_penalty(penalty: float) -> None:
    x = np.random.default_rng(0).normal(0, 3, (5, 50)).astype(np.float32)
    seen = np.random.default_rng(1).random((5, 50)) < 0.4
    found = sampling.penalised(jnp.asarray(x), jnp.asarray(seen), jnp.full(5, penalty, jnp.float32))
    wanted = [plain_penalty(row, set(np.flatnonzero(mask)), penalty) for row, mask in zip(x, seen, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.9, 0.99, 1.0])
def test_the_nucleus(top_p: float) -> None:
    x = np.random.default_rng(2).normal(0, 2, (20, 300)).astype(np.float32)
    found = np.asarray(sampling.nucleus(jnp.asarray(x), jnp.full(20, top_p, jnp.float32)))
    for row, kept in zip(x, np.isfinite(found), strict=True):
        wanted = plain_nucleus(row.astype(np.float64), top_p) if top_p < 1 else set(range(300))
        assert set(np.flatnonzero(kept).tolist()) == wanted
    np.testing.assert_array_equal(found[np.isfinite(found)], x[np.isfinite(found)])


def test_end_ids_are_forbidden_until_the_least_length() -> None:
    x = np.zeros((4, 10), np.float32)
    x[:, 3], x[:, 7] = 5, 4
    settings = rows(4, min_new=[2, 2, 0, 2], ends=[[3, 10], [3, 7], [3, 7], [10, 10]])
    made = jnp.array([1, 1, 1, 1])
    token, _ = sampling.choose(jnp.asarray(x), settings, made, None, How(False, False, False, True))
    assert token.tolist() == [7, 0, 3, 3]
    token, _ = sampling.choose(jnp.asarray(x), settings, made + 1, None, How(False, False, False, True))
    assert token.tolist() == [3, 3, 3, 3]


def test_draws_follow_the_distribution() -> None:
    """20,000 draws of one position: temperature, penalty and nucleus together, against exact probabilities."""
    x = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0], np.float32)
    count, seen = 20_000, {0, 3}
    scores = plain_penalty(x, seen, 1.5) / 0.7
    kept = plain_nucleus(scores, 0.9)
    wanted = np.array([np.exp(s) if i in kept else 0 for i, s in enumerate(scores)])
    wanted /= wanted.sum()
    settings = rows(
        count, temperature=[0.7] * count, penalty=[1.5] * count, top_p=[0.9] * count, number=np.arange(count)
    )
    mask = np.zeros((count, 6), bool)
    mask[:, list(seen)] = True
    token, logprob = jax.jit(sampling.choose, static_argnums=4)(
        np.tile(x, (count, 1)), settings, np.zeros(count, np.int32), mask, ALL
    )
    shares = np.bincount(token, minlength=6) / count
    assert 2 < len(kept) < 6 and set(np.flatnonzero(shares)) == kept
    np.testing.assert_allclose(shares, wanted, atol=4 * 0.5 / count**0.5)
    exact = x - np.log(np.exp(x).sum())
    np.testing.assert_allclose(logprob, exact[np.asarray(token)], atol=1e-5)


def test_a_draw_depends_on_seed_number_and_place_alone() -> None:
    x = np.random.default_rng(3).normal(0, 1, (1, 1000)).astype(np.float32)

    def draw(seed: int, number: int, made: int, company: int) -> int:
        n = company + 1
        settings = rows(n, temperature=[1.0] * n, seed=[9] * company + [seed], number=[9] * company + [number])
        places = np.array([5] * company + [made])
        token, _ = sampling.choose(
            jnp.asarray(np.repeat(x, n, 0)), settings, places, None, How(True, False, False, False)
        )
        return int(token[-1])

    base = draw(1, 2, 3, 0)
    assert base == draw(1, 2, 3, 4)
    assert len({base, draw(2, 2, 3, 0), draw(1, 3, 3, 0), draw(1, 2, 4, 0)}) > 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new": 0},
        {"min_new": 300},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"repetition_penalty": 0.0},
        {"stop": ("",)},
        {"seed": -1},
    ],
    ids=str,
)
def test_wrong_settings_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        Sampling(**wrong)  # type: ignore[arg-type]
    assert caught.value.where == f"Sampling.{next(iter(wrong))}"
