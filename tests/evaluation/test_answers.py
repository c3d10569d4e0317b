"""Answers kept item by item: an evaluation that is stopped asks each item once; what an engine does wrong is named."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from t_elaine.errors import UserError
from t_elaine.evaluation import answers, grading, official
from t_elaine.evaluation.items import load_exam
from t_elaine.evaluation.sitting import Sitting
from t_elaine.generation.sampling import Sampling
from tests.evaluation.test_official import record, write


class Dead(Exception):
    """The engine is gone."""


class Scripted:
    """An engine that answers "b" to odd items, "a" to even ones, the last first; it dies after `life` answers."""

    def __init__(self, life: int = 1000) -> None:
        self.life, self.asked = life, list[str]()

    def __call__(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, str | None]]:
        assert (sampling.max_new, sampling.temperature) == (16, 0.0)
        for place in reversed(range(len(prompts))):
            if self.life == 0:
                raise Dead
            self.life -= 1
            question = prompts[place].rsplit("Question: ", 1)[1]
            number = int(question.partition(" ")[0])
            self.asked.append(question)
            yield place, "ab"[number % 2] + "\nand more"


@pytest.fixture
def sitting(tmp_path: Path) -> Sitting:
    path = tmp_path / "exam.jsonl"
    write(path, [record(i) for i in range(15)])
    return official.sitting(load_exam(f"en:{path}"))


def test_a_second_run_goes_on_where_the_first_was_killed(sitting: Sitting, tmp_path: Path) -> None:
    path, first, second = str(tmp_path / "kept" / "answers.jsonl"), Scripted(life=4), Scripted()
    with pytest.raises(Dead):
        answers.collect(first, sitting, path)
    told = list[int]()
    found = answers.collect(second, sitting, path, told.append)
    assert len(first.asked) == 4 and sorted([*first.asked, *second.asked]) == sorted(
        prompt.rsplit("Question: ", 1)[1] for prompt in sitting.prompts
    ), "each item was asked once"
    assert told == [4, *[1] * 6]
    assert found == answers.collect(Scripted(life=0), sitting, path), "all is kept: nothing is asked"
    row = grading.score(sitting, found, resamples=50)
    assert (row["questions"], row["right"], row["accuracy"]["value"]) == (10, 5, 0.5)
    assert row["answer_characters"] == len("a\nand more") and row["unparsable"] == 0
    assert row["items"][0] == {
        "line": 6,
        "id": 5,
        "gold": ("a",),
        "prediction": "b",
        "right": False,
        "parsed": True,
        "answer": "b\nand more",
    }


def test_a_line_cut_by_a_kill_is_asked_again(sitting: Sitting, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    found = answers.collect(Scripted(), sitting, str(path))
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    engine = Scripted()
    assert answers.collect(engine, sitting, str(path)) == found
    assert len(engine.asked) == 1 and path.read_bytes() == content


def test_answers_to_other_prompts_do_not_count(sitting: Sitting, tmp_path: Path) -> None:
    path, kept = tmp_path / "exam.jsonl", str(tmp_path / "answers.jsonl")
    answers.collect(Scripted(), sitting, kept)
    write(path, [record(i, **({"choices": ["x", "z"]} if i == 9 else {})) for i in range(15)])
    engine = Scripted()
    answers.collect(engine, official.sitting(load_exam(f"en:{path}")), kept)
    assert [question.partition(" ")[0] for question in engine.asked] == ["9"]
    few, engine = official.sitting(load_exam(f"en:{path}"), limit=3), Scripted()
    assert len(answers.collect(engine, few, kept)) == 3 and not engine.asked, "a part of the exam needs no asking"


def test_an_object_store_keeps_them_too(sitting: Sitting) -> None:
    path = "memory://kept/answers.jsonl"
    with pytest.raises(Dead):
        answers.collect(Scripted(life=4), sitting, path)
    engine = Scripted()
    answers.collect(engine, sitting, path)
    assert len(engine.asked) == 6


def test_files_are_told_apart_by_what_answers_depend_on(sitting: Sitting) -> None:
    names = {answers.file_name(sitting, identity) for identity in ({"model": "a"}, {"model": "b"})}
    assert len(names) == 2 and all(name.startswith("exam.official.") for name in names)


def test_faults_are_named(sitting: Sitting, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"line": 6}\n', encoding="utf-8")
    with pytest.raises(UserError, match="no kept answer") as raised:
        answers.collect(Scripted(), sitting, str(path))
    assert raised.value.where == f"{path}:1"
    path.unlink()
    with pytest.raises(UserError, match="no answer to 9 items, the first is 5"):
        answers.collect(lambda prompts, sampling: iter([(9, "a")]), sitting, str(path))
    with pytest.raises(RuntimeError, match="item 5 twice"):
        answers.collect(lambda prompts, sampling: iter([(0, "a"), (0, "a")]), sitting, str(path))


def test_an_item_that_the_engine_cannot_answer_is_wrong_and_named(sitting: Sitting, tmp_path: Path) -> None:
    def engine(prompts: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, str | None]]:
        yield from ((place, None if place == 3 else "a") for place in range(len(prompts)))

    path = tmp_path / "answers.jsonl"
    found = answers.collect(engine, sitting, str(path))
    row = grading.score(sitting, found, resamples=50)
    assert (row["right"], row["unanswered"], row["items"][3]["prediction"]) == (9, [8], "NA")
    assert row["unparsable"] == 0.1
    assert json.loads(path.read_text().split("\n")[3])["answer"] is None
