"""An export carries the chat template of its training: transformers gives the ids that were trained and asked with."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from t_elaine import export, learnt
from t_elaine.data import chat_tokens
from t_elaine.data.chat import Turn
from t_elaine.data.chat_choice import choose
from t_elaine.data.hf_files import hf_files
from t_elaine.data.vocabulary import Vocabulary, load_vocabulary, save_vocabulary
from t_elaine.generation import templates
from t_elaine.generation.manners import read_manners
from t_elaine.hf import chat_files
from t_elaine.hf.card_rules import Card
from tests.evaluation.making import make_run, make_vocabulary

pytest.importorskip("transformers", reason="transformers is not installed")

U, A, S = ("user", "assistant", "system")
TALKS = {
    "en": ((U, "How high is hypertension?"), (A, "140/90 and more.\n"), (U, "Since when?")),
    "ja": ((U, "高血圧は？\n"), (A, "  収縮期140以上。"), (U, "いつから？")),
    "zh": ((U, "高血压是多少？"), (A, "收缩压≥140 mmHg。"), (U, "什么时候？")),
}
MINE = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


def messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def trained_run(folder: Path, vocabulary: Vocabulary, *records: dict[str, Any], weights: bool = True) -> Path:
    """A run that remembers stores which were written with these templates; real tokenizers need no weights here."""
    run = make_run(folder, vocabulary) if weights else folder
    save_vocabulary(vocabulary, folder / "vocabulary")
    data = {f"chats_{i}": {"template": record} for i, record in enumerate(records)}
    (run / "data.json").write_text(json.dumps({"a_text": {"framing": {"ids": [[], []]}}, **data}), encoding="utf-8")
    return run


def exported(run: Path, out: Path) -> dict[str, Any]:
    """What an export does with the tokenizer's files alone, and what it proves of them."""
    vocabulary, found = load_vocabulary(run), learnt.chat_template(str(run), load_vocabulary(run))
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "llama"}')
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": vocabulary.eos}))
    for name, path in vocabulary.files().items():
        shutil.copyfile(path, out / name)
    before = [] if vocabulary.bos is None else [vocabulary.bos]
    for name, text in hf_files(vocabulary, list(vocabulary.files()), before).items():
        (out / name).write_text(text, encoding="utf-8")
    assert found is not None
    chat_files.write(out, found)
    return chat_files.compare(out, found)


def record(name: str, vocabulary: Vocabulary, **more: str) -> dict[str, Any]:
    return {"name": Path(name).name, "sha256": choose(name, vocabulary).sha256, **more}


def load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def written(run: Path, name: str = "") -> Callable[[Sequence[tuple[str, str]]], list[int]]:
    """turns → the ids of a store, by the template that a task was prepared with."""
    vocabulary = load_vocabulary(run)
    template = choose(name, vocabulary)

    def ids(turns: Sequence[tuple[str, str]]) -> list[int]:
        parts = template.write([Turn(*turn) for turn in turns], False)
        return next(chat_tokens.encode([parts], vocabulary, template.apart))[0].tolist()

    return ids


def asked(run: Path) -> Callable[[Sequence[tuple[str, str]]], list[int]]:
    """turns → the ids that `generate` asks with, nothing being said of a template."""
    vocabulary = load_vocabulary(run)
    manners = read_manners([str(run / "vocabulary"), str(run / "parent"), str(run)], vocabulary)
    _, template = templates.choose("", vocabulary, manners)
    return lambda turns: template(messages(turns)).tolist()


def check_same_ids(run: Path, out: Path, name: str, talks: dict[str, Any] = TALKS) -> None:
    theirs, store, prompt = load(out), written(run, name), asked(run)
    for turns in talks.values():
        whole = turns[:2]
        assert theirs.apply_chat_template(messages(whole), tokenize=True, return_dict=False) == store(whole)
        for question in (turns, turns[:1], ((S, "Be brief."), *turns)):
            found = theirs.apply_chat_template(
                messages(question), add_generation_prompt=True, tokenize=True, return_dict=False
            )
            assert found == prompt(question)


@pytest.mark.parametrize("name", ["elaine", "llama3"])
def test_llama3s_tokenizer(tmp_path: Path, llama3_tokenizer: Path, name: str) -> None:
    vocabulary = load_vocabulary(llama3_tokenizer)
    run, out = trained_run(tmp_path / "run", vocabulary, record(name, vocabulary), weights=False), tmp_path / "out"
    found = exported(run, out)
    assert found["passed"] and found["name"] == name and found["conversations"] == len([*chat_files.conversations()])
    check_same_ids(run, out, name)
    # Llama 3's base ends at another token than its turns do: a generation must end at both.
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [128001, 128009]


@pytest.mark.parametrize("name", ["chatml", "qwen2", "chat"])
def test_smollm2s_tokenizer(tmp_path: Path, smollm2_dir: Path, name: str) -> None:
    vocabulary = load_vocabulary(smollm2_dir)
    run, out = trained_run(tmp_path / "run", vocabulary, record(name, vocabulary), weights=False), tmp_path / "out"
    assert exported(run, out)["passed"]
    check_same_ids(run, out, name)
    brought = (smollm2_dir / "chat_template.jinja").read_text()
    assert ((out / "chat_template.jinja").read_text() == brought) is (name == "chat")
    again = load_vocabulary(out)  # and our own commands read the export as the run
    assert asked(out)(TALKS["ja"]) == asked(run)(TALKS["ja"]) and again.sha256 == vocabulary.sha256


