"""prepare keeps documents with exam questions out of a store, or counts them; stores are looked through the same."""

import io
import json
from pathlib import Path

import pytest
import small_tasks as small
from rich.console import Console
from small_vocabularies import SAMPLE_VOCABULARY

from t_elaine.data import trained_texts
from t_elaine.data.exam_filter import make_filter
from t_elaine.data.exam_items import read_suite
from t_elaine.data.identity import Making
from t_elaine.data.overlap import Overlap
from t_elaine.data.store import open_store
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.data.workers import prepare_stores, report
from t_elaine.errors import UserError

QUESTION = "A 45-year-old woman comes to the clinic because of a painful swelling of her left knee since Tuesday."
JAPANESE = "４５歳の女性。火曜日から左膝の腫脹と疼痛が続くため来院した。この患者にまず行うべき検査はどれか。"


def write_exams(folder: Path, question: str = QUESTION) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in (("one", question), ("two", JAPANESE)):
        item = {"problem_id": name, "problem_text": text, "choices": ["x", "y"], "answer": ["a"]}
        (folder / f"{name}.jsonl").write_text(json.dumps(item) + "\n", encoding="utf-8")
    return folder


def prepared(folder: Path, mode: str, *, private: bool = False, workers: int = 1) -> tuple[trained_texts.Place, str]:
    rows = small.rows(20)
    rows[4]["text"] = f"Notes.\n{QUESTION.upper()}\nEnd."
    rows[11]["text"] = f"国試　{JAPANESE.replace('。', '．')}"
    path = small.write_rows(folder / "rows.jsonl", rows, {15: "{"})
    task = small.task("texts", small.source(path, private=private))
    found = make_filter((str(write_exams(folder / "exams")),), mode, None)
    making = Making(validation_share=0.0, shards=2, exams=found, max_rejected_share=0.06)
    out = io.StringIO()
    console = Console(file=out, width=80)
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    manifests = prepare_stores([task], vocabulary, folder / mode, making, workers=workers, console=console)
    report(manifests, console, folder / mode)
    return trained_texts.open_place(str(folder / mode / "texts")), " ".join(out.getvalue().split())


def look(place: trained_texts.Place, exams: Path, cache: str = "", **settings: int) -> dict[str, dict]:
    suites = [read_suite(path) for path in sorted(exams.glob("*.jsonl"))]
    said: list[str] = []
    found = trained_texts.look_through([place], suites, Overlap(**settings), cache, 1, said.append)
    return found[place.name] | {"said": said}  # type: ignore[dict-item]


def test_documents_with_questions_are_dropped_and_set_aside(tmp_path: Path) -> None:
    place, printed = prepared(tmp_path, "drop", workers=2)
    store = open_store(place.path)
    ids = {name for batch in store.batches() for name in batch.ids()}
    assert ids == {f"en{i}" for i in range(20)} - {"en4", "en11", "en15"}
    assert store.manifest["exam_overlap"] == {"mode": "drop", "documents": 2, "suites": {"one": 1, "two": 1}}
    assert store.manifest["quarantine"] == {"bad JSON": 1} or sum(store.manifest["quarantine"].values()) == 1
    lines = [json.loads(line) for line in (Path(place.path) / "quarantine.jsonl").read_text().splitlines()]
    held = {line["reason"]: line for line in lines if line["reason"].startswith("holds exam questions")}
    assert set(held) == {"holds exam questions: one one", "holds exam questions: two two"}
    assert held["holds exam questions: one one"]["line"] == 5
    assert held["holds exam questions: one one"]["shown"].startswith("Notes.")
    assert "2 documents hold exam questions (dropped): 1 of one, 1 of two" in printed
    found = look(place, tmp_path / "exams")
    assert not found["one"]["items"] and not found["two"]["items"]


def test_counting_keeps_them_and_a_look_through_the_store_finds_them(tmp_path: Path) -> None:
    place, printed = prepared(tmp_path, "count")
    manifest = open_store(place.path).manifest
    assert manifest["exam_overlap"]["documents"] == 2 and "(kept)" in printed
    assert sum(count["documents"] for count in manifest["counts"]) == 19
    found = look(place, tmp_path / "exams")
    assert found["one"]["items"]["one"]["examples"] == ["en4"] and found["one"]["items"]["one"]["question"] == 1.0
    assert found["two"]["items"]["two"]["examples"] == ["en11"]
    rows = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "texts.jsonl").write_text("".join(row for row in rows if row.endswith("}\n")))
    raw = trained_texts.open_place(str(tmp_path / "texts.jsonl"))
    again = look(raw, tmp_path / "exams")
    assert {n: again[n]["items"][n]["covered"] for n in ("one", "two")} == {
        n: found[n]["items"][n]["covered"] for n in ("one", "two")
    }


