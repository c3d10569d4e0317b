"""The published evaluation, fault for fault: prompt bytes, parsing, grading, and the figures that need no model."""

import json
from pathlib import Path

import pytest

from t_elaine.errors import UserError
from t_elaine.evaluation import benchmarks, grading, official
from t_elaine.evaluation.items import Exam, Item, load_exam
from t_elaine.evaluation.sitting import Sitting

# Measured on the published files: scored items, best of one letter an item, drawn letter, best constant letter.
PUBLISHED = {
    "en/MMLU": (1084, 100.0, 25.0, 32.47, "d"),
    "en/MedMCQA": (4178, 100.0, 25.0, 32.19, "a"),
    "en/MedQA-4op": (1268, 100.0, 25.0, 27.84, "a"),
    "en/MedQA": (1268, 100.0, 20.0, 21.77, "b"),
    "en/PubMedQA": (495, 100.0, 33.33, 55.35, "a"),
    "ja/DenQA": (715, 56.50, 11.38, 13.15, "d"),
    "ja/IgakuQA": (1995, 84.46, 16.93, 17.64, "e"),
    "ja/JJSIMQA": (455, 54.73, 10.95, 18.02, "d"),
    "zh/CMExam": (6806, 97.0, 19.55, 20.95, "c"),
    "zh/MedQA-4op": (3421, 100.0, 25.0, 27.01, "b"),
    "zh/MedQA": (3421, 100.0, 20.0, 21.46, "d"),
}

# sha256 of all prompts, a zero byte after each, as hf_vllm.create_input of the published scripts makes them at 614599e.
PROMPTS = {
    "en/MMLU": "aa550e99031427076941aa50a269a023a53b02e7bac7973aff47e8c02e5d887c",
    "en/MedMCQA": "134d079981ed5e4acca337f58d853090b2b6948395359a9e3ab32bac637f1bb7",
    "en/MedQA": "cfc077115f5f08295f8226cf586991db06f52def50c7e68a5c69ed4f7314b046",
    "en/MedQA-4op": "3dc7f1ae6a65aab6da4ef3d432f352229cf04292bb3f78153cf7a5b01bf71799",
    "en/PubMedQA": "a4a37b7863ba9fc8bd71d36ca285236a03184af6c21dec2115df2fc8eb1d7b97",
    "ja/DenQA": "2b72eb1de85e85818466d7acc49e07a926fd200bd68a7d12a1e2a0cfb5e33392",
    "ja/IgakuQA": "8e26b36cd895b9eb01fbf01f44d1e648c8d04bd15a602ff6ba40cc9bcffdb3e0",
    "ja/JJSIMQA": "544f9eff34283ea6644b6b67346fdb135da4e8b2abf178bfed4daf8679bcabb2",
    "zh/CMExam": "f78d64f06b9af9bd0396800627b6e0647b7499cb5585c5c675ba7f600848b63e",
    "zh/MedQA": "8d162da37db3574ebcc5576eea7070eeb6087b4f9aca7d2bfca1cc5d191c6daf",
    "zh/MedQA-4op": "6021abe2e1a2f81e6a358b5aa033df7eda170cf148bbd87529036556badff02f",
}


def exam(shared_data: Path, name: str) -> Exam:
    return load_exam(name, str(shared_data / "benchmarks" / "elaine"))


def scored(sitting: Sitting, answer) -> dict:
    return grading.score(sitting, {item.line: answer(item) for item in sitting.items}, resamples=10)


