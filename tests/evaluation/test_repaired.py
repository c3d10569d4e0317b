"""The published exams without the published evaluation's faults: what is asked, left out and counted as right."""

import dataclasses
from pathlib import Path

import pytest

from t_elaine.evaluation import benchmarks, grading, official, repaired
from t_elaine.evaluation.items import Exam, Item, load_exam
from t_elaine.evaluation.sitting import Sitting
from tests.evaluation.test_official import item, record, write

# By suite: items left out, items about images.
LEFT_OUT = {
    "en/MMLU": ({"asked before": 78}, 0),
    "en/MedMCQA": ({"asked before": 13, "asked twice with different answers": 2}, 0),
    "en/MedQA-4op": ({}, 0),
    "en/MedQA": ({}, 0),
    "en/PubMedQA": ({}, 0),
    "ja/DenQA": ({"the answer is no list": 21}, 280),
    "ja/IgakuQA": ({"the right option is blank": 1}, 528),
    "ja/JJSIMQA": ({"the answer is outside the options": 1}, 0),
    "zh/CMExam": ({"asked before": 5, "the answer is outside the options": 1}, 0),
    "zh/MedQA-4op": ({"asked before": 8}, 0),
    "zh/MedQA": ({"asked before": 25}, 0),
}


def oracle(sitting: Sitting) -> dict[int, str]:
    return {one.line: ", ".join(one.answer).upper() for one in sitting.items}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_of_the_published_exams_and_that_the_rest_can_be_got(shared_data: Path, name: str) -> None:
    excluded, images = LEFT_OUT[name]
    exam = load_exam(name, str(shared_data / "benchmarks" / "elaine"))
    sitting = repaired.sitting(exam)
    assert dict(sitting.excluded) == excluded and sitting.shots == 5
    assert len(sitting.items) + sum(excluded.values()) == len(exam.items)
    row = grading.score(sitting, oracle(sitting), resamples=10)
    assert row["ceiling"] == 1 and row["unparsable"] == 0
    assert row["apart"].get("images", {"questions": 0})["questions"] == images
    assert row["questions"] + images == len(sitting.items)
    # Three numbers have lost their decimal point in the file, and one answer is given by either of two letters.
    wrong = [one["id"] for one in row["items"] if not one["right"]]
    assert wrong == (["112B30", "114C75", "116B50", "116F74"] if name == "ja/IgakuQA" else [])


def test_every_benchmark_is_tried() -> None:
    assert set(LEFT_OUT) == set(benchmarks.benchmarks()) - set(benchmarks.MADE)


@pytest.mark.parametrize("name", ["ja/DenQA", "ja/IgakuQA"])
def test_prompts_offer_what_there_is_and_tell_nothing(shared_data: Path, name: str) -> None:
    exam = load_exam(name, str(shared_data / "benchmarks" / "elaine"))
    sitting = repaired.sitting(exam)
    for one, prompt in zip(sitting.items, sitting.prompts, strict=True):
        own = prompt.rsplit("\n\n問題：", 1)[1] if one.text not in prompt else prompt[prompt.rindex(one.text) :]
        asked = "数値を答えてください。" if not one.choices else "正しい選択肢の記号をすべて答えてください。"
        assert own.endswith(f"\n{asked}\n答え：")
        assert f"\n{'ABCDEFGHIJ'[len(one.choices)]}. " not in own
        assert prompt.count("\n答え：A, C\n\n") == 1, "a demonstration of several letters, the same for all"


def test_single_answers_are_asked_for_where_an_exam_has_no_others(tmp_path: Path) -> None:
    sitting = repaired.sitting(exam_of(tmp_path, [record(i) for i in range(3)]))
    assert sitting.prompts[0].endswith("\n\nQuestion: 0 {}?\nA. x\nB. y\nGive the letter of the right option.\nAnswer:")
    assert "A, C" not in sitting.prompts[0] and sitting.prompts[0].startswith("Question: Which organ")
    assert sitting.sampling.stop == ("\nQuestion:", "\nContext:")