@pytest.mark.parametrize("row", ['{"content": "a text"}', '{"text": 5}', "[1, 2]", '{"text": "cut'])
def test_a_file_with_records_that_are_no_texts_is_refused_not_passed_over(tmp_path: Path, row: str) -> None:
    prepared(tmp_path, "drop")
    (tmp_path / "raw.jsonl").write_text(f'{{"text": "first"}}\n{row}\n')
    with pytest.raises(UserError, match="a record of the file has"):
        look(trained_texts.open_place(str(tmp_path / "raw.jsonl")), tmp_path / "exams")


def test_nothing_private_is_shown(tmp_path: Path) -> None:
    place, _ = prepared(tmp_path, "drop", private=True)
    text = (Path(place.path) / "quarantine.jsonl").read_text()
    assert text.count("holds exam questions") == 2 and "Notes" not in text and "KNEE" not in text
    place, _ = prepared(tmp_path, "count", private=True)
    examples = look(place, tmp_path / "exams")["one"]["items"]["one"]["examples"]
    assert examples and "en4" not in examples and len(examples[0]) == 16


def test_stores_of_other_exams_or_modes_are_refused(tmp_path: Path) -> None:
    prepared(tmp_path, "drop")
    write_exams(tmp_path / "other", "Another question, long enough to be one: it has thirteen words or more.")
    found = make_filter((str(tmp_path / "other"),), "drop", None)
    task = small.task("texts", small.source(tmp_path / "rows.jsonl"))
    making = Making(validation_share=0.0, shards=2, exams=found, max_rejected_share=0.06)
    with pytest.raises(UserError, match=r"exams\.suites\.one"):
        prepare_stores([task], load_vocabulary(SAMPLE_VOCABULARY), tmp_path / "drop", making, workers=1)


def test_what_was_found_is_kept_until_store_exam_or_settings_change(tmp_path: Path) -> None:
    place, _ = prepared(tmp_path, "count")
    cache, exams = str(tmp_path / "cache"), tmp_path / "exams"
    first = look(place, exams, cache)
    assert len(first["said"]) == 1 and len(list(Path(cache).iterdir())) == 2
    again = look(place, exams, cache)
    assert again["said"] == [] and again["one"] == first["one"] and again["two"] == first["two"]
    assert len(look(place, exams, cache, words=14)["said"]) == 1, "other settings"
    write_exams(exams, QUESTION.replace("left", "right"))
    changed = look(place, exams, cache)
    assert changed["said"] == ["looking for 1 exam questions in texts"], "the other exam is kept"
    assert 0 < changed["one"]["items"]["one"]["question"] < 1
    next(Path(cache).iterdir()).write_text("{")
    manifest = Path(place.path) / "manifest.json"
    with pytest.raises(trained_texts.Absent, match="was made anew"):
        manifest.write_text(manifest.read_text() + " ")
        for kept in Path(cache).iterdir():
            kept.write_text("{")
        look(place, exams, cache)


def test_wrong_settings_and_places_are_refused(tmp_path: Path) -> None:
    exams = write_exams(tmp_path / "exams")
    with pytest.raises(UserError, match="'drop' or 'count'"):
        make_filter((str(exams),), "keep", None)
    with pytest.raises(UserError, match="no such exam"):
        make_filter((str(tmp_path / "nowhere"),), "drop", None)
    with pytest.raises(UserError, match="neither a store nor a file"):
        trained_texts.open_place(str(tmp_path / "nowhere"))
    (exams / "one.jsonl").write_text('{"problem_id": 1\n')
    with pytest.raises(UserError) as caught:
        make_filter((str(exams),), "drop", None)
    assert caught.value.where.endswith("one.jsonl:1")
    assert make_filter((), "drop", None) is None


def test_several_processes_find_what_one_finds(tmp_path: Path) -> None:
    place, _ = prepared(tmp_path, "count")
    suites = [read_suite(path) for path in sorted((tmp_path / "exams").glob("*.jsonl"))]
    one, two = (trained_texts.look_through([place], suites, Overlap(), "", n, lambda said: None) for n in (1, 2))
    assert one == two and one["texts"]["one"]["items"]
