"""JMedLLM's way of asking IgakuQA: prompt bytes and grading are its authors' own, fault for fault."""

from pathlib import Path

import pytest

from t_elaine.errors import UserError
from t_elaine.evaluation import benchmarks, exams, grading, jmedllm
from t_elaine.evaluation.items import Exam, Item, load_exam
from t_elaine.evaluation.sitting import Sitting

# sha256 of all prompts, a zero byte after each, as eval_bench.py with template.py (ef9544a, python-liquid 1.12.1) makes
# them of jungokasai/IgakuQA at 2bc4c3d.
PROMPTS = {
    "medpalm_five_choice_cot": "6c862e587087b200eb592c23d87b8f908268f7535e557ede060633a74adcd8c5",
    "medpalm_five_choice_cot_ja": "ee7820ba67ec9c41aa650433cf32ce01d25f60092d7c853fdccc7d563eadb864",
    "alpaca": "9acd40e34e72e6e9db750fb4dcfd4cacc15122cce4e67760c08039d85efc231e",
    "alpaca_ja": "b65931f0010292452024d740a3945e1330b5d05e16e20b90224355f88a094463",
    "alpaca_med_five_choice_cot": "cef29bc6b436f2b2d92cce29f8a54c91e4e0e507ad1aaeaebd36030324b43d82",
    "alpaca_med_five_choice_cot_ja": "db0ccde1e1492abb7a860af9d69a0e5e6c59dcd94300bb4f4b6b776391fab8ca",
    "meditron_five_choice": "9f374193e989380d7bbb0092abfe3bfbaf3054103bcaa4c2ef3022defd4e89fe",
    "meditron_four_choice": "3aa67868a416ce9d1372670c177fc861fc87479cebc9b4deb50edd8e3b87e6de",
}


@pytest.fixture(scope="module")
def igakuqa(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exam]:
    """The exam in both languages; the English one is made as the command that fetches it does."""
    folder = tmp_path_factory.mktemp("exams")

    def read(url: str) -> bytes:
        return (shared_data / "benchmarks" / "igakuqa" / url.partition("/data/")[2]).read_bytes()

    benchmarks.fetch(str(folder), ["en/IgakuQA"], read)
    japanese = load_exam("ja/IgakuQA", str(shared_data / "benchmarks" / "elaine"))
    return {"ja": japanese, "en": load_exam("en/IgakuQA", str(folder))}


def by_template(igakuqa: dict[str, Exam]) -> dict[str, Sitting]:
    asked = [one for exam in igakuqa.values() for one in exams.sittings([exam], ["jmedllm"])]
    return {one.protocol.removeprefix("jmedllm:"): one for one in asked}


def test_prompts_are_the_published_ones_to_the_byte(igakuqa: dict[str, Exam]) -> None:
    asked = by_template(igakuqa)
    assert {name: one.prompts_sha256 for name, one in asked.items()} == PROMPTS
    assert {len(one.items) for name, one in asked.items() if name.endswith("_ja")} == {1450}
    assert {len(one.items) for name, one in asked.items() if not name.endswith("_ja")} == {1420}
    assert asked["alpaca"].excluded == {"about an image": 529, "longer than 2048 characters": 35, "not 5 options": 16}
    assert igakuqa["en"].published and igakuqa["en"].items[0].text == "What disease causes hyperammonemia?"


def test_what_needs_no_model(igakuqa: dict[str, Exam]) -> None:
    (asked,) = exams.sittings([igakuqa["ja"]], ["jmedllm:medpalm_five_choice_cot"])
    assert asked.protocol == "jmedllm:medpalm_five_choice_cot_ja"
    oracle = grading.score(asked, {item.line: jmedllm.gold(item) for item in asked.items}, resamples=10)
    assert oracle["published_row"] == {"table": "jmedllm/no_shuffle", "column": "IgakuQA ja"}
    assert oracle["right"] <= round(oracle["ceiling"] * 1450) == 1440 and oracle["marks"]["exact"]["value"] == 1.0
    # The gold's own commas ask for too many options: 112C36 and others can never be right.
    known = {"112C36", "112D28", "115A57", "115F73", "116C13"}
    assert known & {item.id for item in asked.items} <= {one["id"] for one in oracle["items"] if not one["right"]}
    nothing = grading.score(asked, {item.line: None for item in asked.items}, resamples=10)
    first = sum(item.answer == tuple("abcde"[: len(item.answer)]) for item in asked.items)
    assert nothing["unparsable"] == 1.0 and abs(nothing["right"] - first) <= 10, "saying nothing takes the first ones"
    (few,) = exams.sittings([igakuqa["ja"]], ["jmedllm:alpaca_ja"], limit=7)
    assert len(few.items) == 7
    assert grading.score(few, dict.fromkeys((i.line for i in few.items), "x"), 10)["published_row"] is None