def exam_of(folder: Path, records: list[dict]) -> Exam:
    write(folder / "exam.jsonl", records)
    return load_exam(f"en:{folder / 'exam.jsonl'}")


def test_sets_count_and_so_do_options_of_the_same_text() -> None:
    two = item(["a", "c"])
    for answer, right in (("A, C", True), ("c and a", True), ("a", False), ("a, b, c", False), ("", False)):
        assert repaired.judge(two, answer).right is right
    same = dataclasses.replace(item(["d"]), choices=("x", "20 ｍｇ", "y", "20mg", "z"))
    assert [repaired.judge(same, letter).right for letter in "abcde"] == [False, True, False, True, False]
    either = item(["a or d"])
    assert [repaired.judge(either, text).right for text in ("a", "d", "b", "a or d")] == [True, True, False, False]
    assert repaired.judge(two, None) == repaired.judge(two, "")


def test_numbers_count_by_value() -> None:
    number = item(["7.20"], choices=0)
    assert repaired.judge(number, "7.2").right and not repaired.judge(number, "720").right
    assert not repaired.judge(number, "none").parsed
    lost_point = item(["21"], "116B50", choices=0)
    assert repaired.judge(lost_point, "2.1 g").right and not repaired.judge(lost_point, "21").right


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (item("NA"), "the answer is no list"),
        (item(["f"]), "the answer is outside the options"),
        (item(["d", ",", "e"]), "the answer is outside the options"),
        (item(["a"], choices=0), "the answer is no number, and there are no options"),
        (dataclasses.replace(item(["a"]), choices=("\u3000", "x")), "the right option is blank"),
    ],
)
def test_items_without_a_usable_answer(one: Item, why: str) -> None:
    assert repaired.find_faults([one]) == {1: why}


def test_what_is_asked_twice_counts_once_and_not_at_all_if_answers_differ(tmp_path: Path) -> None:
    question = {"problem_text": "Which?"}
    exam = exam_of(
        tmp_path,
        [
            record(1, **question),
            record(2, problem_text="  which ?", choices=["Y", "x."], answer=["b"]),
            record(3, **question, choices=["x", "z"]),
            record(4, problem_text="Why?"),
            record(5, problem_text="Why?", answer=["b"]),
        ],
    )
    different = "asked twice with different answers"
    assert repaired.find_faults(exam.items) == {2: "asked before", 4: different, 5: different}
    assert [one.id for one in repaired.sitting(exam).items] == [1, 3]


def test_demonstrations_come_from_outside_the_exam(tmp_path: Path) -> None:
    organ = {"problem_text": "Which organ makes insulin?"}
    organ["choices"] = ["Liver", "Pancreas", "Spleen", "Kidney", "Thyroid gland"]
    sitting = repaired.sitting(exam_of(tmp_path, [record(1, **organ), record(2)]))
    assert sitting.shots == 4 and sitting.prompts[0].count("makes insulin") == 1


def test_official_answers_are_graded_again_under_a_name_of_their_own(tmp_path: Path) -> None:
    records = [record(i, choices=["x", "y", "z"]) for i in range(5)]
    records += [record(5, choices=["x", "y", "z"], answer=["a", "c"]), record(6, text_only=False), record(7)]
    asked = official.sitting(exam_of(tmp_path, records))
    answers = {6: "a, c\nQuestion: b", 7: "Answer: a", 8: "It is b"}
    first, again = grading.score(asked, answers), grading.score(repaired.rescored(asked), answers)
    assert (first["protocol"], again["protocol"]) == ("official", "official-rescored")
    assert [one["right"] for one in first["items"]] == [False, True, False]
    assert [(one["prediction"], one["right"]) for one in again["items"]] == [("a,c", True), ("a", True), ("", False)]
    assert first["prompts_sha256"] == again["prompts_sha256"] and first["sampling"] == again["sampling"]
    assert first["protocol_sha256"] != again["protocol_sha256"]
    assert (again["questions"], again["right"], again["apart"]["images"]["right"]) == (2, 1, 1)
    assert again["unparsable"] == pytest.approx(1 / 3, abs=1e-6)
