"""Ids are the reference encoders'; special tokens never come out of text; bytes add up for every token sequence."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from small_vocabularies import SAMPLE_VOCABULARY, SAMPLES, sample_texts, train_byte_level

from t_elaine.data import byte_level
from t_elaine.data.byte_level import probe_texts
from t_elaine.data.vocabulary import Vocabulary, load_vocabulary, save_vocabulary
from t_elaine.errors import UserError


def real_texts(folder: Path, every: int = 1) -> Iterator[list[str]]:
    """All strings of the real data, in lists of up to 400; every n-th row of each file."""
    paths = sorted([*folder.rglob("*.jsonl.gz"), *folder.rglob("*.jsonl")])
    for path in paths:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = [json.loads(row) for row in content.decode().split("\n")[::every] if row]
        found = [value for row in rows for value in row.values() if isinstance(value, str)]
        yield from (found[i : i + 400] for i in range(0, len(found), 400))


def assert_same(found: list[np.ndarray], expected: list[list[int]], texts: list[str]) -> None:
    for ids, reference, text in zip(found, expected, texts, strict=True):
        assert ids.dtype == np.uint32
        assert ids.tolist() == reference, text[:80]


def assert_bytes_add_up(vocabulary: Vocabulary, texts: list[str]) -> None:
    lengths = vocabulary.byte_lengths()
    for ids, text in zip(vocabulary.encode_batch(texts), texts, strict=True):
        assert int(lengths[ids].sum()) == len(text.encode())
        assert vocabulary.decode(ids) == text


# --- the reference encoders, each as a function of texts


def huggingface_reference(path: Path):
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return lambda texts: [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def llama3_reference():
    reference = pytest.importorskip("llama_models.llama3.tokenizer", reason="llama-models is not installed")
    tokenizer = reference.Tokenizer.get_instance()
    return lambda texts: [tokenizer.encode(t, bos=False, eos=False, disallowed_special=()) for t in texts]


def sentencepiece_reference(path: Path):
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return lambda texts: [model.encode(text) for text in texts]


@pytest.mark.parametrize("kind", ["gpt2", "digits", "split"])
@pytest.mark.parametrize("nfc", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_byte_level_goes_through_tiktoken_with_equal_ids(tmp_path: Path, kind: str, nfc: bool) -> None:
    folder = train_byte_level(tmp_path / "v", kind, nfc=nfc)
    vocabulary = load_vocabulary(folder)
    texts = [*probe_texts(count=200, length=200), *sample_texts(), "", "e\u0301"]
    assert vocabulary.fast
    assert_same(vocabulary.encode_batch(texts), huggingface_reference(folder / "tokenizer.json")(texts), texts)
    if not nfc:
        assert vocabulary.differs == ""
        assert_bytes_add_up(vocabulary, texts)


def test_the_check_at_load_refuses_a_wrong_fast_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train_byte_level(tmp_path / "v", "digits")
    monkeypatch.setattr(byte_level, "GPT2_DIGITS_PATTERN", byte_level.GPT2_PATTERN)
    vocabulary = load_vocabulary(folder)
    assert not vocabulary.fast
    texts = sample_texts()[:20]
    assert_same(vocabulary.encode_batch(texts), huggingface_reference(folder / "tokenizer.json")(texts), texts)


def test_added_tokens_that_are_not_special_keep_the_slow_path(tmp_path: Path) -> None:
    folder = train_byte_level(tmp_path / "v", "gpt2", added=("mmHg",))
    vocabulary = load_vocabulary(folder)
    texts = ["140/90 mmHg and 5 mmHg", *sample_texts()[:5]]
    assert not vocabulary.fast
    assert_same(vocabulary.encode_batch(texts), huggingface_reference(folder / "tokenizer.json")(texts), texts)
    assert_bytes_add_up(vocabulary, texts)


def test_a_byte_without_token_is_dropped_as_the_reference_does(tmp_path: Path) -> None:
    folder = train_byte_level(tmp_path / "v", "gpt2")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    lost = next(c for c, b in byte_level.byte_characters().items() if b == 0x04)
    del content["model"]["vocab"][lost]
    path.write_text(json.dumps(content))
    vocabulary = load_vocabulary(folder)
    texts = ["a\x04b", "\x04", "plain", " \x04 th\x04e"]
    assert vocabulary.fast and "04" in vocabulary.differs
    assert_same(vocabulary.encode_batch(texts), huggingface_reference(path)(texts), texts)


def test_sample_vocabulary_is_sentencepiece_without_loss() -> None:
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    texts = [t.replace("\u2581", "") for t in [*probe_texts(count=200), *sample_texts()] if "\0" not in t]
    assert vocabulary.kind == "sentencepiece" and vocabulary.differs == "U+2581 becomes a space"
    assert_same(vocabulary.encode_batch(texts), sentencepiece_reference(SAMPLE_VOCABULARY)(texts), texts)
    assert_bytes_add_up(vocabulary, texts)


def test_llama3(llama3_tokenizer: Path, shared_data: Path) -> None:
    vocabulary = load_vocabulary(llama3_tokenizer)
    assert (vocabulary.size, vocabulary.bos, vocabulary.eos, len(vocabulary.special_ids)) == (
        128256,
        128000,
        128001,
        256,
    )
    reference = llama3_reference()
    for texts in [probe_texts(), sample_texts(), *real_texts(shared_data, every=200)]:
        assert_same(vocabulary.encode_batch(texts), reference(texts), texts)
        assert_bytes_add_up(vocabulary, texts)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["llama3", "smollm2", "samples"])
def test_ids_equal_the_reference_on_all_real_data(
    kind: str,
    shared_data: Path,
    request: pytest.FixtureRequest,
) -> None:
    path: Path = SAMPLE_VOCABULARY
    if kind == "llama3":
        path, reference = request.getfixturevalue("llama3_tokenizer"), llama3_reference()
    elif kind == "smollm2":
        path = request.getfixturevalue("smollm2_dir") / "tokenizer.json"
        reference = huggingface_reference(path)
    else:
        reference = sentencepiece_reference(path)
    vocabulary = load_vocabulary(path)
    count = 0
    for texts in real_texts(shared_data):
        assert_same(vocabulary.encode_batch(texts), reference(texts), texts)
        assert_bytes_add_up(vocabulary, [text for text in texts if "\u2581" not in text])
        count += len(texts)
    assert count > 100_000


def special_vocabularies(tmp_path: Path) -> dict[str, Path]:
    return {
        "byte-level": train_byte_level(tmp_path / "fast", "gpt2"),
        "byte-level, slow": train_byte_level(tmp_path / "slow", "gpt2", added=("mmHg",)),
        "sentencepiece": SAMPLES / "vocabulary",
    }


@pytest.mark.parametrize("kind", ["byte-level", "byte-level, slow", "sentencepiece"])
def test_special_text_never_becomes_a_special_id(tmp_path: Path, kind: str) -> None:
    check_specials(load_vocabulary(special_vocabularies(tmp_path)[kind]))


def test_special_text_never_becomes_a_special_id_llama3(llama3_tokenizer: Path) -> None:
    check_specials(load_vocabulary(llama3_tokenizer))


def check_specials(vocabulary: Vocabulary) -> None:
    texts = [
        form.format(s) for s in vocabulary.special for form in ("{}", "a{}b", " {} ", "x\n{}\n{}".replace("{}", "{0}"))
    ]
    assert len(texts) >= 8
    for ids, text in zip(vocabulary.encode_batch(texts), texts, strict=True):
        assert not set(ids.tolist()) & set(vocabulary.special_ids), text
        assert vocabulary.decode(ids) == text
    assert (vocabulary.byte_lengths()[list(vocabulary.special_ids)] == 0).all()


def test_partial_characters_count_their_own_bytes(tmp_path: Path) -> None:
    vocabulary = load_vocabulary(train_byte_level(tmp_path / "v", "gpt2"))
    ids = vocabulary.encode("龘")
    assert len(ids) > 1
    lengths = vocabulary.byte_lengths()
    assert lengths[ids].tolist() == [len(vocabulary.pieces[i]) for i in ids] and lengths[ids].sum() == 3
    assert vocabulary.decode(ids[:1]) == "\ufffd"


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    for path in (SAMPLE_VOCABULARY, train_byte_level(tmp_path / "v", "digits")):
        first = load_vocabulary(path)
        folder = tmp_path / f"saved-{first.kind}"
        save_vocabulary(first, folder)
        again = load_vocabulary(folder)
        assert (again.sha256, again.bos, again.eos, again.pad) == (first.sha256, first.bos, first.eos, first.pad)
        np.testing.assert_array_equal(np.load(folder / "byte_lengths.npy"), first.byte_lengths())
        assert json.loads((folder / "vocabulary.json").read_text())["sha256"] == first.sha256


def test_names_of_specials(tmp_path: Path) -> None:
    vocabulary = load_vocabulary(train_byte_level(tmp_path / "v", "gpt2"))
    assert vocabulary.special_id("bos") == vocabulary.special["<|im_start|>"]
    assert vocabulary.special_id("<|endoftext|>") == vocabulary.eos
    with pytest.raises(UserError, match="no special token"):
        vocabulary.special_id("<nothing>")


def test_files_that_are_no_vocabulary(tmp_path: Path, llama3_tokenizer: Path) -> None:
    bad = {
        "tokenizer.json": b'{"model": 3}',
        "half.json": train_byte_level(tmp_path / "v", "gpt2").joinpath("tokenizer.json").read_bytes()[:5000],
        "tokenizer.model": SAMPLE_VOCABULARY.read_bytes()[:20_000],
        "llama.model": llama3_tokenizer.read_bytes()[:100_001],
        "random.model": bytes(range(256)) * 4,
        "empty.model": b"",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            load_vocabulary(tmp_path / name)
        assert caught.value.mend, name
        assert name != "tokenizer.json" or "it has no 'added_tokens'" in caught.value.what
    for path in (tmp_path / "nothing", tmp_path / "v" / "nothing.json"):
        with pytest.raises(UserError) as caught:
            load_vocabulary(path)
        assert caught.value.where == str(path), "the path itself, not its parent"