FIVE = ("肺炎", "気胸", "肺癌", "喘息", "結核")


def item(answer: str = "b", choices: tuple[str, ...] = FIVE, text: str = "?", text_only: bool = True) -> Item:
    common = {"line": 1, "id": 1, "context": None, "points": 1}
    return Item(text=text, choices=choices, answer=tuple(answer), text_only=text_only, **common)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "answer", "line"),
    [
        ("alpaca_ja", "\n 気胸 \n説明", "気胸"),
        ("alpaca_ja", "気胸### 応答：\n肺炎", "気胸"),
        ("alpaca", "one\n### Answer:two", "two"),  # looked for before the prompt's own mark
        ("alpaca", "one ### Response: two", "one"),
        ("alpaca", "### 応答：\nthree", "three"),
        ("meditron_five_choice", "one\ntwo", "one"),
        ("meditron_five_choice", "one ### Response: two", "two"),
        ("alpaca", "", ""),
        ("alpaca", None, ""),
    ],
)
def test_the_line_that_is_compared(template: str, answer: str | None, line: str) -> None:
    assert jmedllm.response(template, answer) == line


@pytest.mark.parametrize(
    ("said", "right", "exact", "parsed"),
    [
        ("気胸", True, 1, True),
        ("気胸.", True, 1, True),
        ("自然気胸", True, 0, False),
        ("b", False, 0, False),
        ("肺炎", False, 0, True),
        ("", False, 0, False),
    ],
)
def test_grading(said: str, right: bool, exact: int, parsed: bool) -> None:
    judged = grading.JUDGES["jmedllm:alpaca_ja"].judge(item(), said)
    assert (judged.right, judged.marks["exact"], judged.parsed) == (right, exact, parsed)


def test_several_answers_and_commas() -> None:
    both = item("ac")
    assert (
        jmedllm.exact(both, "肺炎,肺癌")
        and not jmedllm.exact(both, "肺炎, 肺癌")
        and not jmedllm.exact(both, "肺癌,肺炎")
    )
    assert jmedllm.gestalt(both, "肺炎, 肺癌") and jmedllm.gestalt(both, "肺癌,肺炎"), "the order does not count"
    comma = item("a", ("x, y", "z", "u", "v", "w"))
    assert jmedllm.exact(comma, "x, y") and not jmedllm.gestalt(comma, "x, y"), "one option counts as two"
    many = item("a", ("1,2,3,4,5,6", "z", "u", "v", "w"))
    assert not jmedllm.gestalt(many, "1,2,3,4,5,6"), "more than there are"
    assert jmedllm._likeness("tide", "diet") == 0.375


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    exam = load_exam("samples/zh")
    with pytest.raises(UserError, match="no template for the language 'zh'"):
        exams.sittings([exam], ["jmedllm"])
    with pytest.raises(UserError, match=r"no template 'alpacca'(.|\n)*alpaca_ja"):
        exams.sittings([load_exam("samples/ja")], ["jmedllm:alpacca"])
    with pytest.raises(UserError, match="no protocol that generates is called 'official:x'"):
        exams.sittings([exam], ["official:x"])
    assert jmedllm.left_out(item(text_only=False), "ja") == "about an image"
    assert jmedllm.left_out(item(choices=("a", "b")), "ja") == "not 5 options"
    assert jmedllm.left_out(item(text="か" * 1025), "ja") == "longer than 1024 characters"
    assert not jmedllm.left_out(item(text="か" * 1024), "ja")
