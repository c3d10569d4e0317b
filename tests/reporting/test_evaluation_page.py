"""The page of an evaluation: our numbers beside the published ones where they may stand, answers, digests; compared."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from t_elaine.errors import UserError
from t_elaine.report import report
from t_elaine.reporting import entrants, evaluation_page, published, record, side_by_side, words
from tests.reporting.browser import opened
from tests.reporting.exam_results import as_published, make_result
from tests.reporting.making import make_run_folder
from tests.reporting.test_page import LOADING, read


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    make_result(folder)
    make_result(folder, "other", seed=7, parent=False)
    return folder


@pytest.fixture(scope="module")
def html(place: Path) -> str:
    assert report(run_dir=str(place / "step-240.json")) == 0
    return (place / "step-240.html").read_text(encoding="utf-8")


def result_of(place: Path) -> dict:
    return json.loads((place / "step-240.json").read_text(encoding="utf-8"))


def changed(place: Path, folder: Path, change) -> Path:
    """A copy of the result, changed."""
    result = result_of(place)
    change(result)
    (folder / "changed.json").write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")
    return folder / "changed.json"


def test_the_page_is_whole_and_loads_nothing(html: str, place: Path) -> None:
    reader = read(html)
    assert reader.faults == [] and reader.open == [] and [name for name, n in reader.ids.items() if n > 1] == []
    assert {tag: n for tag, n in reader.tags.items() if tag in LOADING} == {}
    assert {address[1:] for address in reader.addresses if address.startswith("#")} <= set(reader.ids)
    files = [address for address in reader.addresses if not address.startswith("#")]
    assert files and all((place / file).is_file() for file in files), "answers as written lie where the page says"


def test_every_score_stands_with_interval_limits_digests_and_without_what_was_seen(html: str, place: Path) -> None:
    text = read(html).text
    for rows in result_of(place)["generated"].values():
        for row in rows:
            for end in ("value", "low", "high"):
                assert words.number(row["accuracy"][end], 2, 100) in text
            for name in ("prompts_sha256", "protocol_sha256", "suite_sha256"):
                assert row[name][:12] in text and row[name] in html
            without = row["contamination"]["without"]["accuracy"]
            assert words.number(without["low"], 2, 100) in text
    assert "notes" in text and "What the model it began from had read is not known." in text
    assert "likelihood" in text and "samples/ja" in text, "exams by likelihood stand there too"


def test_published_figures_are_the_files_and_nothing_of_ours_stands_among_them_unearned(html: str, place: Path) -> None:
    text = read(html).text
    for table in published.tables():
        for row in table["rows"]:
            assert row["model"] in text
            for value in row["cells"]:
                assert value is None or (value if isinstance(value, str) else words.number(value, 2)) in text
    assert "(ours)" not in text
    assert "the file of the exam is none of the published ones" in text and "grading of our own" in text


def test_a_number_enters_a_table_where_the_score_says_so_with_an_average_of_the_whole_row(
    place: Path, tmp_path: Path
) -> None:
    suites = {"ja/DenQA": 0.2345, "ja/IgakuQA": 0.4444, "ja/JJSIMQA": 0.3131}

    def publish(result: dict, names: dict[str, float]) -> None:
        rows = result["generated"]["child"]
        official = next(row for row in rows if row["protocol"] == "official" and row["language"] == "ja")
        result["generated"] = {"child": [*rows, *(as_published(official, *one) for one in names.items())]}

    models = entrants.entrants([str(changed(place, tmp_path, lambda result: publish(result, suites)))], ("child",))
    table = next(table for table in published.tables() if table["id"] == "elaine/ja")
    (row,) = published.with_ours(table, models)["ours"]
    assert [cell["value"] for cell in row["cells"]] == list(suites.values())
    assert row["average"] == pytest.approx(100 * sum(suites.values()) / 3)
    assert all(one["row"]["suite"] not in suites for one in published.apart(models))
    assert published.with_ours(published.tables()[0], models)["ours"] == []

    rationales = next(table for table in published.tables() if "marks" in table)
    cell = {"table": rationales["id"], "column": "Japanese"}
    marks = {"bleu_1": {"value": 0.41234}, "rouge_1": {"value": 0.5}}
    written = replace(models[0], rows=(models[0].rows[0] | {"published_row": cell, "marks": marks},))
    (row,) = published.with_ours(rationales, [written])["ours"]
    assert row["cells"] == [None, None, "41.23 / 50.00", None, None, None] and "average" not in row

    part = changed(place, tmp_path, lambda result: publish(result, {"ja/DenQA": 0.2}))
    assert report(run_dir=str(part)) == 0
    text = "".join(read((tmp_path / "changed.html").read_text(encoding="utf-8")).text.split())
    assert "(ours)20.0018.00to22.00–––" in text, "no average of a part of the row"
    assert "**tiny, step 240 (ours)** | 20.00 [18.00 to 22.00] | – | – | –" in (tmp_path / "changed.md").read_text()


def test_why_a_number_stands_apart() -> None:
    row = {"protocol": "official", "suite": "ja/IgakuQA", "published_suite": True, "questions": 40}
    assert published.why(row) == "40 of 1,995 questions were asked"
    assert "options are scored" in published.why(row | {"protocol": "likelihood"})
    assert published.why(row | {"published_suite": False}).startswith("the file of the exam is none")
    assert published.why(row | {"suite": "en/IgakuQA"}).startswith("no published table")


def test_subjects_stand_below_the_table_that_has_them(place: Path, tmp_path: Path) -> None:
    figures = {"questions": 100, "accuracy": {"value": 0.4747, "low": 0.4, "high": 0.5}}

    def add(result: dict) -> None:
        result["generated"]["child"][0]["by_subject"] = {"MMLU_AN": figures, "MMLU_CK": {"questions": 0}}

    assert report(run_dir=str(changed(place, tmp_path, add))) == 0
    text = "".join(read((tmp_path / "changed.html").read_text(encoding="utf-8")).text.split())
    assert "tiny,step240,official–––––47.4740.00to50.00–––" in text


def test_answers_where_the_two_differ_come_first_and_are_bounded(html: str, place: Path) -> None:
    models = entrants.entrants([str(place / "step-240.json")])
    shown = side_by_side.shown(models)
    assert [(one["suite"], one["protocol"]) for one in shown][:2] == [("exam_en", "official"), ("exam_en", "repaired")]
    for one in shown:
        kinds = [question["kind"].startswith("only") for question in one["questions"]]
        assert len(kinds) == side_by_side.MOST and kinds == sorted(kinds, reverse=True) and kinds[0]
        assert sum(n for _, n in one["counts"]) == (25 if one["protocol"] == "official" else 30)
        assert all(question["question"] and len(question["answers"]) == 2 for question in one["questions"])
    text = read(html).text
    assert "心不全の治療薬はどれか" in text and "高血压首选的药物" in text and "正解は" in text
    assert side_by_side.cut("x" * 900) == "x" * side_by_side.LONGEST + " …"


def test_questions_of_another_file_are_not_shown(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "exams", tmp_path / "exams")
    file = tmp_path / "exams" / "ja" / "exam_ja.jsonl"
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    path = changed(
        place, tmp_path, lambda result: result["exam_files"].update({"exam_ja": str(file), "exam_zh": "gone"})
    )
    shown = {one["suite"]: one["questions"][0] for one in side_by_side.shown(entrants.entrants([str(path)]))}
    assert shown["exam_en"]["question"] and not shown["exam_ja"]["question"] and not shown["exam_zh"]["question"]
    assert shown["exam_ja"]["answers"][0]["answer"]


@pytest.mark.parametrize(
    ("identity", "scored"),
    [({"dtype": "float32"}, "t-elaine, float32"), ({"dtype": "", "engine": "http-host"}, "http-host")],
)
def test_a_score_says_which_engine_it_is_of(identity: dict, scored: str) -> None:
    written = {"engine": "vllm-9", "dtype": "bfloat16"}
    rows = tuple({"suite": "en/A", "protocol": "likelihood", **by} for by in ({}, {"answered_by": written}))
    model = entrants.Entrant(name="one", side="child", path="one.json", result={"identity": identity}, rows=rows)
    assert [row["engine"] for row in evaluation_page.made([model], "")] == [scored, "vllm-9, bfloat16"]


def test_markup_in_answers_is_shown_and_not_run(place: Path, tmp_path: Path) -> None:
    def inject(result: dict) -> None:
        for rows in result["generated"].values():
            for item in rows[0]["items"]:
                item["answer"] = "<script>alert(1)</script>"

    assert report(run_dir=str(changed(place, tmp_path, inject))) == 0
    reader = read((tmp_path / "changed.html").read_text(encoding="utf-8"))
    assert reader.tags["script"] == 0 and "<script>alert(1)</script>" in reader.text


def test_of_a_run_folder_the_result_of_the_last_step_without_a_name_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    for name, step in (("step-100", 100), ("trial", 100), ("step-60", 60), ("z", 60)):
        result = {"models": {"child": {"step": step}}}
        (folder / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    assert entrants.find_result(str(tmp_path)) == str(folder / "step-100.json")
    assert list(record.evaluations(str(tmp_path)))[-1] == "step-100"


def test_two_results_are_compared_in_the_terminal_and_on_a_page(place: Path, capsys: pytest.CaptureFixture) -> None:
    # As `--compare A B` gives it: the second is a bare argument.
    assert report(compare=(str(place / "step-240.json"),), run_dir=str(place / "other.json")) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.split("\n")[:-3])) <= 80
    assert "official: tiny, step 240 against tiny, step 240 (2)" in " ".join(out.split())
    page, text = (Path(line) for line in out.strip().split("\n")[-2:])
    assert page.name.endswith("-other.html") and "McNemar" in page.read_text(encoding="utf-8")
    assert "## Gain and loss" in text.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="no second model"):
        report(compare=(str(place / "other.json"),))


def test_what_cannot_be_reported_is_said(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to report on"):
        report()
    with pytest.raises(UserError, match="no such result"):
        report(results=(str(tmp_path / "none.json"),))
    (tmp_path / "list.json").write_text("{}")
    with pytest.raises(UserError, match="no evaluation result"):
        report(results=(str(tmp_path / "list.json"),))
    with pytest.raises(UserError, match=r"ends in \.html"):
        report(results=(str(place / "other.json"),), to=str(tmp_path / "page.txt"))
    with pytest.raises(UserError, match="no result of evaluate in it"):
        report(results=(str(tmp_path),))
    for name, exams in (("one", True), ("other", False)):
        result = json.loads((place / "other.json").read_text(encoding="utf-8")) | {"bits_per_byte": []}
        result |= {} if exams else {"exams": [], "generated": {}}
        (tmp_path / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(UserError, match="no score that can be compared"):
        report(compare=(str(tmp_path / "one.json"), str(tmp_path / "other.json")))
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize("width", [375, pytest.param(1200, marks=pytest.mark.slow)])
def test_a_browser_shows_it_with_japanese_and_chinese(html: str, place: Path, tmp_path: Path, width: int) -> None:
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    found = opened(tmp_path / "page.html", tmp_path, width, least=40)
    assert found["width"] <= width and found["wide"] == [], found["wide"]
    assert found["plots"] >= 5 and found["blank"] == 0 and found["cut"] == []
    assert found["tofu"] == [] and "正解は" in found["text"] and "答案是" in found["text"]


def test_the_report_of_a_run_has_written_exams_and_what_was_seen(tmp_path: Path) -> None:
    run = make_run_folder(tmp_path, steps=40, resumes=())
    make_result(run / "evaluation", "step-240")
    assert report(run_dir=str(run)) == 0
    text = read((run / "report.html").read_text(encoding="utf-8")).text
    row = json.loads((run / "evaluation" / "step-240.json").read_text(encoding="utf-8"))["generated"]["child"][0]
    assert "Exams answered in text" in text and words.number(row["accuracy"]["low"], 2, 100) in text
    assert "Questions seen in training" in text and "What the model it began from had read is not known." in text
    assert report(results=(str(run),)) == 0 and (run / "evaluation" / "step-240.md").is_file()


def test_templates_of_one_protocol_stand_together_with_their_other_measures(place: Path, tmp_path: Path) -> None:
    mark = {"questions": 30, "value": 0.1234, "low": 0.1, "high": 0.2}

    def rename(result: dict) -> None:
        for rows in result["generated"].values():
            for name, row in zip(("alpaca", "meditron_five_choice"), rows[:2], strict=True):
                row |= {"protocol": f"jmedllm:{name}", "marks": {"exact_match": mark}}

    path = changed(place, tmp_path, rename)
    groups = dict(entrants.by_protocol(entrants.entrants([str(path)])))
    assert [row["template"] for row in groups["jmedllm"]] == ["alpaca", "meditron_five_choice"]
    assert next(iter(groups)) == "official" and list(groups)[-1] == "likelihood"
    assert report(run_dir=str(path)) == 0
    text = read((tmp_path / "changed.html").read_text(encoding="utf-8")).text
    assert "exact-match" in text and text.count("12.34") == 4
    assert "| exam_en alpaca |" in (tmp_path / "changed.md").read_text(encoding="utf-8")
