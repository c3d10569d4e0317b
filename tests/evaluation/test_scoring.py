"""Intervals cover what they claim, agree with scipy's, and pairing matters; choices, chance and majority by hand."""

import numpy as np
import pytest
import scipy.stats

from t_elaine.evaluation import scoring


def test_interval_agrees_with_scipy() -> None:
    sample = np.random.default_rng(0).random(80)
    found = scoring.ratio(sample, np.ones(80), resamples=20000, seed=1)
    peer = scipy.stats.bootstrap((sample,), np.mean, n_resamples=20000, method="percentile", rng=2)
    assert found.value == pytest.approx(sample.mean())
    assert found.low == pytest.approx(peer.confidence_interval.low, abs=0.004)
    assert found.high == pytest.approx(peer.confidence_interval.high, abs=0.004)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(300):
        found = scoring.ratio((rng.random(60) < 0.4).astype(float), np.ones(60), resamples=400, seed=trial)
        hits += found.low <= 0.4 <= found.high
    assert 0.89 <= hits / 300 <= 0.98


def test_same_seed_same_interval_and_another_seed_another() -> None:
    sample = np.random.default_rng(0).random(30)
    assert scoring.ratio(sample, np.ones(30), seed=5) == scoring.ratio(sample, np.ones(30), seed=5)
    assert scoring.ratio(sample, np.ones(30), seed=5) != scoring.ratio(sample, np.ones(30), seed=6)


def test_pairing_takes_out_what_is_common() -> None:
    """Two models that differ by 0.1 on every document, documents by far more: the paired interval is exact."""
    hard = np.random.default_rng(0).normal(2, 1, 50)
    paired = scoring.difference(hard + 0.1, hard, np.ones(50))
    assert (paired.low, paired.high) == pytest.approx((0.1, 0.1))
    apart = scoring.ratio(hard, np.ones(50))
    assert apart.high - apart.low > 0.3


def test_a_ratio_weights_units_by_their_size() -> None:
    assert scoring.ratio(np.array([10.0, 1.0]), np.array([100, 1])).value == pytest.approx(11 / 101)


def test_many_units_keep_their_spread() -> None:
    """Above MAX_BLOCKS units are dealt into blocks: value exact, width as the normal approximation has it."""
    sample = np.random.default_rng(0).normal(1, 0.5, 50_000)
    found = scoring.ratio(sample, np.ones(50_000), resamples=1000)
    assert found.value == pytest.approx(sample.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(50_000), rel=0.15)


def test_few_units_have_no_interval() -> None:
    found = scoring.difference(np.array([1.0, 2.0]), np.array([1.5, 2.0]), np.array([2, 3])).to_dict()
    assert found == {"value": -0.1, "low": None, "high": None}
    assert scoring.ratio(np.arange(5.0), np.ones(5)).to_dict()["low"] is not None


def test_choices() -> None:
    assert scoring.choose([-3.0, -1.0, -2.0], 1) == (1,)
    assert scoring.choose([-3.0, -1.0, -2.0], 2) == (1, 2)
    assert scoring.choose([-1.0, -1.0], 1) == (0,), "of equal scores the first"


def test_chance_and_majority() -> None:
    golds = [(0,), (2,), (2,), (0, 1)]
    assert scoring.chance([5, 5, 4, 5], golds) == pytest.approx((1 / 5 + 1 / 5 + 1 / 4 + 1 / 10) / 4)
    assert scoring.majority(golds) == ((2,), 0.5)


def test_long_options_are_not_punished_per_byte() -> None:
    scores = scoring.option_scores({"text": [-10.0, -12.0], "letter": [-1.0, -2.0]}, [10, 20])
    assert scoring.choose(scores["text"], 1) == (0,) and scoring.choose(scores["text_per_byte"], 1) == (1,)
