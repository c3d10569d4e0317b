"""What an export adds so that transformers gives its text the ids of training, for each kind of vocabulary."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from t_elaine import export
from t_elaine.data.hf_files import hf_files
from t_elaine.data.vocabulary import Vocabulary, load_vocabulary
from t_elaine.hf import tokenizer_check
from tests.data.small_vocabularies import SAMPLE_VOCABULARY, sample_texts, train_byte_level
from tests.evaluation.making import make_run

pytest.importorskip("transformers", reason="transformers is not installed")

TEXTS = (
    *tokenizer_check.AWKWARD,
    "The  patient's BP was 140/90 mmHg;\n\n she'd had 1,204 ml.",
    "患者は発熱と咳を訴えて来院した。　既往歴：なし\n𠮷田医師",
    "患者因发热入院。\r\n诊断：肺炎（𠮷）",
)


def folder_for(vocabulary: Vocabulary, before: Sequence[int], folder: Path, model: str = "llama") -> Path:
    """What an export writes of a vocabulary that came without any other file."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(vocabulary.path, folder / vocabulary.path.name)
    (folder / "config.json").write_text(json.dumps({"model_type": model}), encoding="utf-8")
    for name, text in hf_files(vocabulary, [vocabulary.path.name], before).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def check_ids(folder: Path, vocabulary: Vocabulary, texts: Sequence[str]) -> Any:
    theirs = load(folder)
    for text in texts:
        assert theirs(text, add_special_tokens=False)["input_ids"] == vocabulary.encode(text).tolist(), text
    return theirs


@pytest.mark.parametrize("with_bos", [True, False])
def test_sentencepiece(tmp_path: Path, with_bos: bool) -> None:
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    before = [vocabulary.bos] if with_bos else []
    theirs = check_ids(folder_for(vocabulary, before, tmp_path), vocabulary, [*TEXTS, *sample_texts(20)])
    ids = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id)
    assert ids == (vocabulary.bos, vocabulary.eos, vocabulary.pad, 0) == (1, 2, 3, 0)
    assert theirs("Fever")["input_ids"] == before + vocabulary.encode("Fever").tolist()
    for text in TEXTS:
        assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text
    whole = tokenizer_check.compare(tmp_path, vocabulary.encode_batch, before, TEXTS)
    assert whole["passed"] and "the ids of training" in tokenizer_check.summary(whole)


@pytest.mark.parametrize("with_bos", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_tiktoken_file(tmp_path: Path, llama3_tokenizer: Path, with_bos: bool) -> None:
    vocabulary = load_vocabulary(llama3_tokenizer)
    before = [vocabulary.bos] if with_bos else []
    theirs = check_ids(folder_for(vocabulary, before, tmp_path), vocabulary, [*TEXTS, *sample_texts(200)])
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (128000, 128001, 128004)
    assert len(theirs) == vocabulary.size and theirs("x")["input_ids"][:-1] == before
    assert {i: theirs.convert_ids_to_tokens(i) for i in vocabulary.special_ids} == {
        i: text for text, i in vocabulary.special.items()
    }
    again = load_vocabulary(tmp_path / "tokenizer.json")  # the way back, and the one of other programs
    for text in TEXTS:
        assert again.encode(text).tolist() == vocabulary.encode(text).tolist()


@pytest.mark.parametrize("kind", ["gpt2", "digits", "split"])
def test_tokenizer_json_alone(tmp_path: Path, kind: str) -> None:
    train_byte_level(tmp_path / "own", kind)
    (tmp_path / "own" / "tokenizer_config.json").unlink()
    vocabulary = load_vocabulary(tmp_path / "own")
    assert vocabulary.bos is None
    theirs = check_ids(folder_for(vocabulary, [1], tmp_path / "out"), vocabulary, TEXTS)
    assert theirs.bos_token == "<|im_start|>"
    # Whether a text begins with BOS is said in tokenizer.json, which is the model's and stays as it is: told instead.
    found = tokenizer_check.compare(tmp_path / "out", vocabulary.encode_batch, [1], TEXTS)
    assert not found["differing"] and found["begins"] == [] and not found["passed"]
    assert "the training rows have [1]" in tokenizer_check.summary(found)


def test_text_of_special_tokens(tmp_path: Path) -> None:
    """What the docs say of it: transformers reads it as the token, unless it is told not to."""
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    theirs = load(folder_for(vocabulary, [1], tmp_path))
    text = "a <s> b </s>"
    ours = vocabulary.encode(text).tolist()
    assert theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ours
    assert not {1, 2} & set(ours) and {1, 2} <= set(theirs(text, add_special_tokens=False)["input_ids"])


def test_differences_are_told(tmp_path: Path) -> None:
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    folder = folder_for(vocabulary, [1], tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_prefix_space": True}))
    found = tokenizer_check.compare(folder, vocabulary.encode_batch, [1], TEXTS)
    assert found["differing"] and not found["passed"] and "OTHER IDS" in tokenizer_check.summary(found)
    (folder / "tokenizer.model").write_bytes(b"nothing of the kind")
    found = tokenizer_check.compare(folder, vocabulary.encode_batch, [1], TEXTS)
    assert found["error"] and not found["passed"] and "FAILED" in tokenizer_check.summary(found)


def test_files_that_came_along_stay(tmp_path: Path) -> None:
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    assert set(hf_files(vocabulary, ["tokenizer.model"], [1])) == {"tokenizer_config.json"}
    assert hf_files(vocabulary, ["tokenizer.model", "tokenizer_config.json"], [1]) == {}


@pytest.mark.parametrize("framing", [[1], pytest.param([], marks=pytest.mark.slow)])
def test_export_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], framing: list[int]) -> None:
    """The whole command on a run whose vocabulary is a bare tokenizer.model."""
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    run, out = make_run(tmp_path / "run", vocabulary), tmp_path / "out"
    (run / "data.json").write_text(json.dumps({"texts": {"framing": {"ids": [framing, [2]]}}}))
    export.export(str(run), str(out))
    told = capsys.readouterr().out
    assert "tokenizer, loaded by transformers" in told and "the ids of training for 73 texts" in told
    theirs = check_ids(out, vocabulary, TEXTS)
    assert theirs("x")["input_ids"] == framing + vocabulary.encode("x").tolist()
    found = json.loads((out / "proof.json").read_text())["tokenizer"]
    assert found["passed"] and found["begins"] == found["trained"] == framing
