"""Grids are plain lists of plain dictionaries, and refuse what would make the wrong runs."""

from collections.abc import Callable
from typing import Any

import pytest

from t_elaine.errors import UserError
from t_elaine.studies.grid import axis, chain, product, short, zipped

A = axis(name="Schedule.peak", values=[1e-4, 3e-4])
B = axis(name="train.seed", values=[0, 1])


def test_an_axis_is_a_run_for_each_value() -> None:
    assert A == [{"Schedule.peak": 1e-4}, {"Schedule.peak": 3e-4}]


def test_product_joins_every_run_with_every_other_in_order() -> None:
    assert product(parts=[A, B]) == [
        {"Schedule.peak": 1e-4, "train.seed": 0},
        {"Schedule.peak": 1e-4, "train.seed": 1},
        {"Schedule.peak": 3e-4, "train.seed": 0},
        {"Schedule.peak": 3e-4, "train.seed": 1},
    ]


def test_zip_joins_first_with_first() -> None:
    assert zipped(parts=[A, B]) == [{"Schedule.peak": 1e-4, "train.seed": 0}, {"Schedule.peak": 3e-4, "train.seed": 1}]


def test_chain_goes_through_the_parts_and_leaves_out_repetitions() -> None:
    assert chain(parts=[A, B, A]) == [*A, *B]


def test_expressions_nest() -> None:
    c = axis(name="AdamW.b2", values=[0.95, 0.99])
    assert len(product(parts=[zipped(parts=[A, B]), c])) == 4
    assert len(chain(parts=[product(parts=[A, B]), c])) == 6


def test_the_parts_are_not_changed() -> None:
    before = [dict(run) for run in A]
    product(parts=[A, B])
    assert before == A


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: axis(name="a.b", values=[]), "no values"),
        (lambda: axis(name="a.b", values=[1, 2, 1]), "1 twice"),
        (lambda: product(parts=[A, A]), "Schedule.peak is set by two parts"),
        (lambda: zipped(parts=[A, axis(name="a.b", values=[1, 2, 3])]), "[2, 3] runs"),
        (lambda: product(parts=[]), "no parts"),
        (lambda: chain(parts=[]), "no parts"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert expected in caught.value.what


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "1e-5"), (3.5e-4, "3.5e-4"), (0.05, "0.05"), (200000.0, "2e5"), (0.0, "0.0"), (7, "7"), (True, "True"),
        (None, "None"), ("hardware/v5e.gin", "v5e.gin"), ("gs://b/x/", "x"), ({"en": 0.5}, "en___0.5"), 
        ("", "empty"), ("日本", "日本"), ("../..", "empty"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_values_as_parts_of_a_folders_name(value: Any, text: str) -> None:
    assert short(value) == text
