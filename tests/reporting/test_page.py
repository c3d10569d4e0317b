"""The page is valid, loads nothing, says what the files say, and stands with whatever part of a run is there."""

import collections
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from t_elaine.report import report
from t_elaine.reporting import page, words
from t_elaine.reporting.record import read_record
from tests.reporting.browser import opened
from tests.reporting.making import evaluation, make_run_folder, metric_lines, write

VOID = {"meta", "link", "img", "br", "hr", "input", "path", "use", "rect", "line", "circle"}
LOADING = {"script", "link", "img", "iframe", "object", "embed", "audio", "video", "source", "base", "form"}


class Reader(HTMLParser):
    """Collects tags, ids, addresses and text; notes every tag that is closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.ids: collections.Counter[str] = collections.Counter()
        self.tags: collections.Counter[str] = collections.Counter()
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attributes:
            if name == "id":
                self.ids[value or ""] += 1
            if name in ("href", "src", "xlink:href", "action", "data", "poster", "srcset"):
                self.addresses.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run_folder(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return page.render(read_record(str(run)))


def test_tags_are_closed_ids_are_unique_and_anchors_lead_somewhere(html: str) -> None:
    reader = read(html)
    assert html.startswith("<!DOCTYPE html>") and reader.faults == [] and reader.open == []
    assert [name for name, n in reader.ids.items() if n > 1] == []
    targets = {address[1:] for address in reader.addresses if address.startswith("#")}
    assert targets <= set(reader.ids) and {"scores", "curves", "proof", "questions"} <= targets


def test_nothing_is_loaded_from_anywhere(html: str) -> None:
    reader = read(html)
    assert {tag: n for tag, n in reader.tags.items() if tag in LOADING} == {}
    assert [address for address in reader.addresses if not address.startswith("#")] == []
    assert not re.search(r"@import|url\((?!#)", html)


def test_japanese_and_chinese_stand_on_the_page_as_text(html: str, run: Path) -> None:
    reader = read(html)
    assert "日本語" in reader.text and "中文" in reader.text
    result = json.loads((run / "evaluation" / "step-240.json").read_text(encoding="utf-8"))
    for exam in result["exams"]:
        shown = [q for q in exam["samples"] if q["question"] in reader.text]
        assert shown, exam["suite"]
        assert all(choice in reader.text for choice in shown[0]["choices"])
    assert 'lang="ja"' in html and 'lang="zh"' in html


def test_figures_on_the_page_are_the_files(html: str, run: Path) -> None:
    text = read(html).text
    result = json.loads((run / "evaluation" / "step-240.json").read_text(encoding="utf-8"))
    for row in result["bits_per_byte"]:
        for side in ("child", "parent", "difference"):
            assert words.number(row[side]["value"], 3, 1, side == "difference") in text
            assert words.number(row[side]["low"], 3, 1, side == "difference") in text
    for exam in result["exams"]:
        for score in exam["scores"].values():
            assert words.number(score["child"]["value"], 1, 100) in text
    assert "240 steps" in text and "3.93\u202fM tokens" in text and "after step 80, 160" in text
    assert "CC BY 4.0" in text and "272 tensors" in text


def test_markup_in_a_run_is_shown_and_not_run(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "<script>alert(1)<"
    shutil.copytree(run, other)
    result = evaluation()
    result["exams"][0]["samples"][0]["question"] = "<img src=x onerror=alert(1)> & more?"
    write(other / "evaluation" / "step-240.json", result)
    reader = read(page.render(read_record(str(other))))
    assert reader.tags["script"] == 0 and reader.tags["img"] == 0
    assert '# a comment with <tags> & "quotes"' in reader.text and "<img src=x onerror" in reader.text


def test_the_parent_is_named_with_its_licence(run: Path, tmp_path: Path) -> None:
    assert "The run started from" not in read(page.render(read_record(str(run)))).text
    other = tmp_path / "other"
    shutil.copytree(run, other)
    write(other / "parent" / "origin.json", {"origin": "/home/somebody/models/smollm2"})
    write(other / "parent" / "README.md", "---\nlicense: apache-2.0\nlanguage: en\n---\nlicense: of nothing\n")
    write(other / "parent" / "LICENSE", "Apache License\n")
    text = read(page.render(read_record(str(other)))).text
    assert "The run started from smollm2. Its own card says: license: apache-2.0." in " ".join(text.split())
    assert "bind whoever uses the weights: LICENSE." in text and "somebody" not in text and "of nothing" not in text
    write(other / "parent" / "origin.json", {"origin": "owner/name@0a1b2c"})
    text = read(page.render(read_record(str(other)))).text
    assert "The run started from owner/name@0a1b2c." in " ".join(text.split())


def test_a_language_has_its_colour_on_every_page(tmp_path: Path) -> None:
    line = {"kind": "validation", "step": 0, "loss": 1.0, "language": {}, "category": {}}
    for names in (["zh", "ja"], ["en", "zh", "sw"], ["sw", "zh"]):
        known = words.colours(names)
        assert known["zh"] == 2 and known.get("ja", 1) == 1 and known.get("en", 0) == 0
        assert len(set(known.values())) == len(names) and known.get("sw", 5) == words.colours(["sw"])["sw"] == 5
    group = {"loss": 1.0, "bits_per_byte": 1.0, "tokens": 1, "bytes": 1}
    write(tmp_path / "metrics.jsonl", json.dumps(line | {"language": {"zh": group, "ja": group}}) + "\n")
    (figure,) = page.figures(read_record(str(tmp_path)))
    assert figure["legend"] == [("zh", 2), ("ja", 1)]


def test_chip_hours_have_a_tile_with_devices_and_money() -> None:
    devices = {"count": 256, "kind": "TPU v5 lite"}
    (tile,) = words._cost({"chip_hours": 1234.56, "money": 1481.472}, devices)
    assert tile == {
        "name": "chip-hours",
        "value": "1\u202f234.6",
        "note": "256 × TPU v5 lite, 1\u202f481.47 at the price given",
    }
    assert words._cost({"chip_hours": 0.0142}, {})[0]["value"] == "0.014"
    assert words._cost({"loss": 1.0}, devices) == [], "an older record"


def test_the_median_of_an_even_number_of_rates() -> None:
    lines = [{"tokens_per_second": rate, "mfu": rate / 1000, "seconds": {"step": 1.0}} for rate in (400, 100, 200, 300)]
    speed, _ = words._speed(lines)
    assert speed == {"name": "tokens a second", "value": "250", "note": "MFU 25.0 %"}


def test_a_run_without_a_parent_or_an_evaluation_has_its_page(tmp_path: Path) -> None:
    alone = read(page.render(read_record(str(make_run_folder(tmp_path / "alone", parent=False)))))
    assert alone.faults == [] and "Scores" in alone.text and "child − parent" not in alone.text
    assert "Gain and forgetting" not in alone.text
    bare = tmp_path / "bare"
    write(bare / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metric_lines(3, ())))
    reader = read(page.render(read_record(str(bare))))
    assert reader.faults == [] and "Curves" in reader.text and "Scores" not in reader.text
    imported = tmp_path / "imported"
    write(imported / "evaluation" / "step-0.json", evaluation(parent=False))
    reader = read(page.render(read_record(str(imported))))
    assert reader.faults == [] and "No training steps are recorded" in reader.text


def test_without_general_text_the_page_says_that_it_cannot_know(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    result = evaluation()
    result["bits_per_byte"] = [row for row in result["bits_per_byte"] if row["level"] != "general"]
    write(other / "evaluation" / "step-240.json", result)
    assert "says nothing about forgetting" in read(page.render(read_record(str(other)))).text


def test_the_guards_verdict_stands_there(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    verdict = {"limits": {}, "exceeded": [{}], "told": "forgotten: general text, ja: 1.2 bits per byte"}
    write(other / "evaluation" / "step-240.json", evaluation() | {"forgetting": verdict})
    assert verdict["told"] in read(page.render(read_record(str(other)))).text


@pytest.mark.slow
def test_a_long_run_makes_no_large_page(tmp_path: Path) -> None:
    run = make_run_folder(tmp_path, steps=20_000, resumes=(8000,))
    assert len(page.render(read_record(str(run))).encode()) < 1_500_000


def test_the_command_writes_the_page_and_prints_its_path(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(run_dir=str(run)) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == run / "report.html" and path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    first = path.read_bytes()
    report(run_dir=str(run))
    assert path.read_bytes() == first, "the same files give the same page"


@pytest.mark.parametrize("width", [375, pytest.param(900, marks=pytest.mark.slow)])
def test_a_browser_shows_it_without_sideways_scrolling(run: Path, tmp_path: Path, width: int) -> None:
    report(run_dir=str(run), to=str(tmp_path / "page.html"))
    result = opened(tmp_path / "page.html", tmp_path, width)
    assert result["width"] <= width and result["wide"] == [], result
    assert result["plots"] >= 6 and result["blank"] == 0 and len(result["text"]) > 3000
    assert result["covered"] > 0.97, "tiles leave no grey block"
    assert result["tofu"] == [] and "日本語" in result["text"]
