"""Runs a byte-level BPE tokenizer.json through tiktoken, which is several times faster, where both give equal ids.

Whether they do is checked each time a vocabulary is loaded: on the vocabulary itself, token by token, and on a built-in
set of awkward texts. Where anything differs, or the file asks for a step that is not known here, there is no fast path.
"""

import random
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import tiktoken
import tokenizers

Encoder = Callable[[list[str]], list[np.ndarray]]

_LOST = 2**32 - 1
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+"
_GPT2_SIGNS = r" ?[^\s\p{L}\p{N}]+"
_GPT2_SPACES = r"\s+(?!\S)|\s+"
GPT2_PATTERN = f"{_GPT2_WORDS}| ?\\p{{N}}+|{_GPT2_SIGNS}|{_GPT2_SPACES}"
# Digits are cut out one by one first: white space before a digit is then the end of its piece, and keeps together.
GPT2_DIGITS_PATTERN = f"{_GPT2_WORDS}|\\p{{N}}|{_GPT2_SIGNS}|\\s+(?=\\p{{N}})|{_GPT2_SPACES}"

_ALPHABET = (
    "aAbZéßœ'’sStTdlLvVeE  \t\n\r\u0085\u00a0\u2028\u2029\u3000\u200b\u200d\ufeff0123456789²½Ⅷ٣۴１２ａＡ．，"
    ",.;:!?-—_()[]{}<>|#@&*+=/\\~^%$€"
    "日本語の医学中文臨床試験ｱｲｳガが한국어ไทยअनुไดكتابעבβγδЖя😀👩🏽‍⚕️👍🏿e\u0301\u0327µΩ°±×≥→①㎎㏄\x00\x01\x1f\x7f"
)
_TEXTS = (
    "The patient's BP was 140/90 mmHg; she'd been taking 5 mg of amlodipine since 2019-03-01.",
    "  Leading   spaces,\ttabs\n\n\nand lines \r\n  \r\n end  ",
    "１２３ ＡＢＣ 血圧は140/90mmHgであった。アムロジピン5mgを内服中。",
    "患者血压140/90 mmHg，每日口服氨氯地平5毫克。繁體中文：臨床試驗。",
    "IL-6, TNF-α, β2-microglobulin; p<0.001 (95% CI: 1.2–3.4) ≥ 2×10⁹/L ½ ² Ⅷ",
    "a\u0301 á e\u0327\u0301 ｶﾞ が 한국어 हिन्दी ไทย العربية עברית Ελληνικά русский 👩🏽‍⚕️🇯🇵👍🏿",
    "<|endoftext|> <s> </s> <|begin_of_text|> [INST] <|im_start|>user <unk> <pad>",
    "I'LL YOU'RE we've DON'T 'tis ’s x'S 'D rock'n'roll ſ'ſ İ'İ",
    "1 22 333 4444 55555 1,234,567.89 0x1F 1e-5  7   8\t9\n10 ٣٤٥ ۱۲۳ 一二三",
    "\u00a0\u00a0x\u2003y\u3000z\u2028w\u2029v\u0085u\x1ct\x0bs \u200b r\ufeff",
    "def f(x):\n    return x  # ok\n\n\tif (a && b) { c->d = e[0]; }\r\n",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis " * 3,
    " " * 40 + "x" + "\n" * 40 + "-" * 80 + "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
)


