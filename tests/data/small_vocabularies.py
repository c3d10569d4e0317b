"""What the data tests share: the shipped sample vocabulary, small trained ones, texts. No tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from t_elaine.data import llama3
from t_elaine.paths import shipped

SAMPLES = shipped("data_tasks") / "samples"
SAMPLE_VOCABULARY = SAMPLES / "vocabulary" / "tokenizer.model"
PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "split": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(llama3.SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def sample_texts(limit: int = 1000) -> list[str]:
    rows = [row for path in sorted(SAMPLES.glob("*/documents.jsonl")) for row in path.read_text("utf-8").split("\n")]
    return [json.loads(row)["text"] for row in rows if row][:limit]


def train_byte_level(folder: Path, kind: str, *, nfc: bool = False, added: tuple[str, ...] = ()) -> Path:
    """A small byte-level BPE tokenizer.json trained on the samples."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[kind]()
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample_texts(), trainer)
    tokenizer.add_tokens(list(added))
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    content = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|endoftext|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder
