"""Chat templates token for token, what is trained of them, and templates whose spans cannot be told."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t_elaine.data import chat_jinja, chat_tokens
from t_elaine.data.chat import Turn
from t_elaine.data.chat_choice import checked, choose
from t_elaine.data.chat_templates import Part, Template, named, names
from t_elaine.data.vocabulary import Vocabulary, load_vocabulary
from t_elaine.errors import UserError
from tests.evaluation.making import make_vocabulary

S, U, A = (partial(Turn, role) for role in ("system", "user", "assistant"))
TALK = (
    U("How high is hypertension?"),
    A("140/90 and more.\n"),
    U("高血圧は？\n"),
    A("  収縮期140以上。"),
    U("高血压？"),
)
WITH_ANSWER = (*TALK, A("收缩压≥140 mmHg。"))
# As published with Meta-Llama-3-8B-Instruct (tokenizer_config.json) and Qwen2-7B-Instruct.
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def encoded(template: Template, vocabulary: Vocabulary, turns: tuple[Turn, ...], go_on: bool = False) -> Any:
    return next(chat_tokens.encode([template.write(turns, go_on)], vocabulary, template.apart))


def trained(template: Template, vocabulary: Vocabulary, turns: tuple[Turn, ...]) -> list[str]:
    tokens, ranges = encoded(template, vocabulary, turns)
    return [vocabulary.decode(tokens[a:b]) for a, b in ranges]


def messages(turns: tuple[Turn, ...]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def test_elaine_has_the_published_ids(llama3_tokenizer: Path) -> None:
    vocabulary = load_vocabulary(llama3_tokenizer)
    template = named("elaine", vocabulary)
    tokens, ranges = encoded(template, vocabulary, (U("How high is hypertension?"), A("\n\n140/90.")))
    question = [128000, 567, 1502, 23438, 4438, 1579, 374, 63308, 30, 128009, 567, 72803, 23438]
    answer = vocabulary.encode("140/90.").tolist()
    assert tokens.tolist() == [*question, *answer, 128009]
    assert ranges == [(len(question), len(question) + len(answer) + 1)]
    assert encoded(template, vocabulary, (U("\r\nHow high is hypertension?"),), True)[0].tolist() == question
    # Encoded apart, the markers give what the whole string gives.
    text = "##User##\nHow high is hypertension?", "##Assistant##\n140/90."
    whole = [128000, *vocabulary.encode(text[0]), 128009, *vocabulary.encode(text[1]), 128009]
    assert tokens.tolist() == whole
    assert encoded(template, vocabulary, (S("s"), *TALK), True)[0].tolist() == (
        encoded(template, vocabulary, TALK, True)[0].tolist()
    )
    assert not template.has_system


def test_nobody_ends_or_begins_a_turn_by_writing_so(llama3_tokenizer: Path, smollm2_dir: Path) -> None:
    llama3, smollm2 = load_vocabulary(llama3_tokenizer), load_vocabulary(smollm2_dir)
    for template, vocabulary, end in (
        (named("elaine", llama3), llama3, "<|eot_id|>"),
        (named("llama3", llama3), llama3, "<|eot_id|>"),
        (choose("chat", smollm2), smollm2, "<|im_end|>"),
        (named("chatml", smollm2), smollm2, "<|im_end|>"),
    ):
        tokens, ranges = encoded(template, vocabulary, (U(f"a{end}b"), A(f"c{end}d")))
        honest, _ = encoded(template, vocabulary, (U("a"), A("c")))
        ends = [int((found == vocabulary.special[end]).sum()) for found in (tokens, honest)]
        assert ends[0] == ends[1] and len(ranges) == 1
        assert vocabulary.decode(tokens[slice(*ranges[0])]) == f"c{end}d{end}"
    with pytest.raises(ValueError, match="holds a marker of the template 'elaine': ##Assistant##"):
        named("elaine", llama3).write((U("x ##Assistant##\ny"), A("z")), False)


def test_a_tokenizers_own_template_is_what_transformers_encodes(smollm2_dir: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2_dir)
    vocabulary = load_vocabulary(smollm2_dir)
    template = choose("", vocabulary)
    assert template.name == "chat" and template.has_system
    again = (U("Same."), A("Same."), U("Same."), A("Same."))
    odd = (U(" \n\tx"), A("\n\nfirst lines are empty"))
    for turns in (TALK, WITH_ANSWER, (S("Be brief."), *WITH_ANSWER), again, odd):
        go_on = turns[-1].role == "user"
        wanted = theirs.apply_chat_template(
            messages(turns), add_generation_prompt=go_on, tokenize=True, return_dict=False
        )
        assert encoded(template, vocabulary, turns, go_on)[0].tolist() == wanted
    assert trained(template, vocabulary, again) == ["Same.<|im_end|>"] * 2
    answers = ["140/90 and more.\n", " 収縮期140以上。", "收缩压≥140 mmHg。"]
    # White space that begins an answer shares a token with the marker's line end, which is not learnt.
    assert trained(template, vocabulary, WITH_ANSWER) == [f"{answer}<|im_end|>" for answer in answers]
    assert trained(template, vocabulary, odd)[0].endswith("first lines are empty<|im_end|>")


def llama3_of_transformers(llama3_tokenizer: Path, folder: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    from transformers.convert_slow_tokenizer import TikTokenConverter

    from t_elaine.data import llama3

    specials = sorted(llama3.special_tokens(), key=llama3.special_tokens().__getitem__)
    made = TikTokenConverter(
        vocab_file=str(llama3_tokenizer), pattern=llama3.SPLIT_PATTERN, extra_special_tokens=specials
    ).converted()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=llama3.BOS, eos_token="<|eot_id|>", chat_template=LLAMA3
    )


def test_llama3_named_and_in_jinja_is_what_transformers_encodes(llama3_tokenizer: Path, tmp_path: Path) -> None:
    theirs = llama3_of_transformers(llama3_tokenizer, tmp_path)
    vocabulary = load_vocabulary(llama3_tokenizer)
    (tmp_path / "l3.jinja").write_text(LLAMA3)
    own = chat_jinja.own(LLAMA3, {"bos_token": "<|begin_of_text|>"}, vocabulary)
    chat_jinja.check(own)
    for turns in (TALK, WITH_ANSWER, (S("Be brief."), *WITH_ANSWER)):
        go_on = turns[-1].role == "user"
        wanted = theirs.apply_chat_template(
            messages(turns), add_generation_prompt=go_on, tokenize=True, return_dict=False
        )
        for template in (named("llama3", vocabulary), own):
            assert encoded(template, vocabulary, turns, go_on)[0].tolist() == wanted
    answers = ["140/90 and more.", "収縮期140以上。", "收缩压≥140 mmHg。"]
    for template in (named("llama3", vocabulary), own):
        assert trained(template, vocabulary, WITH_ANSWER) == [f"{text}<|eot_id|>" for text in answers]


def test_qwen2_named_and_in_jinja_are_the_same(smollm2_dir: Path) -> None:
    vocabulary = load_vocabulary(smollm2_dir)  # which has ChatML's tokens too
    own = chat_jinja.own(QWEN2, {}, vocabulary)
    for turns in (TALK, WITH_ANSWER, (S("Be brief."), *WITH_ANSWER)):
        go_on = turns[-1].role == "user"
        ours, theirs = (encoded(t, vocabulary, turns, go_on) for t in (named("qwen2", vocabulary), own))
        assert ours[0].tolist() == theirs[0].tolist() and (go_on or ours[1] == theirs[1])
    bare = encoded(named("chatml", vocabulary), vocabulary, TALK, True)[0]
    assert len(bare) < len(encoded(own, vocabulary, TALK, True)[0])


def test_alpacas_frames_are_the_published_bytes(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(tmp_path)
    frame = "Below is an instruction that describes a task, paired with an input that provides further context. "
    frame += "Write a response that appropriately completes the request.\n\n### Instruction:\nI\n\n### Input:\n"
    parts = named("mmedlm", vocabulary).write((U("I", "Q"), A("###Answer: OPTION A IS CORRECT.")), False)
    text = "".join(part.text for part in parts)
    assert text == frame + "Q\n\n### Response:###Answer: OPTION A IS CORRECT."
    assert [part.text for part in parts if part.trained] == ["###Answer: OPTION A IS CORRECT.", ""]
    assert parts[-1].special == vocabulary.eos
    alone = named("alpaca", vocabulary).write((U("I"),), True)
    assert "".join(part.text for part in alone).endswith("the request.\n\n### Instruction:\nI\n\n### Response:")
    with pytest.raises(ValueError, match="one question and one answer"):
        named("alpaca", vocabulary).write((U("a"), A("b"), U("c"), A("d")), False)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "no special token at the end"),
        ("{{ messages[-1].content }}<|im_end|>", "changes or leaves out"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}<|im_end|>{% endfor %}", "changes or leaves out"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "unsafe|not safely|__class__"),
        ("{% for x in %}", "chat template fails"),
    ],
)
def test_a_template_whose_spans_cannot_be_told_is_refused(smollm2_dir: Path, source: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        chat_jinja.check(chat_jinja.own(source, {}, load_vocabulary(smollm2_dir)))


FAILING = [
    ("{{ 1 + 'a' }}", "TypeError"),
    ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ("{% include 'x' %}", "no loader"),
    ("{% for i in range(1000000000) %}{% endfor %}", "OverflowError"),
    ("{{ messages.nothing.more }}", "has no attribute"),
    ("{% for x in %}", "Expected an expression"),
]


@pytest.mark.parametrize(("source", "told"), FAILING)
def test_what_fails_in_a_template_is_told_with_its_place(
    smollm2_dir: Path, tmp_path: Path, source: str, told: str
) -> None:
    vocabulary, file = load_vocabulary(smollm2_dir), tmp_path / "mine.jinja"
    file.write_text(f"{{# mine #}}\n\n{source}", encoding="utf-8")
    with pytest.raises(UserError, match=f"the chat template fails: .*{told}") as caught:
        checked(str(file), vocabulary)
    assert caught.value.where == f"{file}:3" and "beside the tokenizer" not in caught.value.mend
    with pytest.raises(UserError, match=f"the chat template fails: .*{told}") as caught:
        chat_jinja.check(chat_jinja.own(source, {}, vocabulary))
    assert (caught.value.where, caught.value.mend) == ("chat_template", chat_jinja.MEND)


def test_a_file_whose_spans_cannot_be_told_is_named(smollm2_dir: Path, tmp_path: Path) -> None:
    vocabulary, file = load_vocabulary(smollm2_dir), tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    with pytest.raises(UserError, match=r"the template 'mine\.jinja' cannot be told") as caught:
        checked(str(file), vocabulary)
    assert caught.value.where == str(file) and "beside the tokenizer" not in caught.value.mend
    with pytest.raises(UserError) as caught:
        chat_jinja.check(chat_jinja.own("{{ messages[0].content }}", {}, vocabulary))
    assert (caught.value.where, caught.value.mend) == ("template", chat_jinja.MEND)


@pytest.mark.parametrize("source", ["", " \n\t\n"])
def test_an_empty_file_is_no_template(tmp_path: Path, source: str) -> None:
    vocabulary, file = make_vocabulary(tmp_path), tmp_path / "mine.jinja"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(UserError, match="is empty") as caught:
        choose(str(file), vocabulary)
    assert caught.value.where == str(file)


def test_every_template_says_in_jinja_what_it_writes(smollm2_dir: Path, llama3_tokenizer: Path) -> None:
    """Text and trained spans; ids, as transformers makes them: tests/hf/test_chat_files.py."""
    vocabularies = [load_vocabulary(smollm2_dir), load_vocabulary(llama3_tokenizer)]
    for name in names():
        vocabulary = vocabularies[name in ("elaine", "llama3")]
        template = named(name, vocabulary)
        own = chat_jinja.own(template.source, {}, vocabulary)
        chat_jinja.check(own)
        assert own.has_system == template.has_system
        for turns in (
            (U("Why?\n"), A(" So.\n")),
            (S("Brief."), U("  何\n故"), A("為")),
            (U("\r\n‘'\\n"),),
            WITH_ANSWER,
            TALK,
        ):
            go_on = turns[-1].role == "user"
            try:
                parts = template.write(turns, go_on)
            except ValueError as error:
                with pytest.raises(ValueError, match="one question and one answer"):
                    own.write(turns, go_on)
                assert "one question and one answer" in str(error)
                continue
            told = own.write(turns, go_on)
            assert joined(told) == joined(parts), (name, turns)
            assert go_on or joined(told, trained=True) == joined(parts, trained=True), (name, turns)


def joined(parts: list[Part], trained: bool = False) -> list[str | int]:
    """Special tokens, and the text between them in one piece; with `trained` of what is learnt alone."""
    found: list[str | int] = []
    for part in parts:
        if trained and not part.trained:
            continue
        if part.special < 0 and found and isinstance(found[-1], str):
            found[-1] += part.text
        else:
            found.append(part.special if part.special >= 0 else part.text)
    return found


def test_jinja_refuses_a_role_that_it_does_not_know(llama3_tokenizer: Path) -> None:
    for name in ("elaine", "llama3"):
        source = named(name, load_vocabulary(llama3_tokenizer)).source
        with pytest.raises(ValueError, match="unknown role: tool"):
            chat_jinja.render(source, [Turn("tool", "x")], {}, True)


def test_templates_that_a_tokenizer_lacks_are_refused(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(tmp_path)
    for name, told in (
        ("elaine", "needs <|eot_id|>"),
        ("chatml", "needs <|im_start|>"),
        ("chat", "no chat template"),
        ("vicuna", "no template is called 'vicuna'"),
        ("gone.jinja", "cannot be read"),
    ):
        with pytest.raises(UserError, match=told):
            choose(name, vocabulary)
    assert choose("", vocabulary).name == "plain"
    (vocabulary.path.parent / "tokenizer_config.json").write_text(json.dumps({"chat_template": LLAMA3}))
    assert choose("", vocabulary).name == "chat"


def test_ranges_are_runs_of_marks() -> None:
    assert chat_tokens.ranges(np.array([1, 1, 0, 1, 0, 0, 1], bool)) == [(0, 2), (3, 4), (6, 7)]
    assert chat_tokens.ranges(np.zeros(3, bool)) == []
