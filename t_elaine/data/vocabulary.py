"""One small interface over three kinds of vocabulary: tokenizer.json, Llama 3's tiktoken file, SentencePiece.

Encoding never produces a special id, whatever the text says: specials are put in by framing and chat templates only.
This file does not train tokenizers and does not know SeqIO (see data/tasks.py).
"""

import base64
import binascii
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine import paths
from t_elaine.data import llama3
from t_elaine.data.byte_level import byte_characters, fast_encoder, missing_bytes
from t_elaine.errors import UserError

KINDS = ("huggingface", "tiktoken", "sentencepiece")
_SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_SPACE = "\u2581"  # SentencePiece writes a space as this character


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Text ↔ token ids.

    Attributes:
        kind: one of KINDS.
        path: the vocabulary file itself; `sha256` is its digest and the vocabulary's identity.
        size: number of ids, the largest id + 1 (a model's embedding may have more rows).
        bos, eos, pad: ids, or None where the vocabulary has none.
        special: text → id of every special token.
        pieces: the bytes that each id stands for, b"" for ids that do not exist.
        differs: how decoding may differ from the text; "" where it never does and byte lengths always add up.
        fast: whether ids come through tiktoken.
    """

    kind: str
    path: Path
    sha256: str
    size: int
    bos: int | None
    eos: int | None
    pad: int | None
    special: dict[str, int]
    pieces: tuple[bytes, ...] = field(repr=False)
    differs: str
    fast: bool
    encode_batch: Callable[[list[str]], list[np.ndarray]] = field(repr=False)
    """list of texts → list of uint32 [tokens]; never a special id."""

    @property
    def special_ids(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.special.values())))

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def decode(self, ids: Any) -> str:
        """The text of `ids`; specials appear as their text, bytes that are no UTF-8 as U+FFFD."""
        return b"".join(self.pieces[int(i)] for i in ids).decode("utf-8", "replace")

    def byte_lengths(self) -> np.ndarray:
        """int32 [size]: UTF-8 bytes that each id stands for (part of a character: its own bytes); 0 for specials."""
        lengths = np.array([len(piece) for piece in self.pieces], np.int32)
        lengths[list(self.special_ids)] = 0
        return lengths

    def special_id(self, name: str) -> int:
        """The id of "bos", "eos", "pad" or of a special token's text.

        Raises:
            UserError: this vocabulary has no such token.
        """
        found = getattr(self, name) if name in ("bos", "eos", "pad") else self.special.get(name)
        if found is None:
            some = ", ".join(list(self.special)[:6]) or "none"
            raise UserError(f"the vocabulary has no special token {name!r}", str(self.path), f"it has: {some}")
        return found

    def files(self) -> dict[str, Path]:
        """File name → path of everything that belongs to the vocabulary and exists."""
        sides = {name: self.path.parent / name for name in _SIDE_FILES}
        return {self.path.name: self.path} | {name: path for name, path in sides.items() if path.is_file()}

    def describe(self) -> dict[str, Any]:
        """What a store's manifest says of it."""
        return {
            "kind": self.kind,
            "file": self.path.name,
            "sha256": self.sha256,
            "size": self.size,
            "bos": self.bos,
            "eos": self.eos,
            "pad": self.pad,
            "special_ids": list(self.special_ids),
            "differs": self.differs,
        }


def load_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """Load a vocabulary from its file, a folder that holds tokenizer.json or tokenizer.model, or a run folder.

    Raises:
        UserError: no such file, a kind that is not known, or a damaged file.
    """
    file = _find(_here(path))
    content = file.read_bytes()
    if not content:
        raise UserError("the vocabulary file is empty", str(file), "copy it again")
    digest = hashlib.sha256(content).hexdigest()
    if file.suffix == ".json":
        return _load_huggingface(file, content, digest)
    if _first_line_is_rank(content):
        return _load_tiktoken(file, content, digest)
    return _load_sentencepiece(file, content, digest)


def save_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    """Copy the vocabulary's files into `folder`, with vocabulary.json and byte_lengths.npy beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in vocabulary.files().items():
        shutil.copyfile(path, folder / name)
    np.save(folder / "byte_lengths.npy", vocabulary.byte_lengths(), allow_pickle=False)
    text = json.dumps(vocabulary.describe(), indent=1)
    (folder / "vocabulary.json").write_text(text + "\n", encoding="utf-8")


def _here(path: str | os.PathLike[str]) -> Path:
    """A path on this machine: what lies in an object store is copied, of a run folder its vocabulary alone."""
    if not paths.is_remote(path):
        return Path(path)
    inside = paths.join(path, "vocabulary")
    try:
        return Path(paths.brought_here(inside if paths.is_folder(inside) else path))
    except FileNotFoundError as error:
        mend = "check the path; a model's folder is made by import_hf"
        raise UserError("there is no such vocabulary", os.fspath(path), mend) from error


def _find(path: Path) -> Path:
    if path.is_dir():
        # A run folder (an import too) keeps its vocabulary in a folder of that name.
        for folder in (path, path / "vocabulary"):
            for name in ("tokenizer.json", "tokenizer.model"):
                if (folder / name).is_file():
                    return folder / name
        mend = "give a folder with tokenizer.json or tokenizer.model, or the file itself"
        raise UserError("the folder holds no vocabulary", str(path), mend)
    if not path.is_file():
        mend = "check the path; a model's folder is made by import_hf"
        raise UserError("there is no such vocabulary", str(path), mend)
    return path


def _bytes_or_empty(pieces: dict[int, bytes]) -> tuple[bytes, ...]:
    return tuple(pieces.get(i, b"") for i in range(max(pieces) + 1))


# --- Hugging Face


def _load_huggingface(file: Path, content: bytes, digest: str) -> Vocabulary:
    import tokenizers

    try:
        settings = json.loads(content)
        added = settings["added_tokens"]
        tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the tokenizers library raises bare Exception
        mend = "copy the file again from the model's folder"
        told = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"tokenizer.json cannot be read: {told}", str(file), mend) from error
    tokenizer.encode_special_tokens = True  # text that looks like a special token stays text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    pieces, byte_level = _huggingface_pieces(settings, file)
    special = {t["content"]: t["id"] for t in added if t["special"]}
    pieces |= {t["id"]: t["content"].encode() for t in added}

    def slow(texts: list[str]) -> list[np.ndarray]:
        encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(e.ids, np.uint32) for e in encoded]

    fast = fast_encoder(settings, slow) if byte_level else None
    named = _named_specials(file.parent, special)
    return Vocabulary(
        kind="huggingface",
        path=file,
        sha256=digest,
        size=max(pieces) + 1,
        **named,
        special=special,
        pieces=_bytes_or_empty(pieces),
        differs=_huggingface_differs(settings, byte_level),
        fast=fast is not None,
        encode_batch=fast or slow,
    )


def _huggingface_pieces(settings: dict[str, Any], file: Path) -> tuple[dict[int, bytes], bool]:
    """id → bytes, and whether the model is byte-level (else SentencePiece's convention with byte fallback)."""
    model, decoder = settings["model"], json.dumps(settings["decoder"])
    vocabulary = model["vocab"] if isinstance(model.get("vocab"), dict) else None
    if model.get("type") != "BPE" or vocabulary is None:
        mend = "use a byte-level BPE or a byte-fallback BPE vocabulary, as Llama, Qwen2 and SmolLM have"
        raise UserError(f"a {model.get('type')} tokenizer cannot give text back exactly", str(file), mend)
    if '"ByteLevel"' in decoder:
        table = byte_characters()
        return {i: bytes(table[c] for c in t) for t, i in vocabulary.items() if all(c in table for c in t)}, True
    if model.get("byte_fallback"):
        return {i: _sentencepiece_bytes(token) for token, i in vocabulary.items()}, False
    mend = "use a byte-level BPE or a byte-fallback BPE vocabulary"
    raise UserError("the tokenizer has neither byte-level tokens nor byte fallback", str(file), mend)


def _huggingface_differs(settings: dict[str, Any], byte_level: bool) -> str:
    if not byte_level:
        return f"U+2581 becomes a space{'; the normaliser changes text' if settings['normalizer'] else ''}"
    # 0xC0, 0xC1 and 0xF5 upward never stand in UTF-8.
    lost = [b for b in missing_bytes(settings["model"]) if b not in (0xC0, 0xC1) and b < 0xF5]
    notes = ["the normaliser changes text"] if settings["normalizer"] else []
    notes += [f"characters with these UTF-8 bytes are dropped: {bytes(lost).hex(' ')}"] if lost else []
    return "; ".join(notes)


def _named_specials(folder: Path, special: dict[str, int]) -> dict[str, int | None]:
    """bos, eos and pad as the model's side files name them."""
    found: dict[str, int | None] = {"bos": None, "eos": None, "pad": None}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{name} is not JSON: {error}", str(path), "copy it again") from error
        for key in found:
            token = content.get(f"{key}_token")
            token = token.get("content") if isinstance(token, dict) else token
            found[key] = special.get(token, found[key]) if token else found[key]
    return found


# --- tiktoken (Llama 3)


def _first_line_is_rank(content: bytes) -> bool:
    first = content[:400].split(b"\n")[0].split()
    return len(first) == 2 and first[1].isdigit()


def _load_tiktoken(file: Path, content: bytes, digest: str) -> Vocabulary:
    import tiktoken

    try:
        lines = [line.split() for line in content.splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (ValueError, binascii.Error) as error:
        raise UserError("the tokenizer file is damaged or cut short", str(file), "copy it again") from error
    if len(ranks) != llama3.RANKS or sorted(ranks.values()) != list(range(llama3.RANKS)):
        what = f"a tiktoken file of {len(ranks)} ranks; Llama 3's has {llama3.RANKS}"
        mend = "use Llama 3's tokenizer.model, or the model's tokenizer.json"
        raise UserError(what, str(file), mend)
    encoding = tiktoken.Encoding(
        name="llama3", pat_str=llama3.SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=llama3.special_tokens()
    )
    special = llama3.special_tokens()
    pieces = {rank: piece for piece, rank in ranks.items()} | {i: text.encode() for text, i in special.items()}
    return Vocabulary(
        kind="tiktoken",
        path=file,
        sha256=digest,
        size=len(pieces),
        bos=special[llama3.BOS],
        eos=special[llama3.EOS],
        pad=special[llama3.PAD],
        special=special,
        pieces=_bytes_or_empty(pieces),
        differs="",
        fast=True,
        encode_batch=functools.partial(_encode_ordinary, encoding),
    )


def _encode_ordinary(encoding: Any, texts: list[str]) -> list[np.ndarray]:
    # No special token is allowed and none is forbidden: their text is text. A seventh faster than through Python lists.
    return [encoding.encode_to_numpy(text, disallowed_special=()) for text in texts]


# --- SentencePiece


def _load_sentencepiece(file: Path, content: bytes, digest: str) -> Vocabulary:
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        what = "the file is neither a tiktoken nor a SentencePiece vocabulary, or it is damaged"
        raise UserError(what, str(file), "copy it again, or give the model's tokenizer.json") from error
    ids = range(model.get_piece_size())
    special = {model.id_to_piece(i): i for i in ids if model.is_control(i) or model.is_unknown(i) or model.is_unused(i)}
    if not any(model.is_byte(i) for i in ids):
        mend = "train it with byte_fallback=True"
        raise UserError("the SentencePiece model has no byte fallback, so rare characters are lost", str(file), mend)
    pieces = {i: _sentencepiece_bytes(model.id_to_piece(i)) for i in ids}
    probe = "  a  b\tｶﾞ½\n "
    plain = model.decode(model.encode(probe)) == probe
    named = {name: i if (i := getattr(model, f"{name}_id")()) >= 0 else None for name in ("bos", "eos", "pad")}
    return Vocabulary(
        kind="sentencepiece",
        path=file,
        sha256=digest,
        size=len(ids),
        **named,
        special=special,
        pieces=_bytes_or_empty(pieces),
        differs=f"U+2581 becomes a space{'' if plain else '; the normaliser changes text'}",
        fast=False,
        encode_batch=lambda texts: [np.array(found, np.uint32) for found in model.encode(texts, num_threads=1)],
    )


def _sentencepiece_bytes(piece: str) -> bytes:
    """The bytes of a piece: <0xE3> is one byte, the mark for a space is a space."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE, " ").encode()