def percent(share: float) -> float:
    return round(100 * share, 2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_constant_letters_and_an_oracle_get_what_was_measured(shared_data: Path, name: str) -> None:
    count, ceiling, chance, majority, letter = PUBLISHED[name]
    sitting = official.sitting(exam(shared_data, name))
    right = {one: sum(official.judge(item, one).right for item in sitting.items) for one in "abcdefgh"}
    best = max(right, key=lambda one: right[one])
    assert (best, percent(right[best] / len(sitting.items))) == (letter, majority)
    oracle = scored(sitting, lambda item: ",".join(item.answer) + "\n")
    assert percent(oracle["accuracy"]["value"]) == ceiling
    assert oracle["prompts_sha256"] == PROMPTS[name]
    assert oracle["questions"] == count == len(sitting.exam.items) - 5
    assert (percent(oracle["ceiling"]), percent(oracle["chance"])) == (ceiling, chance)
    assert (oracle["majority"]["answer"], percent(oracle["majority"]["accuracy"])) == (letter, majority)


def test_every_benchmark_is_tried() -> None:
    assert set(PUBLISHED) == set(benchmarks.benchmarks()) - set(benchmarks.MADE)


BARE = {
    ("en/MMLU", 318): "Question: What is the pH of water?\na: 3.5\nb: 7\nc: 12\nd: 6.25\n"
    "Be sure to choose exactly 1 from a, b, c, d, e.\nAnswer:\n",
    ("ja/DenQA", 95): "問題: 横紋筋を構造に含むのはどれか。 1つ選べ。\na: 胃\nb: 気 管\nc: 子 宮\nd: 直 腸\ne: 横隔膜\n"
    "必ずa,b,c,d,eの中からちょうど1個選んでください。\n答え:\n",
    ("zh/MedQA", 1471): "问题: 艾滋病的传染源为（\u3000\u3000）。\na: 蚊\nb: 猪\nc: 鼠\nd: 人\ne: 螨\n"
    "请确保从 a、b、c、d、e 中准确选择 1。\n答话:\n",
}


@pytest.mark.parametrize(("name", "line"), BARE)
def test_prompts_to_the_byte(shared_data: Path, name: str, line: int) -> None:
    sitting = official.sitting(exam(shared_data, name))
    place = next(i for i, item in enumerate(sitting.items) if item.line == line)
    prompt = sitting.prompts[place]
    assert prompt.endswith("\n" + BARE[name, line])
    head = prompt.removesuffix(BARE[name, line])
    first = sitting.exam.items[0]
    cue = BARE[name, line].rsplit("\n", 2)[1]
    assert head.count(f"\n{cue}\n") == 5 and f"\n{cue}\n{first.answer[0]}\n" in head
    assert all(other.startswith(head) for other in sitting.prompts), "the same demonstrations before every item"


def test_odd_prompts(shared_data: Path) -> None:
    pubmed = official.sitting(exam(shared_data, "en/PubMedQA"))
    assert pubmed.prompts[0].startswith("Context: ") and pubmed.prompts[0].count("\nContext: ") == 5
    assert pubmed.prompts[0].endswith("\nc: maybe\nBe sure to choose exactly 1 from a, b, c, d, e.\nAnswer:\n")
    dental = official.sitting(exam(shared_data, "ja/DenQA"))
    by_line = dict(zip((item.line for item in dental.items), dental.prompts, strict=True))
    assert "\n答え:\nb,c\n問題: " in by_line[6], "the fifth demonstration"
    assert "ちょうど2個" in by_line[85].rsplit("問題: ", 1)[1], 'the gold "NA" has two letters'
    assert "ちょうど5個" in by_line[84].rsplit("問題: ", 1)[1]
    assert by_line[90].rsplit("\n問題: ", 1)[1] == dental.exam.items[89].text + "\n", (
        "without options the bare question"
    )
    surgeons = official.sitting(exam(shared_data, "ja/JJSIMQA"))
    assert "\n答え:\na,b,c,d\n問題: " in surgeons.prompts[0]
    nurse = next(item for item in surgeons.items if item.line == 27)
    assert "ちょうど3個" in surgeons.prompts[surgeons.items.index(nurse)].rsplit("問題: ", 1)[1]


def item(gold: str | list[str], identity: str | int = 1, choices: int = 5) -> Item:
    return Item(
        line=1,
        id=identity,
        text="?",
        context=None,
        choices=tuple("vwxyz"[:choices]),
        answer=gold if isinstance(gold, str) else tuple(gold),
        points=1,
        text_only=True,
    )


ODD = [
    ("a", "a", True),
    ("b,c", "b", False),
    ("ａ", "a", True),
    ("Ａ", "a", True),
    ("Ⓐ", "ⓐ", True),
    (" a", " ", False),
    ("\n\na\nb", "a", True),
    (" \na", " ", False),
    ("(a)", "(", False),
    ("Answer: b", "a", True),
    ("Based on the text, a", "b", False),
    ("The answer is a", "t", False),
    ("答え: a", "答", False),
    ("", "na", False),
    ("\n\n", "na", False),
    ("7.20", "7", False),
    ("７", "7", False),
    ("ア", "ｱ", False),
    ("ガ", "ｶﾞ", False),
    ("、a", "､", False),
    ("’", "'", False),
    ("＼", "\\", False),
    (None, "NA", False),
]


@pytest.mark.parametrize(("answer", "prediction", "right"), ODD)
def test_odd_answers(answer: str | None, prediction: str, right: bool) -> None:
    judged = official.judge(item(["a"]), answer)
    assert (judged.prediction, judged.right) == (prediction, right)
    assert judged.parsed == (prediction in {"a", "b", "ⓐ"})


def test_golds_that_cannot_be_got_and_the_two_ids() -> None:
    assert not any(official.is_right(item(["a", "c"]), letter) for letter in "abcde")
    assert not any(official.is_right(item("NA"), official.predict(text)) for text in ("NA", "a", "n", None, ""))
    assert official.judge(item(["e"], "116A71"), None).right
    assert [official.judge(item(["a or d"], "112B30"), letter).right for letter in "abd"] == [True, False, True]
    assert not official.judge(item(["a or d"], "112B31"), "a").right
    assert not official.judge(item(["7.20"], choices=0), "7.20").right


def test_five_items_are_demonstrations_and_not_scored(tmp_path: Path) -> None:
    path = tmp_path / "exam.jsonl"
    write(path, [record(i) for i in range(9)])
    sitting = official.sitting(load_exam(f"en:{path}"))
    assert [item.id for item in sitting.items] == [5, 6, 7, 8] and sitting.shots == 5
    few = official.sitting(load_exam(f"en:{path}"), limit=2)
    assert [item.id for item in few.items] == [5, 7] and few.prompts == sitting.prompts[::2]
    assert few.prompts_sha256 != sitting.prompts_sha256
    assert scored(sitting, lambda item: "a")["accuracy"]["value"] == 1.0
    write(path, [record(i) for i in range(5)])
    with pytest.raises(UserError, match="5 items, of which 5 are demonstrations"):
        official.sitting(load_exam(f"en:{path}"))


def record(identity: int, **other: object) -> dict:
    found = {"problem_id": identity, "problem_text": f"{identity} {{}}?", "choices": ["x", "y"], "answer": ["a"]}
    return found | other


def write(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"answer": ["c"]}, r"item 3: the answer \('c',\) is outside its 2 options"),
        ({"answer": "NA"}, "item 3: the answer 'NA' is outside"),
        ({"answer": []}, r"item 3: the answer \(\) is outside"),
        ({"choices": []}, None),
        ({"choices": [], "answer": ["7.20"]}, None),
        ({"choices": "xy"}, 'item 3: its choices is "xy"'),
        ({"problem_text": None}, "item 3: its problem_text is null"),
        ({"context": 5}, "item 3: its context is 5"),
        ({"points": "many"}, 'item 3: its points is "many"'),
    ],
)
def test_bad_items_are_named(tmp_path: Path, other: dict, what: str | None) -> None:
    path = tmp_path / "exam.jsonl"
    write(path, [record(i) | (other if i == 3 else {}) for i in range(9)])
    if what is None:
        assert len(load_exam(f"en:{path}").items) == 9
        return
    with pytest.raises(UserError, match=what) as raised:
        load_exam(f"en:{path}")
    assert raised.value.where == f"{path}:4"


def test_a_cut_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "exam.jsonl"
    write(path, [record(i, problem_text="心臓") for i in range(9)])
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(UserError, match="cut off") as raised:
        load_exam(f"en:{path}")
    assert raised.value.where == f"{path}:9"
    path.write_bytes(content[: content.rindex("臓".encode()) + 1])
    with pytest.raises(UserError, match=r"not UTF-8 \(is the file cut off\?\)") as raised:
        load_exam(f"en:{path}")
    assert raised.value.where == f"{path}:9"
