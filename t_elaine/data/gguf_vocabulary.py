"""A vocabulary as the fields of a GGUF file, so that llama.cpp gives the ids that the model was trained with.

llama.cpp splits text by rules that are part of its program and go by name (`tokenizer.ggml.pre`); a tokenizer.json
whose rules are none of those that we know is refused, since every id after a wrong split is another one. Three kinds:
byte-level BPE (Llama 3, Qwen2, SmolLM, GPT-2), Llama 3's tiktoken file through the tokenizer.json that the export makes
of it, and SentencePiece BPE. Token types and fields: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t_elaine.data import llama3
from t_elaine.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ADDED_SCORE, UNUSED_SCORE = -1000.0, -10000.0
QWEN2_PATTERN = llama3.SPLIT_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")  # digits one by one
# What a pre-tokenizer does, as `_steps` writes it → (llama.cpp's name, whether that ignores merges).
SPLITS: dict[tuple[str, ...], tuple[str, bool]] = {
    (llama3.SPLIT_PATTERN, "bytes"): ("llama-bpe", True),
    (QWEN2_PATTERN, "bytes"): ("qwen2", False),
    ("digits", "gpt-2"): ("smollm", False),
    ("gpt-2",): ("gpt-2", False),
}


def gguf_vocabulary(folder: Path, rows: int, before: Sequence[int]) -> dict[str, Any]:
    """The fields `tokenizer.*` of a GGUF file.

    Args:
        folder: an exported folder, with tokenizer.model or tokenizer.json, its configs and its chat template.
        rows: of the model's embedding; ids that the vocabulary lacks are filled up with unused tokens.
        before: ids that stand before every document of the training rows.

    Raises:
        UserError: no vocabulary, one that llama.cpp has no rules for, or one with more ids than the embedding has rows.
    """
    whole, pieces = folder / "tokenizer.json", folder / "tokenizer.model"
    if whole.is_file():
        fields, added = _byte_level(whole, rows)
    elif pieces.is_file():
        fields, added = _sentencepiece(pieces, rows)
    else:
        what = "the folder holds neither tokenizer.json nor tokenizer.model"
        raise UserError(what, str(folder), "export it with its vocabulary")
    return fields | _specials(folder, added, before)


def _specials(folder: Path, added: dict[str, int], before: Sequence[int]) -> dict[str, Any]:
    """Ids by role, what stands before a text, and the chat template."""
    told = _read(folder / "tokenizer_config.json")
    found: dict[str, Any] = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = told.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text in added:
            found[f"tokenizer.ggml.{key}_token_id"] = added[text]
    for key, number in zip(("eos", "eot"), _ends(folder), strict=False):
        found[f"tokenizer.ggml.{key}_token_id"] = number
    if len(before) == 1:
        found["tokenizer.ggml.bos_token_id"] = int(before[0])
    found["tokenizer.ggml.add_bos_token"] = len(before) == 1
    found["tokenizer.ggml.add_eos_token"] = False
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else told.get("chat_template")
    if isinstance(text, str) and text:
        found["tokenizer.chat_template"] = text
    return found


def _ends(folder: Path) -> list[int]:
    """Ids that end an answer, as generation_config.json has them, else config.json."""
    for name in ("generation_config.json", "config.json"):
        ends = _read(folder / name).get("eos_token_id")
        if ends is not None:
            return [ends] if isinstance(ends, int) else [int(i) for i in ends]
    return []


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file.name} is not JSON: {error}", str(file), "copy it again") from error
    return content if isinstance(content, dict) else {}


def _filled(listed: dict[int, tuple[str, int]], rows: int, where: Path) -> dict[str, Any]:
    """Tokens and their types by id, filled up to the embedding's rows."""
    if max(listed) >= rows:
        what = f"the vocabulary has an id {max(listed)}, the model's embedding {rows} rows"
        raise UserError(what, str(where), "this tokenizer is not the model's: give the model's own")
    every = [listed.get(i, (f"[PAD{i}]", UNUSED)) for i in range(rows)]
    return {
        "tokenizer.ggml.tokens": [text for text, _ in every],
        "tokenizer.ggml.token_type": [kind for _, kind in every],
    }