def probe_texts(count: int = 400, length: int = 60) -> list[str]:
    """Awkward texts on which two encoders are compared: fixed ones, and seeded strings of troublesome characters."""
    rng = random.Random(0)
    drawn = ["".join(rng.choices(_ALPHABET, k=rng.randint(1, length))) for _ in range(count)]
    words = " ".join(_TEXTS).split(" ")
    mixed = [rng.choice(("", " ", "  ", "\n")).join(rng.choices(words, k=12)) for _ in range(count // 2)]
    return [*_TEXTS, *drawn, *mixed]


def byte_characters() -> dict[str, int]:
    """The 256 printable characters that stand for bytes in byte-level BPE files (GPT-2's table): character → byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in kept]
    return {chr(b): b for b in kept} | {chr(256 + i): b for i, b in enumerate(others)}


def split_pattern(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The one regular expression that cuts text as a tokenizer.json's pre-tokenizer does; None where none is known."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer]) if pre_tokenizer else []
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    use_regex = steps[-1].get("use_regex", True)
    match steps[:-1]:
        case []:
            return GPT2_PATTERN if use_regex else None
        case [{"type": "Digits", "individual_digits": True}]:
            return GPT2_DIGITS_PATTERN if use_regex else None
        case [{"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False}]:
            return None if use_regex else regex
    return None


def fast_encoder(settings: dict[str, Any], slow: Encoder) -> Encoder | None:
    """An encoder through tiktoken with the ids of `slow`, or None where they are not proved equal on the probes.

    Args:
        settings: the content of a byte-level BPE tokenizer.json.
        slow: encodes with that tokenizer itself, special tokens' text as plain text.
    """
    pattern = split_pattern(settings["pre_tokenizer"])
    normalizer = (settings["normalizer"] or {}).get("type")
    # Added tokens that are not special are cut out of text before BPE; tiktoken has no such step.
    plain_added = [t for t in settings["added_tokens"] if not t["special"]]
    if pattern is None or normalizer not in (None, "NFC") or plain_added:
        return None
    ranks, ids = _ranks(settings["model"])
    encoding = tiktoken.Encoding(name="t_elaine", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    fast = _through_tiktoken(encoding, ids, slow, nfc=normalizer == "NFC")
    texts = probe_texts()
    equal = all(np.array_equal(a, b) for a, b in zip(fast(texts), slow(texts), strict=True))
    return fast if equal else None


def missing_bytes(model: dict[str, Any]) -> list[int]:
    """Bytes for which the vocabulary has no token: the reference encoder drops them without a word."""
    return sorted(byte for character, byte in byte_characters().items() if character not in model["vocab"])


def _ranks(model: dict[str, Any]) -> tuple[dict[bytes, int], np.ndarray]:
    """tiktoken's ranks, in the order of the merges, and the array rank → id (_LOST for a byte that has no token).

    tiktoken joins any two neighbours whose bytes together are a token; the file's merges name the two halves. Both walk
    the same way as long as every token is what its own bytes give (one that is not is never made by the merges).
    """
    vocabulary: dict[str, int] = model["vocab"]
    to_byte = byte_characters()
    merges = [(a, b) for a, b in (m.split(" ") if isinstance(m, str) else m for m in model["merges"])]
    bpe = tokenizers.models.BPE(vocab=vocabulary, merges=merges)
    joined = dict.fromkeys(a + b for a, b in merges)
    made = [token for token in joined if [t.value for t in bpe.tokenize(token)] == [token]]
    # ignore_merges takes a whole word that is a token as it is; tiktoken always does. Last ranks never win a merge.
    whole = [t for t in vocabulary if t not in joined and len(t) > 1] if model.get("ignore_merges") else []
    order = [*to_byte, *made, *(t for t in whole if all(c in to_byte for c in t))]
    ranks = {bytes(to_byte[c] for c in token): rank for rank, token in enumerate(order)}
    return ranks, np.array([vocabulary.get(token, _LOST) for token in order], np.uint32)


def _through_tiktoken(encoding: tiktoken.Encoding, ids: np.ndarray, slow: Encoder, nfc: bool) -> Encoder:
    some_lost = bool((ids == _LOST).any())

    def encode_one(text: str) -> np.ndarray:
        if nfc and not unicodedata.is_normalized("NFC", text):
            return slow([text])[0]
        found = ids[np.array(encoding.encode_ordinary(text), np.int64)]
        return slow([text])[0] if some_lost and (found == _LOST).any() else found

    return lambda texts: [encode_one(text) for text in texts]
