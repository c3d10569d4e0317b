"""Beside a score of written answers stands the score without the items that the model was trained on."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from t_elaine.evaluate import evaluate
from t_elaine.evaluation import contamination, exams, generated, unseen
from t_elaine.evaluation.items import load_exam
from tests.evaluation import making
from tests.evaluation.test_contamination import SETTINGS, question, write_exam
from tests.evaluation.test_official import record, write

FOUND = {"known": True, "why": "", "base": "what came before is not known", "settings": {}, "stores": {}, "untold": 0}
DRAWS = {"resamples": 50, "seed": 0}


def taken(folder: Path, items: list, protocols: tuple[str, ...], answer: str = "b") -> tuple[list, list]:
    """(sittings, scores) of an exam that an engine answers with the same letter always."""
    write(folder / "exam.jsonl", items)
    sittings = exams.sittings([load_exam(f"en:{folder / 'exam.jsonl'}")], protocols)

    def write_answers(prompts, sampling):
        return ((place, answer) for place in range(len(prompts)))

    return sittings, exams.take(sittings, lambda sitting: write_answers, str(folder / "answers"), "x", resamples=50)


def found(seen: dict[str, float]) -> dict:
    return FOUND | {"items": {name: {"question": share, "seen": True} for name, share in seen.items()}}


def test_seen_items_leave_the_score_and_only_they(tmp_path: Path) -> None:
    items = [record(i, problem_text=f"what is {i}?", answer=["b" if i % 2 else "a"]) for i in range(15)]
    sittings, rows = taken(tmp_path, items, ("official", "repaired"))
    # 1 is a demonstration of `official` (not asked); 7 and 9 are right, 8 is wrong, 10 was not seen enough.
    told = found({"1": 1.0, "7": 1.0, "8": 0.2, "9": 0.6}) | {}
    told["items"]["10"] = {"question": 0.1, "seen": False}
    unseen.join({"child": rows}, sittings, [told] * 2, DRAWS)
    official, rescored, repaired = (row["contamination"] for row in rows)
    for one in (official, rescored):
        assert (one["seen"], one["half"], one["unseen"]) == (3, 2, 7)
        assert one["without"]["right"] == 5 - 2 and one["without"]["questions"] == 7
        assert one["items"] == {"7": 1.0, "8": 0.2, "9": 0.6}
    assert (repaired["seen"], repaired["unseen"]) == (4, 11) and repaired["without"]["right"] == 7 - 3
    assert rows[0]["right"] == 5 and rows[0]["questions"] == 10, "the score itself stays"
    result = {"identity": DRAWS, "generated": {"child": rows}}
    unseen.put(result, sittings, [told] * 2)
    assert result["overlap"]["exam"] == told["items"] and rows[0]["contamination"] == official


def test_items_reported_apart_do_not_count_as_seen_ones_of_the_headline(tmp_path: Path) -> None:
    items = [record(i, problem_text=f"what is {i}?", text_only=i != 3) for i in range(6)]
    sittings, rows = taken(tmp_path, items, ("repaired",))
    unseen.join({"child": rows}, sittings, [found({"2": 1.0, "3": 1.0})], DRAWS)
    one = rows[0]["contamination"]
    assert (one["seen"], one["unseen"]) == (1, 4) and set(one["items"]) == {"2", "3"}
    assert rows[0]["questions"] == 5


@pytest.mark.parametrize("sides", [1, 2])
def test_the_table_fits_a_terminal_and_says_what_is_not_known(tmp_path: Path, sides: int) -> None:
    items = [record(i, problem_text=f"what is {i}?") for i in range(30)]
    sittings, rows = taken(tmp_path, items, ("official",))
    rows = [row | {"suite": "en/MedQA-4op"} for row in rows]
    unseen.join({"child": rows}, [sitting_named(sittings[0])], [found({"7": 1.0})], DRAWS)
    file = io.StringIO()
    generated.show(dict.fromkeys(("child", "parent")[:sides], rows), Console(file=file, width=80))
    table = file.getvalue().split("official without")[1].split("official-rescored")[0].splitlines()
    (line,) = (line for line in table if "MedQA" in line)
    assert line.split()[:4] == ["en/MedQA-4op", "1", "1", "24"] and len(line) <= 80
    assert "what came before is not known" in file.getvalue()

    unknown = FOUND | {"known": False, "why": "not known: no record", "items": {}}
    unseen.join({"child": rows}, [sitting_named(sittings[0])], [unknown], DRAWS)
    file = io.StringIO()
    generated.show({"child": rows}, Console(file=file, width=80))
    assert file.getvalue().count("questions seen in training: not known: no record") == 2, "once a protocol"
    assert "without the questions" not in file.getvalue()


def sitting_named(sitting):
    return replace(sitting, exam=replace(sitting.exam, name="en/MedQA-4op"))


def test_the_command_joins_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = making.make_config
    vocabulary = making.make_vocabulary(tmp_path / "vocabulary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "make_config", lambda vocabulary: replace(small(vocabulary), max_position=4096))
        making.make_run(tmp_path / "run", vocabulary)
    exam = write_exam(tmp_path / "en" / "heart.jsonl")
    (tmp_path / "raw.jsonl").write_text(json.dumps({"id": "r", "text": question(exam, 6)}) + "\n", encoding="utf-8")
    arguments = {"checkpoint": str(tmp_path / "run"), "exams": (str(exam),), "protocols": ("likelihood", "official")}
    settings = SETTINGS | {"mesh": None, "batch_rows": 4}
    assert evaluate(**arguments, **settings, trained_on=(str(tmp_path / "raw.jsonl"),)) == 0
    result = json.loads((tmp_path / "run" / "evaluation" / "step-7.json").read_text(encoding="utf-8"))
    row = result["generated"]["child"][0]
    assert row["contamination"]["items"] == {"6": 1.0} and row["contamination"]["unseen"] == row["questions"] - 1 == 2
    assert set(result["overlap"]["heart"]) == {"6"} and result["exams"][0]["contamination"]["seen"] == 1
    assert "official without the questions seen" in " ".join(capsys.readouterr().out.split())
    lines = contamination.markdown(result).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["likelihood", "official", "official-rescored"]
    assert lines[3].split(" | ")[3:6] == ["3", "1", "1"]
