"""Letters and numbers read in whole answers."""

from decimal import Decimal

import pytest

from t_elaine.evaluation import reading

LETTERS = {
    # the odd answers of the published parser
    "a": "a",
    "b,c": "bc",
    "ａ": "a",
    "Ⓐ": "a",
    " a": "a",
    "(a)": "a",
    "Answer: b": "b",
    "Based on the text, a": "",
    "The answer is a": "a",
    "答え: a": "a",
    "": "",
    "7.20": "",
    # lists and runs
    " B, D": "bd",
    "A and B": "ab",
    "b and d": "bd",
    "(A), (C) and (E).": "ace",
    "a, b, or c": "abc",
    "b、d": "bd",
    "答え：Ｂ，Ｄ": "bd",
    "正解はbとdです。": "bd",
    "答案是B、C。": "bc",
    "故选AB": "ab",
    "ABD": "abd",
    "ac": "ac",
    "a c": "ac",
    # words around
    "b: 7": "b",
    "B. Insulin": "b",
    "**C**": "c",
    "**Answer: B, C**": "bc",
    "Answer:\nB": "b",
    "I think (c)": "c",
    "bです": "b",
    "C是正确的": "c",
    "A is correct": "a",
    "The answer is option D.": "d",
    "d, because a and c are wrong": "d",
    "First I thought the answer is a. The answer is b.": "b",
    # none of these is an answer
    "A beta blocker is best": "",
    "The answer is a beta blocker": "",
    "A 24-year-old man": "",
    "be sure": "",
    "bad": "",
    "Dead": "",
    "B型肝炎": "",
    "B-cell lymphoma": "",
    "hepatitis B is likely": "",
    "ビタミンD": "",
    "None of them": "",
}


@pytest.mark.parametrize(("answer", "letters"), LETTERS.items())
def test_letters(answer: str, letters: str) -> None:
    assert "".join(sorted(reading.read_letters(reading.own_part(answer, [])))) == letters


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("7.20", "7.2"),
        (" 26 Torr", "26"),
        ("2.5 × 4 = 10, so the answer is 10.0", "10"),
        ("答え：１，１３０kcal", "1130"),
        ("0.4", "0.40"),
        (".4", "0.4"),
        ("-3", "-3"),
        ("none", None),
    ],
)
def test_numbers(answer: str, value: str | None) -> None:
    found = reading.read_number(reading.own_part(answer, []))
    assert found == (None if value is None else Decimal(value))


def test_what_the_model_asks_itself_is_not_its_answer() -> None:
    marks = ["\nQuestion:", "\n問題:"]
    assert reading.own_part("b\nQuestion: c or d?", marks) == "b"
    assert reading.own_part("b\n問題：c", marks) == "b", "full width too"
    assert reading.read_letters(reading.own_part("\nQuestion: (c)", marks)) == frozenset()