def test_ids_that_jinja_cannot_give_are_told(tmp_path: Path, smollm2_dir: Path) -> None:
    """The text is the trained one all the same, a second question is refused as in training, an input has its place."""
    vocabulary = load_vocabulary(smollm2_dir)
    run, out = trained_run(tmp_path / "run", vocabulary, record("alpaca", vocabulary), weights=False), tmp_path / "out"
    found = exported(run, out)
    longer = sum(len(turns) > 3 for turns in chat_files.conversations())
    assert not found["passed"] and not found["error"] and longer
    assert 0 < found["differing"] <= found["conversations"] < len([*chat_files.conversations()]) - longer
    ours, told = found["example"]
    assert ours[0] == told[0] and ours[1] != told[1]
    assert "the text of training, but OTHER IDS" in chat_files.summary(found)
    theirs, store = load(out), written(run, "alpaca")
    for turns in TALKS.values():
        text = theirs.apply_chat_template(messages(turns[:2]), tokenize=False)
        assert text == vocabulary.decode(store(turns[:2]))
        with pytest.raises(Exception, match="one question and one answer"):
            theirs.apply_chat_template(messages(turns), add_generation_prompt=True, tokenize=False)
    again = asked(out)  # our own commands know the export's Jinja again: theirs are the ids of training
    for turns in TALKS.values():
        assert again(turns[:1]) == asked(run)(turns[:1])
    assert choose("", load_vocabulary(out)).name == choose("chat", load_vocabulary(out)).name == "alpaca"
    with_input = [{"role": U, "content": "Translate.", "input": "高血圧"}]
    assert "### Input:\n高血圧\n\n### Response:" in theirs.apply_chat_template(
        with_input, add_generation_prompt=True, tokenize=False
    )


def test_a_file_of_ones_own(tmp_path: Path, capsys: Any) -> None:
    vocabulary, file = make_vocabulary(tmp_path / "vocabulary"), tmp_path / "mine.jinja"
    file.write_text(MINE, encoding="utf-8")
    kept = record(str(file), vocabulary, source=MINE)
    run, out = trained_run(tmp_path / "run", vocabulary, kept), tmp_path / "out"
    export.export(str(run), str(out), card=Card(draft=True))
    for name in ("README.md", "README.ja.md", "README.zh.md"):
        assert "Chat template mine.jinja, in chat_template.jinja: the ids of training" in (out / name).read_text()
    assert (out / "chat_template.jinja").read_text() == MINE
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == MINE
    assert json.loads((out / "proof.json").read_text())["chat_template"]["passed"]
    check_same_ids(run, out, str(file))
    told = capsys.readouterr().out
    assert "chat template mine.jinja, in chat_template.jinja: the ids of training" in told and "warning" not in told
    run = trained_run(tmp_path / "older", vocabulary, {"name": "mine.jinja", "sha256": kept["sha256"]})
    export.export(str(run), str(tmp_path / "without"))
    told = " ".join(capsys.readouterr().out.split())
    assert "the stores have kept no more than the name of the template mine.jinja" in told
    assert not (tmp_path / "without" / "chat_template.jinja").exists()


def test_a_run_without_conversations_carries_what_its_tokenizer_had(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(tmp_path / "vocabulary")
    (tmp_path / "vocabulary" / "chat_template.jinja").write_text(MINE)
    run, out = trained_run(tmp_path / "run", vocabulary), tmp_path / "out"
    export.export(str(run), str(out))
    assert (out / "chat_template.jinja").read_text() == MINE
    assert "chat_template" not in json.loads((out / "proof.json").read_text())


def test_several_templates_and_a_changed_one_are_told(tmp_path: Path, capsys: Any) -> None:
    vocabulary = make_vocabulary(tmp_path / "vocabulary")
    changed = {"name": "plain", "sha256": "0" * 64}
    run = trained_run(tmp_path / "run", vocabulary, changed, record("huatuo2", vocabulary))
    export.export(str(run), str(tmp_path / "out"))
    told = capsys.readouterr().out
    assert "conversations of several templates (plain, huatuo2): plain goes along" in told
    assert "the chat template plain is another one now" in told
    assert "Assistant: " in (tmp_path / "out" / "chat_template.jinja").read_text()


def test_what_the_parent_brought_gives_way(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "old"}, {"name": "tool_use", "template": "older"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": named}))
    (tmp_path / "chat_template.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": 2}))
    new = chat_files.ChatTemplate(name="x", source="new", end_ids=(5,), ids=lambda messages, go_on: [])
    chat_files.write(tmp_path, new)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config == {"eos_token": "</s>", "chat_template": "new"}
    ends = json.loads((tmp_path / "generation_config.json").read_text())
    assert ends == {"temperature": 0.6, "eos_token_id": [2, 5]} and not (tmp_path / "chat_template.json").exists()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    chat_files.write(tmp_path, chat_files.ChatTemplate(name="chat", source="old", end_ids=(2,), ids=new.ids))
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == named


def test_a_template_that_transformers_cannot_use_is_told(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(tmp_path)
    broken = chat_files.ChatTemplate(name="broken", source="{% for %}", end_ids=(), ids=lambda messages, go_on: [1])
    chat_files.write(tmp_path, broken)
    found = chat_files.compare(tmp_path, broken)
    assert not found["passed"] and "FAILED" in chat_files.summary(found) and vocabulary.size

    def refuses(messages: Any, go_on: bool) -> list[int]:
        raise ValueError

    lax = chat_files.ChatTemplate(name="lax", source="{{ messages[0].content }}", end_ids=(), ids=refuses)
    chat_files.write(tmp_path, lax)
    assert "which the template refuses" in chat_files.compare(tmp_path, lax)["error"]
    assert "not compared" in chat_files.summary({"name": "lax"})
