"""A vocabulary as GGUF fields: every id its token, llama.cpp's name for the split, and what it cannot do refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from t_elaine.data import gguf_vocabulary as made
from t_elaine.data import llama3
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.errors import UserError
from tests.data.small_vocabularies import SAMPLE_VOCABULARY

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
WORDS = {**BYTES, "use_regex": True}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def folder(path: Path, steps: dict[str, Any], **model: Any) -> Path:
    """A tokenizer.json of five ids and one special, with its configs."""
    whole = {
        "pre_tokenizer": steps,
        "added_tokens": [
            {"id": 5, "content": "<|end|>", "special": True},
            {"id": 6, "content": "<tool>", "special": False},
        ],
        "model": {"vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": [["a", "b"]], **model},
    }
    (path / "tokenizer.json").write_text(json.dumps(whole))
    told = {"eos_token": {"content": "<|end|>"}, "bos_token": None, "chat_template": "{{ messages }}"}
    (path / "tokenizer_config.json").write_text(json.dumps(told))
    return path


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        (WORDS, "gpt-2"),
        (sequence({"type": "Digits", "individual_digits": True}, WORDS), "smollm"),
        (sequence(split(made.QWEN2_PATTERN), BYTES), "qwen2"),
    ],
)
def test_every_id_has_its_token_and_the_split_its_name(tmp_path: Path, steps: dict[str, Any], name: str) -> None:
    fields = made.gguf_vocabulary(folder(tmp_path, steps), rows=9, before=[5])
    assert fields["tokenizer.ggml.pre"] == name and fields["tokenizer.ggml.model"] == "gpt2"
    tokens = ["a", "b", "ab", "c", "[PAD4]", "<|end|>", "<tool>", "[PAD7]", "[PAD8]"]
    assert fields["tokenizer.ggml.tokens"] == tokens
    assert fields["tokenizer.ggml.token_type"] == [1, 1, 1, 1, 5, 3, 4, 5, 5]
    assert fields["tokenizer.ggml.merges"] == ["a b"]
    assert fields["tokenizer.ggml.eos_token_id"] == fields["tokenizer.ggml.bos_token_id"] == 5
    assert fields["tokenizer.ggml.add_bos_token"] is True and fields["tokenizer.chat_template"] == "{{ messages }}"


def test_the_ends_of_an_answer_are_those_of_the_folder(tmp_path: Path) -> None:
    made_of = folder(tmp_path, WORDS)
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    assert made.gguf_vocabulary(made_of, 9, [])["tokenizer.ggml.eos_token_id"] == 3
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [6, 2]}')
    fields = made.gguf_vocabulary(made_of, 9, [])
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.eot_token_id"]) == (6, 2)
    assert fields["tokenizer.ggml.add_bos_token"] is False and "tokenizer.ggml.bos_token_id" not in fields


def test_llama3_ignores_merges_as_llama_cpp_does(tmp_path: Path) -> None:
    steps = sequence(split(llama3.SPLIT_PATTERN), BYTES)
    fields = made.gguf_vocabulary(folder(tmp_path, steps, ignore_merges=True), 9, [])
    assert fields["tokenizer.ggml.pre"] == "llama-bpe"
    with pytest.raises(UserError, match=r"ignore_merges is False in the file and True in llama\.cpp's llama-bpe"):
        made.gguf_vocabulary(folder(tmp_path, steps), 9, [])


@pytest.mark.parametrize(
    "steps",
    [
        {**WORDS, "add_prefix_space": True},
        sequence(split(r"\p{N}{1,2}"), BYTES),
        {"type": "Metaspace", "replacement": "_"},
        sequence({**split("x"), "behavior": "Removed"}, BYTES),
        BYTES,
        None,
    ],
)
def test_a_split_without_a_name_in_llama_cpp_is_refused(tmp_path: Path, steps: Any) -> None:
    with pytest.raises(UserError, match=r"no name in llama\.cpp for how it splits text"):
        made.gguf_vocabulary(folder(tmp_path, steps), 9, [])


def test_more_ids_than_rows_and_damaged_or_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has an id 6, the model's embedding 6 rows"):
        made.gguf_vocabulary(folder(tmp_path, WORDS), 6, [])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not understood"):
        made.gguf_vocabulary(tmp_path, 9, [])
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        made.gguf_vocabulary(tmp_path, 9, [])
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="neither"):
        made.gguf_vocabulary(tmp_path, 9, [])


def test_the_sentencepiece_model_of_the_samples(tmp_path: Path) -> None:
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    shutil.copyfile(vocabulary.path, tmp_path / "tokenizer.model")
    fields = made.gguf_vocabulary(tmp_path, vocabulary.size + 2, [vocabulary.special["<s>"]])
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert fields["tokenizer.ggml.model"] == "llama" and len(tokens) == len(kinds) == vocabulary.size + 2
    assert tokens[vocabulary.special["<s>"]] == "<s>" and kinds[vocabulary.special["<s>"]] == made.CONTROL
    assert kinds.count(made.BYTE) == 256 and fields["tokenizer.ggml.add_space_prefix"] is False
    scores = fields["tokenizer.ggml.scores"]
    assert scores[-1] == made.UNUSED_SCORE and scores[vocabulary.size - 2] > scores[vocabulary.size - 1]


def test_sentencepiece_models_that_llama_cpp_would_read_otherwise_are_refused(tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    model.ParseFromString(load_vocabulary(SAMPLE_VOCABULARY).path.read_bytes())
    model.normalizer_spec.remove_extra_whitespaces = True
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="changes text before it splits it"):
        made.gguf_vocabulary(tmp_path, 5000, [])
    model.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="is no BPE"):
        made.gguf_vocabulary(tmp_path, 5000, [])
