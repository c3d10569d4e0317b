"""Rows hold every piece once and no more than fits; results come back in order."""

import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.evaluation import engines
from t_elaine.evaluation.engines import Engine, PieceEngine


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


def test_pieces_scored_alone_come_back_in_order_whatever_the_order_of_the_engine() -> None:
    def run(pieces, names):
        assert names == [f"name {i}" for i in (0, 2, 3)], "one token alone has no target, and is not sent"
        return reversed([(i, np.float32(piece[1:] * 10)) for i, piece in enumerate(pieces)])

    pieces = [np.array(ids) for ids in ([1, 2], [3], [4, 5, 6], [7, 8])]
    told: list[int] = []
    engine = PieceEngine(length=2, questions=4, run=run)
    found = engines.score(engine, pieces, told.append, [f"name {i}" for i in range(4)])
    assert [one.tolist() for one in found] == [[20], [], [50, 60], [80]] and sorted(told) == [1, 1, 2]


@pytest.mark.parametrize(
    ("answers", "error", "says"),
    [
        ([(0, [1.0, 1.0])], RuntimeError, "1 of 2 pieces were not scored"),
        ([(0, [1.0, 1.0]), (0, [1.0, 1.0])], RuntimeError, "piece 0: scored twice"),
        ([(0, [1.0])], RuntimeError, r"piece 0: .*\(1,\) figures"),
    ],
)
def test_an_engine_that_skips_or_repeats_a_piece_is_a_bug(answers, error, says) -> None:
    run = lambda pieces, names: [(at, np.float32(found)) for at, found in answers]  # noqa: E731
    with pytest.raises(error, match=says):
        list(engines.score(PieceEngine(length=4, questions=4, run=run), [np.arange(3), np.arange(2)]))
    with pytest.raises(ValueError, match="a piece of 5 targets, at most 4"):
        list(engines.score(PieceEngine(length=4, questions=4, run=run), [np.arange(6)]))


def test_segments_differ_within_a_row_and_padding_is_zero() -> None:
    batch = engines.lay_out([np.arange(4), np.arange(3)], [[0, 1]], 2, 8)
    assert batch["segments"].tolist() == [[1, 1, 1, 2, 2, 0, 0, 0], [0] * 8]
    assert batch["positions"][0].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
