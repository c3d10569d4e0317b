"""Rows hold every piece once and no more than fits; results come back in order."""

import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.evaluation import engines
from t_elaine.evaluation.engines import Engine


def test_rows_hold_each_piece_once() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 33, 200).tolist()
    plan = engines.plan_rows(lengths, 32)
    members = sorted(index for row in plan for index in row)
    assert members == [i for i, n in enumerate(lengths) if n]
    assert max(sum(lengths[i] for i in row) for row in plan) <= 32
    assert len(plan) < 1.15 * sum(lengths) / 32, "rows are poorly filled"


def test_too_long_a_piece_is_a_bug() -> None:
    with pytest.raises(ValueError, match="33 targets in rows of 32"):
        engines.plan_rows([33], 32)


def test_results_come_back_in_order_and_pieces_stay_apart() -> None:
    """A stand-in that returns target, position and segment mixed: any slip in the layout shows."""

    def run(rows: dict[str, np.ndarray]) -> jnp.ndarray:
        return jnp.asarray(rows["targets"] * 1000 + rows["positions"] * 10 + rows["tokens"], jnp.float32)

    engine = Engine(rows=3, length=16, run=run)
    rng = np.random.default_rng(1)
    pieces = [rng.integers(0, 9, rng.integers(1, 18)) for _ in range(100)]
    told: list[int] = []
    for piece, found in zip(pieces, engines.score(engine, pieces, told.append), strict=True):
        np.testing.assert_array_equal(found, piece[1:] * 1000 + np.arange(len(piece) - 1) * 10 + piece[:-1])
    assert sum(told) == sum(len(piece) - 1 for piece in pieces)


def test_segments_differ_within_a_row_and_padding_is_zero() -> None:
    batch = engines.lay_out([np.arange(4), np.arange(3)], [[0, 1]], 2, 8)
    assert batch["segments"].tolist() == [[1, 1, 1, 2, 2, 0, 0, 0], [0] * 8]
    assert batch["positions"][0].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