# --- tokenizer.json


def _byte_level(file: Path, rows: int) -> tuple[dict[str, Any], dict[str, int]]:
    settings = _read(file)
    try:
        model, added = settings["model"], settings["added_tokens"]
        steps = _steps(settings.get("pre_tokenizer"))
        listed = {int(i): (text, NORMAL) for text, i in model["vocab"].items()}
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"this tokenizer.json is not understood ({error!r})", str(file), "copy it again") from error
    mend = "use the safetensors; llama.cpp has no rules for this tokenizer that are known here"
    if steps not in SPLITS:
        raise UserError(f"no name in llama.cpp for how it splits text: {' then '.join(steps)}", str(file), mend)
    name, ignores = SPLITS[steps]
    if bool(model.get("ignore_merges")) != ignores:
        said = f"ignore_merges is {not ignores} in the file and {ignores} in llama.cpp's {name}"
        raise UserError(said, str(file), mend)
    for token in added:
        listed[int(token["id"])] = (token["content"], CONTROL if token["special"] else USER_DEFINED)
    fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, **_filled(listed, rows, file)}
    # llama.cpp insists on the field, and GGUF has none for an empty list. A merge into what is no token does nothing.
    fields["tokenizer.ggml.merges"] = merges or ["\u0100 \u0100"]
    return fields, {token["content"]: int(token["id"]) for token in added}


def _steps(part: dict[str, Any] | None) -> tuple[str, ...]:
    """What a pre-tokenizer does, in order: a pattern, "digits", "gpt-2" (its pattern, then bytes) or "bytes"."""
    if part is None:
        return ("nothing",)
    kind = part["type"]
    if kind == "Sequence":
        return tuple(step for inner in part["pretokenizers"] for step in _steps(inner))
    if kind == "Digits" and part["individual_digits"]:
        return ("digits",)
    if kind == "ByteLevel" and not part["add_prefix_space"]:
        return ("gpt-2",) if part.get("use_regex", True) else ("bytes",)
    if kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        return (str(part["pattern"].get("Regex")),)
    return (json.dumps(part, ensure_ascii=False),)


# --- SentencePiece


def _sentencepiece(file: Path, rows: int) -> tuple[dict[str, Any], dict[str, int]]:
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # made when it is imported: nothing of it is declared
    model = proto.ModelProto()
    model.ParseFromString(file.read_bytes())
    mend = "use the safetensors; llama.cpp would give other ids"
    if model.trainer_spec.model_type != proto.TrainerSpec.BPE:
        raise UserError(
            "the SentencePiece model is no BPE, and llama.cpp knows bytes for rare characters only there",
            str(file),
            mend,
        )
    normal = model.normalizer_spec
    if normal.precompiled_charsmap or normal.remove_extra_whitespaces:
        raise UserError("the SentencePiece model changes text before it splits it, llama.cpp does not", str(file), mend)
    kinds = {1: NORMAL, 2: UNKNOWN, 3: CONTROL, 4: USER_DEFINED, 5: UNUSED, 6: BYTE}
    listed = {i: (piece.piece, kinds[piece.type]) for i, piece in enumerate(model.pieces)}
    scores = {i: float(piece.score) for i, piece in enumerate(model.pieces)}
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        **_filled(listed, rows, file),
        "tokenizer.ggml.scores": [scores.get(i, UNUSED_SCORE) for i in range(rows)],
        "tokenizer.ggml.add_space_prefix": bool(normal.add_dummy_prefix),
    }
    return fields, {text: i for i, (text, kind) in listed.items() if kind in (CONTROL, UNKNOWN)}
