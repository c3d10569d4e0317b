"""Facts about Llama 3's vocabulary that its tokenizer.model does not hold: the split pattern, the 256 special tokens.

Source: the tokenizer description published with the model (llama-models 0.3.0, `llama3/tokenizer.py`). Data only.
"""

# One alternative a line: contractions; a word with at most one leading sign; up to three digits; signs with the line
# ends that follow; line ends; white space before a word keeps its last character for the word; other white space.
SPLIT_PATTERN = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
RANKS = 128_000
SPECIALS = 256
BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
_NAMED = (
    BOS,
    EOS,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    PAD,
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)


def special_tokens() -> dict[str, int]:
    """Text → id of the 256 special tokens, 128000 to 128255."""
    reserved = [f"<|reserved_special_token_{2 + i}|>" for i in range(SPECIALS - len(_NAMED))]
    return {text: RANKS + i for i, text in enumerate([*_NAMED, *reserved])}
