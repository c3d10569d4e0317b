"""prepare: a store holds the reference ids of every good document, whoever made it, and is never taken for another."""

import errno
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_tasks as small
from rich.console import Console
from small_vocabularies import SAMPLE_VOCABULARY, train_byte_level

from t_elaine.data import aside
from t_elaine.data.identity import Making
from t_elaine.data.store import Store, open_store, verify_store
from t_elaine.data.texts import Task
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.data.workers import prepare_named, prepare_stores, report
from t_elaine.errors import UserError

MAKING = Making(validation_share=0.2, shards=3)


def prepare(folder: Path, task: Task, making: Making = MAKING, workers: int = 1, **more: Any) -> tuple[Store, str]:
    out = io.StringIO()
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    console = Console(file=out, width=80)
    manifests = prepare_stores([task], vocabulary, folder, making, workers=workers, console=console, **more)
    report(manifests, console, folder)
    return open_store(folder / task.name), out.getvalue()


def documents(store: Store, *splits: str) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for split in splits or ("train", "validation"):
        for batch in store.batches(split):
            pieces = np.split(batch.tokens, batch.offsets[1:-1])
            found |= dict(zip(batch.ids(), pieces, strict=True))
    return found


def files(folder: Path) -> dict[str, bytes]:
    kept = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "sources.json"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in kept}


def two_languages(folder: Path, count: int = 60) -> Task:
    english = small.write_rows(folder / "en.jsonl", small.rows(count))
    japanese = small.write_rows(folder / "ja.jsonl", small.rows(count, "ja"))
    return small.task(
        "both",
        small.source(english, "english"),
        small.source(japanese, "japanese", language="ja", category="guideline"),
    )


def test_the_store_holds_framed_reference_ids(tmp_path: Path) -> None:
    store, printed = prepare(tmp_path / "stores", two_languages(tmp_path))
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    expected = {row["id"]: row["text"] for row in [*small.rows(60), *small.rows(60, "ja")]}
    found = documents(store)
    assert found.keys() == expected.keys()
    for name, tokens in found.items():
        assert tokens.tolist() == [vocabulary.bos, *vocabulary.encode(expected[name]).tolist(), vocabulary.eos]
    assert store.groups == [("en", "textbook"), ("ja", "guideline")]
    assert len(store.files("train")) == 3 and len(store.files("validation")) == 1
    batch = store.batches("train")[0]
    assert batch.trained is None and batch.bytes.tolist() == [len(expected[i].encode()) for i in batch.ids()]
    assert "bytes/token" in printed and max(map(len, printed.split("\n"))) <= 80
    verify_store(store.folder)


def test_counts_are_those_of_the_files(tmp_path: Path) -> None:
    store, _ = prepare(tmp_path / "stores", two_languages(tmp_path))
    found = documents(store)
    counts = store.manifest["counts"]
    assert sum(c["documents"] for c in counts) == len(found) == 120
    assert sum(c["tokens"] for c in counts) == sum(map(len, found.values()))
    english = sum(c["bytes"] for c in counts if c["language"] == "en")
    assert english == sum(len(row["text"]) for row in small.rows(60))


def test_no_text_is_in_both_splits_and_the_share_is_kept(tmp_path: Path) -> None:
    task = small.task("t", small.source(small.write_rows(tmp_path / "a.jsonl", small.rows(2000))))
    store, _ = prepare(tmp_path / "stores", task)
    train = np.concatenate([b.text_hash for b in store.batches("train")])
    validation = np.concatenate([b.text_hash for b in store.batches("validation")])
    assert not np.isin(validation, train).any() and 300 < len(validation) < 500
    # The split is by text: another task puts the same text on the same side.
    other, _ = prepare(tmp_path / "stores", small.task("u", *task.sources), Making(validation_share=0.2))
    assert documents(other, "validation").keys() == documents(store, "validation").keys()


def test_workers_make_the_same_files_and_import_no_jax(tmp_path: Path) -> None:
    task = two_languages(tmp_path)
    prepare(tmp_path / "one", task, workers=1)
    prepare(tmp_path / "two", task, workers=2)
    assert files(tmp_path / "one" / "both") == files(tmp_path / "two" / "both")
    named = small.task("named", *task.sources, preprocessors=(small.name_modules,))
    store, _ = prepare(tmp_path / "two", named, workers=2)
    texts = {load_vocabulary(SAMPLE_VOCABULARY).decode(tokens[1:-1]) for tokens in documents(store).values()}
    assert texts == {"modules:"}


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    task = two_languages(tmp_path)
    store, _ = prepare(tmp_path / "stores", task)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in Path(store.folder).rglob("*")}
    _, printed = prepare(tmp_path / "stores", task)
    assert "up to date" in printed
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in Path(store.folder).rglob("*")}
    assert sorted(p.name for p in (tmp_path / "stores").iterdir()) == ["both"]


