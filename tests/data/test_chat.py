"""Conversations: the forms they come in, what is refused, and what of them a store holds as trained."""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import small_tasks as small
from rich.console import Console
from small_vocabularies import SAMPLE_VOCABULARY, train_byte_level

from t_elaine import feeding
from t_elaine.data import chat_forms, showing
from t_elaine.data.chat import Turn, check
from t_elaine.data.chat_choice import recorded
from t_elaine.data.identity import Making
from t_elaine.data.mixture import Mixture
from t_elaine.data.store import open_store
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.data.workers import prepare_stores
from t_elaine.errors import UserError

S, U, A = (partial(Turn, role) for role in ("system", "user", "assistant"))
quiet = Console(file=io.StringIO())


def say(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    ("form", "fields", "turns"),
    [
        (chat_forms.alpaca, {"instruction": "a", "input": "b", "output": "c"}, (U("a", "b"), A("c"))),
        (chat_forms.alpaca, {"instruction": " a\n", "output": "c"}, (U("a"), A("c"))),
        (chat_forms.alpaca, {"instruction": "", "input": "b", "output": "c"}, (U("b"), A("c"))),
        (
            chat_forms.alpaca,
            {"instruction": "e", "input": "", "output": "f", "history": [["a", "b"], ["c", "d"]], "system": "s"},
            (S("s"), U("a"), A("b"), U("c"), A("d"), U("e"), A("f")),
        ),
        (
            chat_forms.sharegpt,
            {"conversations": [{"from": "human", "value": "熱"}, {"from": "gpt", "value": "体温"}]},
            (U("熱"), A("体温")),
        ),
        (
            chat_forms.openai_messages,
            {
                "messages": [
                    *say(("system", "s")),
                    {"role": "user", "content": [{"type": "text", "text": "a"}]},
                    *say(("assistant", "b")),
                ]
            },
            (S("s"), U("a"), A("b")),
        ),
        (
            partial(chat_forms.openai_messages, cut_open_end=True),
            {"messages": say(("user", "a"), ("assistant", "b"), ("user", "c"))},
            (U("a"), A("b")),
        ),
        (
            partial(chat_forms.columns, user=("title", "ask"), assistant="answer"),
            {"title": "t", "ask": "q", "answer": "a"},
            (U("t\nq"), A("a")),
        ),
        (
            partial(chat_forms.columns, user=("title", "ask"), assistant="answer", instruction="i"),
            {"title": "t", "ask": "t", "answer": "a"},
            (U("i", "t"), A("a")),
        ),
        (
            chat_forms.marked,
            {"instruction": " <user>: 甲？ <bot>: 乙。 <user>: 丙？", "output": "丁。"},
            (U("甲？"), A("乙。"), U("丙？"), A("丁。")),
        ),
        (chat_forms.marked, {"instruction": "甲？", "output": "丁。"}, (U("甲？"), A("丁。"))),
    ],
)
def test_forms_become_turns(form: Any, fields: dict[str, Any], turns: tuple[Turn, ...]) -> None:
    assert form(fields)["turns"] == turns


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ((), "without turns"),
        ((U("a"), A(" ")), "empty turn: 2 of 2, of the assistant"),
        ((U("a"), U("b"), A("c")), "two turns of the user in a row: 1 and 2"),
        ((S("s"), U("a"), A("b"), A("c")), "two turns of the assistant in a row: 3 and 4"),
        ((A("a"), U("b"), A("c")), "the assistant speaks first"),
        ((U("a"), A("b"), U("c")), "ends on a user's turn"),
        ((U("a"), Turn("robot", "b")), "unknown role: 'robot' in turn 2"),
        ((U("a"), S("s"), A("b")), "a system turn that is not the first: 2 of 3"),
        ((S("s"),), "without a user's turn"),
    ],
)
def test_conversations_that_nobody_can_learn_from_are_refused(turns: tuple[Turn, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check(turns)


@pytest.mark.parametrize(
    ("form", "fields", "told"),
    [
        (chat_forms.openai_messages, {"messages": "x"}, "no list of messages: field 'messages'"),
        (chat_forms.openai_messages, {"messages": [{"role": "user"}]}, "without role or content: turn 1"),
        (
            chat_forms.openai_messages,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "not text alone",
        ),
        (chat_forms.sharegpt, {"conversations": [{"from": "human", "value": 3}]}, "no text: 'value' is int"),
        (chat_forms.alpaca, {"instruction": "a"}, "missing field: 'output'"),
        (chat_forms.alpaca, {"instruction": "a", "output": "b", "history": ["x"]}, "no list of pairs"),
        (chat_forms.marked, {"instruction": "x <user>: a", "output": "b"}, "text before the first mark"),
    ],
)
def test_records_of_another_form_are_refused(form: Any, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        form(fields)


def prepared(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    template: str = "plain",
    vocabulary: Path = SAMPLE_VOCABULARY,
    **making: Any,
) -> Path:
    tmp_path.mkdir(exist_ok=True)
    path = small.write_rows(tmp_path / "a.jsonl", rows)
    task = small.task("t", small.source(path), preprocessors=(chat_forms.openai_messages,))
    made = Making(validation_share=0, template=template, **making)
    prepare_stores([task], load_vocabulary(vocabulary), tmp_path / "stores", made, workers=1, console=quiet)
    return tmp_path / "stores" / "t"


ROWS = [
    {"id": "a", "messages": say(("system", "Be careful."), ("user", "発熱とは？"), ("assistant", "体温が高いこと。"))},
    {"id": "b", "messages": say(("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2 "))},
]


def test_a_store_is_trained_on_answers_and_their_ends_alone(tmp_path: Path) -> None:
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    store = open_store(prepared(tmp_path, ROWS))
    trained, whole = {}, {}
    for batch in store.batches("train"):
        for i, name in enumerate(batch.ids()):
            tokens = batch.tokens[batch.offsets[i] : batch.offsets[i + 1]]
            spans = batch.spans(i)
            assert spans is not None
            whole[name] = vocabulary.decode(tokens)
            trained[name] = [vocabulary.decode(tokens[a:b]) for a, b in spans]
    bos, eos = (vocabulary.decode([i]) for i in (vocabulary.bos, vocabulary.eos))
    assert trained == {"a": ["体温が高いこと。" + eos], "b": ["1" + eos, "2" + eos]}
    assert whole["a"] == f"{bos}System: Be careful.\n\nUser: 発熱とは？\n\nAssistant: 体温が高いこと。{eos}"
    assert store.manifest["made_by"]["template"]["name"] == "plain"
    console = Console(file=io.StringIO(), width=80)
    showing.show(str(store.folder), 1, console)
    assert f"⟦体温が高いこと。{eos}⟧" in console.file.getvalue()


def test_a_template_of_a_file_is_kept_with_the_store_and_found_again(tmp_path: Path) -> None:
    folder, file = train_byte_level(tmp_path / "v", "gpt2"), tmp_path / "mine.jinja"
    source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|endoftext|>{% endfor %}"
    file.write_text(source, encoding="utf-8")
    store = prepared(tmp_path, ROWS, str(file), folder)
    kept = feeding.data_record(Mixture(stores=(str(store),), sequence_length=8, batch_tokens=8))["t"]["template"]
    assert kept["name"] == "mine.jinja" and kept["source"] == source
    file.unlink()
    again = recorded(kept, load_vocabulary(store / "vocabulary"))
    assert (again.source, again.sha256, again.name) == (source, kept["sha256"], "mine.jinja")
    with pytest.raises(UserError, match=r"no more than the name of the template mine\.jinja"):
        recorded({"name": "mine.jinja", "sha256": ""}, load_vocabulary(folder))
    named = prepared(tmp_path / "named", ROWS, "plain", folder)
    kept = feeding.data_record(Mixture(stores=(str(named),), sequence_length=8, batch_tokens=8))["t"]["template"]
    assert set(kept) == {"name", "sha256"} and recorded(kept, load_vocabulary(folder)).sha256 == kept["sha256"]


@pytest.mark.parametrize("source", ["", "{% for m in %}", "{{ 1 / 0 }}", "{{ messages[0].content }}"])
def test_a_bad_template_leaves_nothing_beside_the_stores(tmp_path: Path, source: str) -> None:
    folder, file = train_byte_level(tmp_path / "v", "gpt2"), tmp_path / "mine.jinja"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, ROWS, str(file), folder)
    assert caught.value.where.startswith(str(file))
    assert not list((tmp_path / "stores").iterdir())


def test_reasons_of_refused_conversations_are_counted_apart(tmp_path: Path) -> None:
    bad = [
        {"id": "c", "messages": say(("user", "One?"))},
        {"id": "d", "messages": say(("user", "One?"), ("user", "Two?"), ("assistant", "x"))},
        {"id": "e", "messages": say(("user", "One?"))},
    ]
    store = open_store(prepared(tmp_path, [*ROWS, *bad], max_rejected_share=0.9))
    assert store.manifest["quarantine"] == {"it ends on a user's turn": 2, "two turns of the user in a row": 1}


def test_bad_conversations_go_aside_with_file_and_line(tmp_path: Path) -> None:
    bad = [
        {"id": "c", "messages": say(("user", "One?"))},
        {"id": "d", "messages": say(("user", "##User##"), ("assistant", "x"))},
    ]
    folder = prepared(tmp_path, [*ROWS, *bad], max_rejected_share=0.9)
    aside = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert [(entry["line"], "ends on a user's turn" in entry["reason"]) for entry in aside] == [(3, True)]
    with pytest.raises(UserError, match=r"made otherwise|another|differ"):
        prepared(tmp_path, [*ROWS, *bad], template="alpaca", max_rejected_share=0.9)


def test_what_a_template_has_no_place_for_is_counted(tmp_path: Path) -> None:
    store = open_store(prepared(tmp_path, ROWS, template="mmedlm", max_rejected_share=0.9))
    assert store.manifest["system_turns_left_out"] == 1
    assert store.manifest["quarantine"] == {"the template 'mmedlm' has one question and one answer": 1}
