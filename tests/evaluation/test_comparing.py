"""Two models item by item: the exact test against scipy's, what is gained and lost, what cannot be compared."""

import io

import pytest
from rich.console import Console
from scipy import stats

from t_elaine.evaluation import compared, comparing
from t_elaine.evaluation.comparing import Score

DRAWS = {"resamples": 200, "seed": 0}
HOW = {"suite_sha256": "a", "protocol_sha256": "b", "sampling": {"max_new": 16}}


def score(right: dict[str, bool], **other) -> Score:
    return Score(
        **{"suite": "en/MedQA-4op", "language": "en", "protocol": "official", "right": right, "how": HOW} | other
    )


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 1), (7, 7), (40, 61), (1200, 1100), (0, 3000)])
def test_the_p_value_is_the_exact_binomial_tests(gained: int, lost: int) -> None:
    wanted = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert comparing.mcnemar(gained, lost) == pytest.approx(wanted, rel=1e-9)


def test_holm_multiplies_and_never_falls() -> None:
    assert comparing.holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert comparing.holm([]) == []


def test_gains_and_losses_are_of_the_items_that_both_were_asked() -> None:
    first = score({"1": True, "2": True, "3": False, "4": True, "5": True, "6": False, "7": True})
    second = score({"2": False, "3": True, "4": True, "5": False, "6": False, "7": False, "9": True})
    (row,) = comparing.compare([first], [second], **DRAWS)["rows"]
    assert (row["gained"], row["lost"], row["questions"]) == (["2", "5", "7"], ["3"], 6) and row["right"] == [4, 2]
    assert row["difference"]["value"] == pytest.approx(2 / 6, abs=1e-6) and row["p"] == row["p_holm"] == 0.625
    assert row["difference"]["low"] < 2 / 6 < row["difference"]["high"]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"how": HOW | {"suite_sha256": "c"}}, "another file of the exam"),
        ({"how": HOW | {"protocol_sha256": "c", "sampling": {}}}, "other templates, other sampling"),
        ({"right": {"8": True}}, "no item that both were asked"),
        ({"suite": "en/MMLU"}, "asked of one of the two only"),
    ],
)
def test_what_was_not_asked_alike_is_not_compared(other: dict, why: str) -> None:
    found = comparing.compare([score({"1": True})], [score(**({"right": {"1": True}} | other))], **DRAWS)
    assert found["rows"] == [] and found["left_out"][0]["why"] == why
    file = io.StringIO()
    compared.show(found, ("a", "b"), Console(file=file, width=80))
    assert f"en/MedQA-4op, official: not compared: {why}" in " ".join(file.getvalue().split())


def test_the_table_fits_a_terminal() -> None:
    right = {str(i): i % 3 == 0 for i in range(4178)}
    other = {str(i): i % 7 == 0 for i in range(4178)}
    found = comparing.compare([score(right)], [score(other)], **DRAWS)
    file = io.StringIO()
    compared.show(found, ("runs/a-long-name", "another"), Console(file=file, width=80))
    (line,) = (line for line in file.getvalue().split("\n") if "MedQA-4op" in line)
    gained, lost = (sum(right[i] and not other[i] for i in right), sum(other[i] and not right[i] for i in right))
    assert line.split()[-4:] == [f"{gained:,}", f"{lost:,}", "<0.001", "<0.001"] and len(line) <= 80
    assert line.split()[:2] == ["en/MedQA-4op", "4,178"] and line.split()[2].startswith("+19.0")