def test_sources_may_move(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        small.write_rows(tmp_path / name / "a.jsonl", small.rows(20))
    task = small.task("t", small.source("{data_root}/a.jsonl"))
    prepare(tmp_path / "stores", task, Making(data_root=str(tmp_path / "here")))
    _, printed = prepare(tmp_path / "stores", task, Making(data_root=str(tmp_path / "there")))
    assert "up to date" in printed


@pytest.mark.parametrize("change", ["text", "framing", "share", "preprocessor", "field", "vocabulary", "licence"])
def test_a_store_of_another_making_is_refused_with_the_difference(tmp_path: Path, change: str) -> None:
    path = small.write_rows(tmp_path / "a.jsonl", small.rows(20))
    task, making = small.task("t", small.source(path), preprocessors=(small.shout,)), Making()
    store, _ = prepare(tmp_path / "stores", task, making)
    old = files(Path(store.folder))
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    if change == "text":
        small.write_rows(path, small.rows(20, start=1))
    elif change == "framing":
        making = Making(before=())
    elif change == "share":
        making = Making(validation_share=0.5)
    elif change == "preprocessor":
        task = small.task("t", *task.sources, preprocessors=(small.whisper,))
    elif change == "field":
        task = small.task("t", small.source(path, text="body"), preprocessors=(small.shout,))
    elif change == "licence":
        task = small.task("t", small.source(path, licence="MIT"), preprocessors=(small.shout,))
    else:
        vocabulary = load_vocabulary(train_byte_level(tmp_path / "v", "gpt2"))
    with pytest.raises(UserError, match="made from something else") as caught:
        prepare_stores([task], vocabulary, tmp_path / "stores", making, workers=1, console=Console(file=io.StringIO()))
    assert "→" in caught.value.what and "--overwrite" in caught.value.mend
    assert files(Path(store.folder)) == old
    if change not in ("field", "vocabulary"):
        again, _ = prepare(tmp_path / "stores", task, making, overwrite=True)
        assert files(Path(again.folder))["manifest.json"] != old["manifest.json"]
        verify_store(again.folder)


def test_malformed_records_are_in_the_quarantine(tmp_path: Path) -> None:
    bad = {4: "{", 9: '{"id": "x"}', 50: '{"text": ""}', 57: '{"text": "' + "long " * 100}
    path = small.write_rows(tmp_path / "a.jsonl", small.rows(60), bad)
    task = small.task("t", small.source(path), preprocessors=(small.refuse_third,))
    store, printed = prepare(tmp_path / "stores", task, Making(shards=4, max_rejected_share=0.2))
    entries = [json.loads(line) for line in (Path(store.folder) / "quarantine.jsonl").read_text().split("\n") if line]
    lines = sorted(4 + i for i in (0, 10, 20, 30, 40) if i + 3 < 60)
    assert sorted(e["line"] for e in entries) == sorted([i + 1 for i in bad] + [*lines, 54])
    assert all(e["file"] == str(path) and e["reason"] and len(e["shown"]) <= 200 for e in entries)
    assert sum(store.manifest["quarantine"].values()) == len(entries) == 10
    assert f"t: 10 records set aside, in {store.folder}/quarantine.jsonl:" in printed and len(documents(store)) == 50
    assert f"  6 × a third one, such as {path}:4\n" in printed and f"1 × empty text, such as {path}:51\n" in printed


def test_private_sources_show_no_text(tmp_path: Path) -> None:
    secret = '{"id": "x", "body": "Taro Yamada, born 1950"}'
    path = small.write_rows(tmp_path / "a.jsonl", small.rows(60), {7: secret, 8: "Taro Yamada"})
    store, _ = prepare(
        tmp_path / "stores", small.task("t", small.source(path, private=True)), Making(max_rejected_share=1)
    )
    content = (Path(store.folder) / "quarantine.jsonl").read_text()
    assert "Taro" not in content and content.count('"hash"') == content.count('"length"') == 2


def test_too_many_malformed_records_stop_the_run(tmp_path: Path) -> None:
    path = small.write_rows(tmp_path / "a.jsonl", small.rows(60), {i: "{" for i in range(6)})
    task = small.task("t", small.source(path))
    with pytest.raises(UserError, match=r"(?s)6 of 60 .*10\.0%.*6 × bad JSON, such as .*a\.jsonl:1 \(") as caught:
        prepare(tmp_path / "stores", task, Making(shards=2, max_rejected_share=0.05))
    assert not (tmp_path / "stores" / "t").exists()
    kept = tmp_path / "stores" / "t.quarantine.jsonl"  # the store in the making lies hidden
    assert caught.value.where == str(kept)
    assert [json.loads(line)["line"] for line in kept.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    store, printed = prepare(tmp_path / "stores", task, Making(shards=2, max_rejected_share=0.1))
    assert len(documents(store)) == 54 and "resumed: 2 of 2" in printed and not kept.exists()


def test_a_run_that_stops_early_names_a_file_that_stays(tmp_path: Path) -> None:
    path = small.write_rows(tmp_path / "a.jsonl", small.rows(2200), {i: "{" for i in range(0, 2200, 9)})
    with pytest.raises(UserError) as caught:
        prepare(tmp_path / "stores", small.task("t", small.source(path)), Making(shards=2), workers=2)
    entries = [json.loads(line) for line in Path(caught.value.where).read_text().splitlines()]
    assert Path(caught.value.where) == tmp_path / "stores" / "t.quarantine.jsonl"
    assert f"{len(entries)} × bad JSON" in caught.value.what


def test_many_reasons_are_the_few_most_frequent_and_the_number_of_the_others(tmp_path: Path) -> None:
    tally: Counter[str] = Counter()
    for i in range(100):
        aside.count(tally, f"preprocessor: ValueError: page {i // 10 if i < 50 else i} is odd: {i}", False)
        aside.count(tally, f"preprocessor: ValueError: secret {i}", True)
    assert len(tally) == aside.KINDS + 1 and tally.total() == 200
    assert tally["preprocessor"] == 100 and tally["page 0 is odd"] == 10 and tally[aside.OTHERS] > 0
    (tmp_path / "q").write_text(json.dumps({"file": "f", "line": 3, "reason": "preprocessor: ValueError: secret"}))
    lines = aside.told(tally, [tmp_path / "q"])
    assert len(lines) == aside.TOLD + 1 and lines[0] == "100 × preprocessor, such as f:3 (ValueError: secret)"
    assert lines[-1].endswith(f"for {len(tally) - aside.TOLD} more reasons")
    assert aside.kept(UserError("x", str(tmp_path / "q")), tmp_path, tmp_path / "t").where == str(tmp_path / "q")


def test_what_a_preprocessor_says_is_told_when_it_stops_the_run(tmp_path: Path) -> None:
    path = small.write_rows(tmp_path / "a.jsonl", small.rows(60))
    task = small.task("t", small.source(path), preprocessors=(small.refuse_all,))
    with pytest.raises(UserError, match=r"60 × no page number, such as .*a\.jsonl:1\n"):
        prepare(tmp_path / "stores", task, Making(shards=2))


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_mistake_in_a_preprocessor_stops_the_run(tmp_path: Path, shards: int, private: bool) -> None:
    path = small.write_rows(tmp_path / "a.jsonl", small.rows(60))
    task = small.task("t", small.source(path, private=private), preprocessors=(small.shout, small.stumble))
    with pytest.raises(UserError) as caught:
        prepare(tmp_path / "stores", task, Making(shards=shards, max_rejected_share=1))
    assert "small_tasks.stumble failed with KeyError" in caught.value.what
    assert ("'boddy'" in caught.value.what) is not private, "an exception's text may hold text of the record"
    assert f"small_tasks.py:{small.stumble.__code__.co_firstlineno + 1})" in caught.value.what
    assert caught.value.where == f"{path}:8" and not (tmp_path / "stores" / "t").exists()
    wrong = small.task("t", small.source(path), preprocessors=(small.give_text,))
    with pytest.raises(UserError, match="it gave str, which is neither fields"):
        prepare(tmp_path / "stores", wrong, Making(shards=shards), overwrite=True)


def test_bytes_are_those_of_the_text_as_it_is_tokenised(tmp_path: Path) -> None:
    """Line ends of plain text become one character, and so they are counted."""
    (tmp_path / "a.txt").write_bytes("発熱\r\n咳嗽\r\n".encode())
    task = small.task("t", small.source(tmp_path / "a.txt"))
    store, _ = prepare(tmp_path / "stores", task, Making(validation_share=0))
    (tokens,) = documents(store).values()
    batch = store.batches("train")[0]
    assert load_vocabulary(SAMPLE_VOCABULARY).decode(tokens[1:-1]) == "発熱\n咳嗽\n"
    assert batch.bytes.tolist() == [len("発熱\n咳嗽\n".encode())]


def test_a_share_that_holds_no_text_out_is_told(tmp_path: Path) -> None:
    task = two_languages(tmp_path, 5)
    _, printed = prepare(tmp_path / "few", task, Making(validation_share=0.001))
    told = " ".join(printed.split())
    assert "warning: validation_share 0.001 held out no text in en (5 documents), ja (5 documents)" in told
    assert "warning" not in prepare(tmp_path / "none", task, Making(validation_share=0))[1]
    assert "warning" not in prepare(tmp_path / "some", task, Making(validation_share=0.9))[1]


@pytest.mark.parametrize("changes", [{"shards": -3}, {"validation_share": 1.5}, {"max_rejected_share": -0.1}])
def test_settings_without_sense_are_refused(tmp_path: Path, changes: dict[str, float]) -> None:
    task = small.task("t", small.source(small.write_rows(tmp_path / "a.jsonl", small.rows(5))))
    with pytest.raises(UserError) as caught:
        prepare(tmp_path / "stores", task, Making(**changes))  # type: ignore[arg-type]
    assert next(iter(changes)) in caught.value.where


def test_fewer_than_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workers is -3"):
        prepare_named(["t"], None, str(tmp_path), Making(), workers=-3)  # type: ignore[arg-type]


def test_fewer_than_no_documents_to_show_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="show is -1") as caught:
        prepare_named(["t"], None, str(tmp_path), Making(), show=-1)  # type: ignore[arg-type]
    assert caught.value.where == "prepare.show"


def test_duplicates_are_counted_and_dropped_by_option(tmp_path: Path) -> None:
    first = small.write_rows(tmp_path / "a.jsonl", [*small.rows(30), *small.rows(5)])
    second = small.write_rows(tmp_path / "b.jsonl", [{**row, "id": "again" + row["id"]} for row in small.rows(40)])
    task = small.task("t", small.source(first, "a"), small.source(second, "b"))
    store, printed = prepare(tmp_path / "kept", task)
    assert store.manifest["duplicates"] == {"texts": 35, "dropped": False} and "35 repeated texts" in printed
    dropped, _ = prepare(tmp_path / "dropped", task, Making(validation_share=0.2, shards=3, drop_duplicates=True))
    assert dropped.manifest["duplicates"] == {"texts": 35, "dropped": True}
    expected = {f"en{i}" for i in range(30)} | {f"againen{i}" for i in range(30, 40)}
    assert documents(dropped).keys() == expected
    assert sum(c["documents"] for c in dropped.manifest["counts"]) == 40
    verify_store(dropped.folder)


def test_a_full_disk_is_one_message_and_the_old_store_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = two_languages(tmp_path)
    store, _ = prepare(tmp_path / "stores", task)
    old = files(Path(store.folder))
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        prepare(tmp_path / "stores", task, Making(shards=4), overwrite=True)
    assert len(calls) > 6 and files(Path(store.folder)) == old
    monkeypatch.undo()
    again, printed = prepare(tmp_path / "stores", task, Making(shards=4), overwrite=True)
    assert "resumed" in printed and len(again.files("train")) == 4
    assert not list((tmp_path / "stores").glob(".*"))


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    import fcntl

    task = two_languages(tmp_path)
    (tmp_path / "stores").mkdir()
    with open(tmp_path / "stores" / ".both.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another prepare"):
            prepare(tmp_path / "stores", task)
    prepare(tmp_path / "stores", task)


@pytest.mark.parametrize("damage", ["truncated", "no licence", "no document", "unknown token"])
def test_mistakes_are_one_message(tmp_path: Path, damage: str) -> None:
    path = small.write_rows(tmp_path / "a.jsonl", small.rows(10))
    task, making = small.task("t", small.source(path)), Making()
    if damage == "truncated":
        import gzip

        broken = tmp_path / "b.jsonl.gz"
        broken.write_bytes(gzip.compress(path.read_bytes())[:-20])
        task = small.task("t", small.source(broken))
    elif damage == "no licence":
        task = small.task("t", small.source(path, licence=""))
    elif damage == "no document":
        path.write_text("")
    else:
        making = Making(before=("<|nothing|>",))
    with pytest.raises(UserError) as caught:
        prepare(tmp_path / "stores", task, making)
    assert caught.value.mend
    assert not (tmp_path / "stores" / "t").exists()
