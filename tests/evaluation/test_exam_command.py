"""The command with protocols that generate: one result, kept answers, a second start that asks nothing."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from t_elaine import examined, writing
from t_elaine.errors import UserError
from t_elaine.evaluate import evaluate
from t_elaine.evaluation import generated, generating
from tests.evaluation import making
from tests.evaluation.mmedbench_made import write_made
from tests.evaluation.test_command import SETTINGS
from tests.evaluation.test_official import record, write

ASKED = SETTINGS | {"protocols": ("official", "repaired"), "limit": 3, "contamination": False, "mesh": None}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exams")
    small = making.make_config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "make_config", lambda vocabulary: replace(small(vocabulary), max_position=1024))
        making.make_run(folder / "child", making.make_vocabulary(folder / "vocabulary"))
    write(folder / "exam.jsonl", [record(i, problem_text=f"{i}?") for i in range(9)])
    long = record(5, problem_text="x" * 1024)
    write(folder / "long.jsonl", [*(record(i) for i in range(5)), long])
    return folder


def test_a_result_with_each_protocols_scores(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = {"checkpoint": str(place / "child"), "exams": (f"en:{place / 'exam.jsonl'}",)}
    real, died = generating.generate, []

    def dying(*given, **named):
        for count, answer in enumerate(real(*given, **named)):
            if count == 2 and not died:
                died.append(count)
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(generating, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate(**arguments, **ASKED)
    folder = place / "child" / "evaluation"
    (kept,) = (folder / "step-7-answers").iterdir()
    assert kept.read_text().count("\n") == 2, "what was answered is there"
    assert evaluate(**arguments, **ASKED) == 0
    result = json.loads((folder / "step-7.json").read_text())
    rows = result["generated"]["child"]
    assert [row["protocol"] for row in rows] == ["official", "official-rescored", "repaired"]
    assert [row["questions"] for row in rows] == [3, 3, 3] and result["exams"] == []
    assert set(result["identity"]["generated"]) == {"exam official", "exam repaired"}
    assert {row["answers"] for row in rows} == {path.name for path in (folder / "step-7-answers").iterdir()}
    assert kept.read_text().count("\n") == 3, "and is not asked again"
    out = capsys.readouterr().out
    assert "official, % right" in out and "official-rescored, % right" in out

    monkeypatch.setattr(writing, "open_writer", lambda *given: pytest.fail("no model is loaded where all is kept"))
    assert evaluate(**arguments, **ASKED | {"overwrite": True, "resamples": 50}) == 0
    again = json.loads((folder / "step-7.json").read_text())["generated"]["child"]
    assert [row["right"] for row in again] == [row["right"] for row in rows]


def test_end_ids_are_the_published_evaluations_for_official_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def stop(engine, vocabulary, before, ends):
        given.append(tuple(ends))
        return lambda prompts, sampling: ((place, "a") for place in range(len(prompts)))

    monkeypatch.setattr(generating, "in_process", stop)
    monkeypatch.setattr(generating, "published_ends", lambda folders, vocabulary: (77,))
    exams = {"exams": (f"en:{place / 'exam.jsonl'}",)}
    assert evaluate(checkpoint=str(place / "child"), name="ends", **exams, **ASKED) == 0
    assert given[0] == (77,) and given[1] != (77,)
    assert examined.folder("runs/a/evaluation/ends.json") == "runs/a/evaluation/ends-answers"


def test_a_prompt_longer_than_the_context_is_named(place: Path, capsys: pytest.CaptureFixture) -> None:
    exams = {"exams": (f"en:{place / 'long.jsonl'}",)}
    assert evaluate(checkpoint=str(place / "child"), name="long", **exams, **ASKED | {"protocols": ("official",)}) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "long, official, child: no answer to 1 of 1 items, whose prompts are longer than the context" in out
    assert "the first is 5" in out


def test_an_unknown_protocol_is_told_before_anything_is_loaded(place: Path) -> None:
    with pytest.raises(UserError, match=r"'offical'(.|\n)*give likelihood or some of official, repaired"):
        evaluate(checkpoint=str(place / "child"), exams=("samples/en",), protocols=("offical",))


@pytest.mark.parametrize("sides", [("child",), ("child", "parent")])
def test_tables_fit_a_terminal(sides: tuple[str, ...]) -> None:
    row = {
        "suite": "en/MedQA-4op",
        "protocol": "official-rescored",
        "questions": 1268,
        "accuracy": {"value": 0.4321, "low": 0.4011, "high": 0.4655},
        "ceiling": 1.0,
        "chance": 0.25,
        "majority": {"answer": "a", "accuracy": 0.2784},
        "unparsable": 0.125,
        "answer_characters": 31.4,
        "unanswered": [],
    }
    file = io.StringIO()
    generated.show({side: [row] for side in sides}, Console(file=file, width=80))
    (line,) = (line for line in file.getvalue().split("\n") if "MedQA" in line)
    wanted = ["en/MedQA-4op", "1,268", "43.21", "[40.11–46.55]", *(["43.21"] if len(sides) > 1 else [])]
    assert line.split() == [*wanted, "100/25/28", "a", "12.5", *(["31"] if len(sides) == 1 else [])]


def test_mmedbench_from_the_command(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_made(place)
    answers = ["###Answer: OPTION A IS CORRECT.", "###Rationale: Инсулин.\n###Answer: OPTION B IS CORRECT."]

    def engine(*given):
        return lambda prompts, sampling: ((i, answers["first give" in text]) for i, text in enumerate(prompts))

    monkeypatch.setattr(generating, "in_process", engine)
    asked = {"exams": ("mmedbench/Russian",), "suites_dir": str(place), "name": "russian"}
    settings = ASKED | {"protocols": ("mmedbench",), "limit": 0}
    assert evaluate(checkpoint=str(place / "child"), **asked, **settings) == 0
    rows = json.loads((place / "child" / "evaluation" / "russian.json").read_text())["generated"]["child"]
    assert [(row["protocol"], row["right"]) for row in rows] == [("mmedbench:answer", 1), ("mmedbench:rationale", 1)]
    assert {path.suffix for path in (place / "child" / "evaluation" / "russian-mmedbench").iterdir()} == {".csv"}
    out = capsys.readouterr().out
    assert "mmedbench, rationales" in out and "russian-mmedbench" in out
    with pytest.raises(UserError, match="MMedBench is not asked by likelihood"):
        evaluate(checkpoint=str(place / "child"), **asked, **settings | {"protocols": ("likelihood",)})
