"""The files that transformers needs beside a vocabulary to give its ids: written where an export has none of its own.

A SentencePiece model gets a tokenizer_config.json; Llama 3's tiktoken file a tokenizer.json too, since transformers
would read it without its special tokens; a tokenizer.json alone a tokenizer_config.json that names its special tokens.
Nothing that a model brought along is changed here, and nothing is loaded to see whether it works: see
hf/tokenizer_check.py.
"""

import itertools
import json
from collections.abc import Collection, Sequence
from typing import Any

from t_elaine.data import llama3
from t_elaine.data.byte_level import byte_characters
from t_elaine.data.vocabulary import Vocabulary

CONFIG, WHOLE = "tokenizer_config.json", "tokenizer.json"


def hf_files(vocabulary: Vocabulary, present: Collection[str], before: Sequence[int]) -> dict[str, str]:
    """File name → text of what a folder lacks to be loaded by `transformers.AutoTokenizer`.

    Args:
        vocabulary: the one whose ids are wanted.
        present: names of the tokenizer files that are there already; they are neither replaced nor looked into.
        before: ids that stand before every document of the training rows; of these only BOS alone, or nothing, can be
            said in tokenizer_config.json.
    """
    made: dict[str, str] = {}
    if vocabulary.kind == "tiktoken" and WHOLE not in present:
        made[WHOLE] = json.dumps(_byte_level_json(vocabulary, before), ensure_ascii=False)
    if CONFIG not in present:
        made[CONFIG] = json.dumps(_config(vocabulary, before), ensure_ascii=False, indent=2) + "\n"
    return made


def _config(vocabulary: Vocabulary, before: Sequence[int]) -> dict[str, Any]:
    names = {i: text for text, i in vocabulary.special.items()}
    bos = vocabulary.bos
    if bos is None and len(before) == 1:
        bos = before[0]  # a tokenizer.json alone does not say which of its special tokens begins a text
    ids = {"bos": bos, "eos": vocabulary.eos, "pad": vocabulary.pad}
    found: dict[str, Any] = {f"{role}_token": names[i] for role, i in ids.items() if i in names}
    found |= {
        "add_bos_token": bos is not None and list(before) == [bos],
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if vocabulary.kind != "sentencepiece":
        return {"tokenizer_class": "PreTrainedTokenizerFast", **found}
    return {
        "tokenizer_class": "LlamaTokenizer",
        **found,
        **({"unk_token": "<unk>"} if "<unk>" in vocabulary.special else {}),
        "legacy": False,
        "add_prefix_space": vocabulary.pieces[int(vocabulary.encode("a")[0])].startswith(b" "),
        "added_tokens_decoder": {str(i): _added(text) for i, text in sorted(names.items())},
    }


def _added(text: str) -> dict[str, Any]:
    return {
        "content": text,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }


def _byte_level_json(vocabulary: Vocabulary, before: Sequence[int]) -> dict[str, Any]:
    """Llama 3's tiktoken ranks as a tokenizer.json: byte-level BPE with every way to join two tokens into a third.

    tiktoken joins neighbours whose bytes together are a token, lowest rank first; a tokenizer.json names the halves. So
    each token has a merge for every cut into two tokens, and merges stand in the order of what they make.
    """
    character = {byte: text for text, byte in byte_characters().items()}
    special = set(vocabulary.special.values())
    ranks = {piece: i for i, piece in enumerate(vocabulary.pieces) if i not in special}
    written = {piece: "".join(character[byte] for byte in piece) for piece in ranks}
    merges = [
        f"{written[piece[:cut]]} {written[piece[cut:]]}"
        for piece in sorted(ranks, key=lambda piece: ranks[piece])
        for cut in _cuts(piece, ranks)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": llama3.SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, **_added(text)} for text, i in sorted(vocabulary.special.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {"type": "Sequence", "processors": [byte_level, *_beginning(vocabulary, before)]},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {written[piece]: rank for piece, rank in ranks.items()},
            "merges": merges,
        },
    }


def _cuts(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Where a token can be cut into two tokens, those that come first in the vocabulary first."""
    cuts = [cut for cut in range(1, len(piece)) if piece[:cut] in ranks and piece[cut:] in ranks]
    return sorted(cuts, key=lambda cut: (ranks[piece[:cut]], ranks[piece[cut:]]))


def _beginning(vocabulary: Vocabulary, before: Sequence[int]) -> list[dict[str, Any]]:
    """The step that puts the ids `before` in front of a text; none where nothing stands there."""
    if not before:
        return []
    names = {i: text for text, i in vocabulary.special.items()}
    start = [{"SpecialToken": {"id": names[i], "type_id": 0}} for i in before]
    texts = [[*start, {"Sequence": {"id": name, "type_id": 0}}] for name in "AB"]
    tokens = {names[i]: {"id": names[i], "ids": [i], "tokens": [names[i]]} for i in before}
    pair = list(itertools.chain.from_iterable(texts))
    return [{"type": "TemplateProcessing", "single": texts[0], "pair": pair, "special_tokens": tokens}]
