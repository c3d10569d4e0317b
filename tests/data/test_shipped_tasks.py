"""The tasks that ship with T-ELAINE prepare, and say where their text comes from."""

import io
import json
import sys
from pathlib import Path

import pytest
import small_tasks as small
from rich.console import Console
from small_vocabularies import SAMPLE_VOCABULARY, SAMPLES

from t_elaine import prepare as command
from t_elaine.data import tasks
from t_elaine.data.identity import Making
from t_elaine.data.store import Store, open_store, verify_store
from t_elaine.data.texts import Task
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.data.workers import duplicates_between, prepare_stores
from t_elaine.errors import UserError


@pytest.fixture
def shipped_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped modules, freshly imported into empty registries."""
    monkeypatch.setattr(tasks, "TASKS", {})
    monkeypatch.setattr(tasks, "MIXTURES", {})
    modules = ("data_tasks.samples", "data_tasks.public_corpora", "data_tasks.instruction_sets")
    for name in modules:
        monkeypatch.delitem(sys.modules, name, raising=False)
    tasks.load_modules(modules)


@pytest.mark.usefixtures("shipped_tasks")
def test_the_sample_mixture_prepares_every_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("samples", "samples_instructions", "samples_preferences")
    assert command.prepare(tasks=names, vocabulary="{samples}", stores=str(tmp_path), modules=(), workers=1) == 0
    printed = capsys.readouterr().out
    documents = 0
    for name in (task for mixture in names for task in tasks.MIXTURES[mixture]):
        store = open_store(tmp_path / name)
        verify_store(store.folder)
        assert store.manifest["quarantine"] == {}
        documents += sum(count["documents"] for count in store.manifest["counts"])
        trained = [batch.trained is not None for batch in store.batches("train")]
        assert all(trained) if category(store) != "texts" else not any(trained)
        assert store.pairs == (category(store) == "preference")
    files = [*SAMPLES.glob("??/*s.jsonl")]
    assert len(files) == 9
    assert documents == sum(path.read_text("utf-8").count("\n") for path in files) and f"{documents:,}" in printed
    weights = json.loads((tmp_path / "mixtures" / "samples.json").read_text())
    assert weights == {"mixture": "samples", "weights": tasks.MIXTURES["samples"]}
    command.prepare(tasks=names, vocabulary="{samples}", stores=str(tmp_path), modules=(), workers=1)
    assert capsys.readouterr().out.count("up to date") == 9


def category(store: Store) -> str:
    """What a sample store holds."""
    found = {category for _, category in store.groups}
    return found.pop() if len(found) == 1 else "texts"


@pytest.mark.usefixtures("shipped_tasks")
def test_every_shipped_mixture_names_tasks_and_every_source_its_origin() -> None:
    for name, weights in tasks.MIXTURES.items():
        assert weights.keys() <= tasks.TASKS.keys(), name
    for task in tasks.TASKS.values():
        for source in task.sources:
            assert source.licence and source.url and source.language and source.category


@pytest.mark.usefixtures("shipped_tasks")
def test_real_corpora_in_three_languages(tmp_path: Path, shared_data: Path) -> None:
    expected = {
        "pubmedqa_abstracts": (500, 828404),
        "case_and_radiology_reports": (341, 394578),
        "general_zh": (1357, 2677270),
    }
    making = Making(data_root=str(shared_data), shards=2)
    vocabulary, console = load_vocabulary(SAMPLE_VOCABULARY), Console(file=io.StringIO())
    found = [tasks.TASKS[name] for name in expected]
    manifests = prepare_stores(found, vocabulary, tmp_path, making, workers=1, console=console)
    for manifest, (documents, size) in zip(manifests, expected.values(), strict=True):
        assert sum(count["documents"] for count in manifest["counts"]) == documents
        assert sum(count["bytes"] for count in manifest["counts"]) == size
    assert duplicates_between([tmp_path / name for name in expected]) == 0


def test_the_real_gb18030_file_is_read_by_name_and_refused_without(tmp_path: Path, shared_data: Path) -> None:
    file = shared_data / "instructions" / "zh" / "internal_medicine_qa_gb18030.csv.gz"
    named = small.source(file, text="ask", id="none", encoding="gb18030", language="zh")
    store = prepare_store(tmp_path / "named", small.task("qa", named))
    assert sum(count["documents"] for count in store.manifest["counts"]) == 200
    with pytest.raises(UserError, match="is not utf-8") as caught:
        prepare_store(tmp_path / "bare", small.task("qa", small.source(file, text="ask")))
    assert 'encoding="gb18030"' in caught.value.mend


def prepare_store(folder: Path, task: Task) -> Store:
    vocabulary, console = load_vocabulary(SAMPLE_VOCABULARY), Console(file=io.StringIO())
    prepare_stores([task], vocabulary, folder, Making(), workers=1, console=console)
    return open_store(folder / task.name)


def test_a_terminal_shows_a_bar_with_the_time_left(tmp_path: Path) -> None:
    out = io.StringIO()
    path = small.write_rows(tmp_path / "a.jsonl", small.rows(30))
    console = Console(file=out, force_terminal=True, width=100)
    task = small.task("t", small.source(path))
    prepare_stores([task], load_vocabulary(SAMPLE_VOCABULARY), tmp_path, Making(shards=3), workers=1, console=console)
    assert "3/3" in out.getvalue() and "left" in out.getvalue() and "0:00:0" in out.getvalue()


def test_wrong_names_are_one_message(tmp_path: Path) -> None:
    for changes in (
        {"modules": ("no_such_module",)},
        {"tasks": ("nothing",)},
        {"tasks": ()},
        {"stores": "gs://bucket/stores"},
        {"vocabulary": str(tmp_path / "nothing")},
    ):
        settings = {"tasks": ("samples",), "vocabulary": "{samples}", "stores": str(tmp_path)} | changes
        with pytest.raises(UserError) as caught:
            command.prepare(**settings)  # type: ignore[arg-type]
        assert caught.value.mend
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("shipped_tasks")
def test_mmedbench_gives_two_examples_a_question() -> None:
    (form,) = tasks.TASKS["mmedbench_ja"].preprocessors
    record = {
        "question": "血圧を下げる生活習慣は？",
        "options": {"A": "減塩", "B": "喫煙", "C": "運動"},
        "answer_idx": ["A", "C"],
        "rationale": "減塩と運動は血圧を下げる。",
    }
    with_reason, alone = (made["turns"] for made in form(record))
    asked = "###Question: 血圧を下げる生活習慣は？ Which of the following is the best treatment for this patient? "
    asked += "###Options: A. 減塩 B. 喫煙 C. 運動 "
    assert with_reason[0].input == alone[0].input == asked
    assert with_reason[1].content == "###Rationale: 減塩と運動は血圧を下げる。\n###Answer: OPTION A,C IS CORRECT."
    assert alone[1].content == "###Answer: OPTION A,C IS CORRECT." and "Japanese doctor" in alone[0].content
    assert len(list(form({**record, "rationale": ""}))) == 1
    with pytest.raises(ValueError, match="answer outside the options"):
        list(form({**record, "answer_idx": "E"}))
