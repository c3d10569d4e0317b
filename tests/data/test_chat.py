"""Conversations as documents: what is trained, and what is refused."""

import io
from pathlib import Path

import pytest
import small_tasks as small
from rich.console import Console
from small_vocabularies import SAMPLE_VOCABULARY

from t_elaine.data.chat import plain_chat, question_and_answer
from t_elaine.data.identity import Making
from t_elaine.data.store import open_store
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.data.workers import prepare_stores


def test_chat_is_trained_on_answers_only(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "messages": [("system", "Be careful."), ("user", "発熱とは？"), ("assistant", "体温が高いこと。")]},
        {
            "id": "b",
            "messages": [("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2 "), ("user", "?")],
        },
    ]
    for row in rows:
        row["messages"] = [{"role": role, "content": content} for role, content in row["messages"]]
    path = small.write_rows(tmp_path / "a.jsonl", rows)
    task = small.task("t", small.source(path), preprocessors=(plain_chat,))
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    console = Console(file=io.StringIO())
    prepare_stores([task], vocabulary, tmp_path / "stores", Making(validation_share=0), workers=1, console=console)
    store = open_store(tmp_path / "stores" / "t")
    trained = {}
    for batch in store.batches("train"):
        for i, name in enumerate(batch.ids()):
            tokens = batch.tokens[batch.offsets[i] : batch.offsets[i + 1]]
            spans = batch.spans(i)
            assert spans is not None
            trained[name] = [vocabulary.decode(tokens[a:b]) for a, b in spans]
    eos = vocabulary.decode([vocabulary.eos])
    assert trained == {"a": ["体温が高いこと。" + eos], "b": ["1", "2"]}


def test_chat_refuses_what_it_cannot_train_on() -> None:
    assert (
        question_and_answer({"instruction": "a", "input": "b", "output": "c"})["text"] == "User: a\nb\n\nAssistant: c"
    )
    for messages in ([], None, "x", [{"role": "robot", "content": "x"}], [{"role": "user", "content": " "}], [{}]):
        with pytest.raises(ValueError):
            plain_chat({"messages": messages})
    with pytest.raises(ValueError, match="no field 'output'"):
        question_and_answer({"instruction": "a"})
