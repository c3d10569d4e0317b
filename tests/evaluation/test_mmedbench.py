"""MMedBench: prompts to the byte, grading, bad lines, submission files; on small files of its layout made for it."""

import csv
import io
from pathlib import Path

import pytest

from t_elaine.errors import UserError
from t_elaine.evaluation import exams, generated, grading, mmedbench, submission, words
from t_elaine.evaluation.items import Exam
from t_elaine.evaluation.sitting import Sitting
from tests.evaluation.mmedbench_made import MADE, write_items, write_made

# sha256 of all prompts of the made files, a zero byte after each, as read_jsonl and prepare_data of the published
# inference.py (9722bb7) make them: without and with the reason.
PROMPTS = {
    "English": (
        "038fa449659b24ff545e4a1ad0b39ad234dcb9e75699b952167881c3d27ae4c2",
        "5f520631c6d27fdaf756ec402ad5cd758e6651f1c2ac62f8da43913c717281ea",
    ),
    "Chinese": (
        "963c98dbed1e1b5e5b2e199df697ccc40cc06ac3f638380560326d1b24f4e73b",
        "3a85b2e8129a6ea8ee71a2667b933b547a1ece6491bc60e86e44c7b7a7d492d2",
    ),
    "Japanese": (
        "1c10987a537269d2a0f50b6531d9fd96ad08bff18a5c65b550c5c70ebb0437bb",
        "3ba05d337b6d545d1508ad14b1c087a58915480b9735f3ef9bef552c974d2b00",
    ),
    "French": (
        "691721b6b9b36c60381199329a000571fadb9c8fd803abf2a33cfc2fbee9725e",
        "a0cf71432b63f680ec168f82a355fe2eef71c055a33680d42a6cb0b669e28204",
    ),
    "Russian": (
        "63d5af39b1c9453e5f31c2480d770958eb60fd061395f737b921b9d12336ef8c",
        "25b1e9abf6f8a5b5aebce067b34a93b37833b9e7dd2a6818a62d3f88aa43dbb4",
    ),
    "Spanish": (
        "2c12c26ba78575e1c28688340bfe0231116ef663a416723ead10479867a945b1",
        "f8ea28e04bdada7d614d4f82e79d7a714f1ab034b837234642a3649127f0c9f3",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made(tmp_path_factory.mktemp("exams"))


def load(folder: Path, language: str) -> Exam:
    return exams.load(f"mmedbench/{language}", str(folder))


def oracle(sitting: Sitting) -> dict[int, str | None]:
    """What a model says that has learned the training format."""
    end = {one.line: f"###Answer: OPTION {','.join(one.answer).upper()} IS CORRECT." for one in sitting.items}
    if sitting.protocol.endswith("answer"):
        return dict(end)
    told = {one.line: one.rationale.text if one.rationale else "" for one in sitting.items}
    return {line: f"###Rationale: {told[line]}\n{end[line]}" for line in end}


@pytest.mark.parametrize("language", PROMPTS)
def test_prompts_and_the_oracle(folder: Path, language: str) -> None:
    asked = exams.sittings([load(folder, language)], ["mmedbench"])
    assert tuple(one.prompts_sha256 for one in asked) == PROMPTS[language]
    answer, rationale = (grading.score(one, oracle(one), resamples=10) for one in asked)
    assert (answer["protocol"], rationale["protocol"]) == ("mmedbench:answer", "mmedbench:rationale")
    assert answer["accuracy"]["value"] == rationale["accuracy"]["value"] == answer["ceiling"] == 1.0
    passed = sum(one["human_check_passed"] for one in MADE[language])
    assert "marks" not in answer and rationale["marks"]["bleu_1"]["questions"] == passed
    marks = {name: value["value"] for name, value in rationale["marks"].items()}
    assert set(marks) == {*(f"bleu_{n}" for n in range(1, 5)), "rouge_1", "rouge_2", "rouge_l"}
    assert all(value == pytest.approx(1.0) for value in marks.values()), "the same text"
    nothing = grading.score(asked[1], dict.fromkeys((one.line for one in asked[1].items), None), resamples=10)
    assert nothing["unparsable"] == 1.0 and nothing["marks"]["rouge_1"]["value"] == 0.0


def test_a_figure_enters_the_table_only_with_all_items(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = exams.sittings([load(folder, "Russian")], ["mmedbench"])
    assert [grading.score(asked, oracle(asked), 10)["published_row"] for asked in both] == [None, None]
    for asked in both:
        monkeypatch.setitem(asked.rules.data["items"], "Russian", 2)
    found = [grading.score(asked, oracle(asked), 10)["published_row"] for asked in both]
    names = ("mmedlm/mmedbench_accuracy", "mmedlm/mmedbench_rationale")
    assert found == [{"table": name, "column": "Russian"} for name in names]


@pytest.mark.parametrize(
    ("said", "prediction", "right"),
    [
        ("###Answer: OPTION B,D IS CORRECT.", "B,D", True),
        (" ###Answer: OPTION D,B IS CORRECT.\n", "D,B", True),
        ("B,D", "B,D", True),
        ("###Answer: OPTION B, D IS CORRECT.", "B, D", False),  # parts keep their blanks
        ("###Answer: OPTION B IS CORRECT.", "B", False),
        ("###Answer: OPTION B,D IS CORRECT. Because", "B,D IS CORRECT. Because", False),
        ("###Answer: OPTION B,D IS CORRECT.### Response:x", "B,D", True),
        ("", "", False),
        (None, "", False),
    ],
)
def test_answers_of_several_letters(folder: Path, said: str | None, prediction: str, right: bool) -> None:
    judged = mmedbench.judge("answer", load(folder, "French").items[0], said)
    assert (judged.prediction, judged.right) == (prediction, right)


def test_an_answer_of_one_letter_is_that_letter(folder: Path) -> None:
    first = load(folder, "English").items[0]
    assert [mmedbench.judge("answer", first, said).right for said in ("A", "a", "A,A", "B", "###Answer: OPTION A")] == [
        True,
        False,
        False,
        False,
        True,
    ]
    said = "###Rationale: Insulin\nmoves glucose.###Answer: OPTION A IS CORRECT."
    reasoned = mmedbench.judge("rationale", first, said)
    assert reasoned.right and 0 < reasoned.marks["bleu_1"] < 1
    assert not mmedbench.judge("rationale", first, "A").right, "no letter is looked for before the mark"


def test_files_for_the_leaderboard(folder: Path, tmp_path: Path) -> None:
    asked = exams.sittings([load(folder, "English"), load(folder, "Japanese")], ["mmedbench"])
    rows = [grading.score(one, oracle(one), resamples=10) for one in asked]
    made = Path(submission.write(str(tmp_path / "step-7.json"), asked, rows))
    assert made == tmp_path / "step-7-mmedbench"
    found = {path.name: list(csv.reader(io.StringIO(path.read_text("utf-8")))) for path in made.iterdir()}
    header = ["Language", "ModelInput", "ModelOutput", "GT_Answer"]
    choices, reasons = found["multi_choice_results.csv"], found["rationale_results.csv"]
    assert choices[0] == reasons[0] == header and len(choices) == 6 and len(reasons) == 5
    assert choices[-1] == ["Japanese", asked[2].prompts[1], "###Answer: OPTION A,D IS CORRECT.", "A,D"]
    assert reasons[1][2:] == [oracle(asked[1])[1], MADE["English"][0]["rationale"]]
    languages = ["English", "Chinese", "Japanese", "French", "Russian", "Spanish"]
    assert found["accuracy_metric.csv"] == [languages, ["100.00", "", "100.00", "", "", ""]]
    similar = found["rationale_similarity_metric.csv"]
    names = [*(f"BLEU-{n}" for n in range(1, 5)), "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    assert [line[0] for line in similar] == ["Metric", *names]
    assert similar[1] == ["BLEU-1", "100.00", "", "100.00", "", "", ""]
    assert submission.write(str(tmp_path / "other.json"), [], []) == "" and not (tmp_path / "other-mmedbench").exists()


GOOD = MADE["Japanese"][0]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({name: value for name, value in GOOD.items() if name != "rationale"}, "this line lacks rationale"),
        ({"question": "?"}, "this line lacks options, answer_idx, rationale"),
        (["question"], "this line is no JSON object"),
        (GOOD | {"answer_idx": "F"}, "the answer 'F' is outside its 5 options"),
        (GOOD | {"answer_idx": []}, r"the answer \[\] is outside"),
        (GOOD | {"answer_idx": "a"}, "the answer 'a' is outside"),
        (GOOD | {"answer_idx": 1}, "its answer_idx is 1"),
        (GOOD | {"options": {"A": "a", "C": "b"}}, "its options is"),
        (GOOD | {"options": ["a", "b"]}, "its options is"),
        (GOOD | {"question": None}, "its question is null"),
        (GOOD | {"human_check_passed": "yes"}, 'its human_check_passed is "yes"'),
        (MADE["English"][0], "not in the file's language, 'ja': 'Which hormone"),
        (MADE["Chinese"][0], "not in the file's language, 'ja'"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: dict, what: str) -> None:
    path = write_items(tmp_path / "Japanese.jsonl", [GOOD, line])
    with pytest.raises(UserError, match=what) as raised:
        exams.load(f"mmedbench:{path}")
    assert raised.value.where == f"{path}:2" and raised.value.mend


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = write_items(tmp_path / "Japanese.jsonl", [GOOD, GOOD])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="no JSON \\(is the file cut off\\?\\)") as raised:
        exams.load(f"mmedbench:{path}")
    assert raised.value.where == f"{path}:2"
    with pytest.raises(UserError, match=r"no language 'German'(.|\n)*known are English, Chinese"):
        exams.load("mmedbench/German", str(tmp_path))
    with pytest.raises(UserError, match="mmedbench/Spanish is not there") as raised:
        exams.load("mmedbench/Spanish", str(tmp_path))
    for part in ("Henrychur/MMedBench", "d817c67d", "CC-BY-NC-4.0", "curl", f"unzip MMedBench.zip -d {tmp_path}"):
        assert part in raised.value.mend
    with pytest.raises(UserError, match="no folder of exams is given for mmedbench/Spanish"):
        exams.load("mmedbench/Spanish")
    with pytest.raises(UserError, match="asks MMedBench's own files alone"):
        exams.sittings([exams.load("samples/ja")], ["mmedbench"])
    with pytest.raises(UserError, match="mmedbench has no template 'rational'"):
        exams.sittings([exams.load(f"mmedbench:{write_items(path, [GOOD])}")], ["mmedbench:rational"])


def test_a_missing_package_is_told_before_anything_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exam = load(folder, "Japanese")
    monkeypatch.setitem(words.PACKAGES, "ja", "no_such_package")
    with pytest.raises(UserError, match=r"no_such_package, which is not installed(.|\n)*t-elaine\[mmedbench\]"):
        exams.sittings([exam], ["mmedbench"])
    (asked,) = exams.sittings([exam], ["mmedbench:answer"])
    assert len(asked.items) == 2


def test_other_protocols_take_the_files_too(folder: Path) -> None:
    asked = [exams.sittings([load(folder, language)], ["repaired"])[0] for language in ("Japanese", "French")]
    assert "インスリン" in asked[0].prompts[0] and asked[1].prompts[0].endswith("Answer:")


def test_the_table_has_a_row_a_language(folder: Path) -> None:
    asked = exams.sittings([load(folder, language) for language in MADE], ["mmedbench"])
    rows = [grading.score(one, oracle(one), resamples=10) for one in asked]
    rows[1]["marks"]["bleu_1"]["value"] = 0.4802
    for sides in (["child"], ["child", "parent"]):
        file = io.StringIO()
        generated.show(dict.fromkeys(sides, rows), generated.Console(file=file, width=80))
        lines = [line for line in file.getvalue().split("\n") if line.strip().startswith(tuple(MADE))]
        assert [line.split()[0] for line in lines] == [*MADE, *MADE]
        assert ("48.02" if sides == ["child"] else "48.0/48.0") in lines[6]
        assert max(map(len, file.getvalue().split("\n"))) <= 80
