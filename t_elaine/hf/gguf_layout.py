"""What a GGUF file holds of a model: names and order of its tensors, their number formats, and the fields of its shape.

One table between our parameters and llama.cpp's names. No file is opened here and the package gguf is not needed.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; block formats: ggml-common.h of the same repository.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from t_elaine.errors import UserError
from t_elaine.hf import mapping
from t_elaine.hf.mapping import HfTensor
from t_elaine.model import rope
from t_elaine.model.config import LlamaConfig, RopeScaling

LLAMA, QWEN2 = "llama", "qwen2"
ROPE_FREQS = "rope_freqs.weight"
SCALING = "t_elaine.rope_scaling"  # GGUF has the factors alone; what they were made of is kept beside them
NAMES = {
    "embed/table": "token_embd.weight",
    "layers/attention_norm/scale": "blk.{layer}.attn_norm.weight",
    "layers/attention/q": "blk.{layer}.attn_q.weight",
    "layers/attention/k": "blk.{layer}.attn_k.weight",
    "layers/attention/v": "blk.{layer}.attn_v.weight",
    "layers/attention/o": "blk.{layer}.attn_output.weight",
    "layers/attention/q_bias": "blk.{layer}.attn_q.bias",
    "layers/attention/k_bias": "blk.{layer}.attn_k.bias",
    "layers/attention/v_bias": "blk.{layer}.attn_v.bias",
    "layers/mlp_norm/scale": "blk.{layer}.ffn_norm.weight",
    "layers/mlp/gate": "blk.{layer}.ffn_gate.weight",
    "layers/mlp/up": "blk.{layer}.ffn_up.weight",
    "layers/mlp/down": "blk.{layer}.ffn_down.weight",
    "final_norm/scale": "output_norm.weight",
    "head/table": "output.weight",
}
TURNED = ("layers/attention/q", "layers/attention/k")
TABLES = ("embed/table", "head/table")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A number format: `block` values of a row take `nbytes` bytes. `tables` is the format of embedding and head."""

    name: str
    block: int
    nbytes: int
    tables: str


# Embedding and head stay at 8 bits where the matrices have fewer, as in llama.cpp's own mixtures: they take few of a
# large model's bytes and every token passes through them.
KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="f32", block=1, nbytes=4, tables="f32"),
        Kind(name="f16", block=1, nbytes=2, tables="f16"),
        Kind(name="bf16", block=1, nbytes=2, tables="bf16"),
        Kind(name="q8_0", block=32, nbytes=34, tables="q8_0"),
        Kind(name="q5_1", block=32, nbytes=24, tables="q8_0"),
        Kind(name="q5_0", block=32, nbytes=22, tables="q8_0"),
        Kind(name="q4_1", block=32, nbytes=20, tables="q8_0"),
        Kind(name="q4_0", block=32, nbytes=18, tables="q8_0"),
    )
}


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor of the file: name, rows-first shape, format; the Hugging Face tensor that it is.

    `heads` is how many heads have their rows in the order of pairs, 0 where rows stand as they do there.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    hf: HfTensor
    heads: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) // self.kind.block * self.kind.nbytes


def kind_of(name: str) -> Kind:
    """A format by its name.

    Raises:
        UserError: it is not known, or one that only llama.cpp's own program writes.
    """
    if name in KINDS:
        return KINDS[name]
    mend = f"give some of {', '.join(KINDS)}"
    if "_k" in name or name.startswith("iq"):
        mend += f"; for {name}, export f16 and give that file to llama.cpp's llama-quantize"
    raise UserError(f"the quantisation {name!r} is not written here", "--quantize", mend)


def architecture(config: LlamaConfig) -> str:
    """llama.cpp's name for the family: biases on q, k and v are Qwen2's.

    Raises:
        UserError: llama.cpp's program for the family cannot compute this shape.
    """
    if not config.qkv_bias:
        return LLAMA
    where = "config.json"
    if config.rope_scaling:
        what = "llama.cpp's Qwen2 has no llama3 rope scaling, and this model has biases on q, k and v with it"
        raise UserError(what, where, "use the safetensors; GGUF has no place for this model")
    if config.q_heads * config.head_dim != config.embed:
        what = f"llama.cpp's Qwen2 takes heads of {config.embed} values together, this model has "
        what += f"{config.q_heads} of {config.head_dim}"
        raise UserError(what, where, "use the safetensors; GGUF has no place for this model")
    return QWEN2


def plan(config: LlamaConfig, quantization: str) -> list[GgufTensor]:
    """The model's tensors as the file has them, in its order.

    Raises:
        UserError: an unknown format, or rows that cannot be cut into its blocks.
    """
    kind, paired = kind_of(quantization), architecture(config) == LLAMA
    found = []
    for tensor in mapping.hf_tensors(config):
        path = tensor.weight.path
        its = KINDS["f32"] if len(tensor.shape) == 1 else KINDS[kind.tables] if path in TABLES else kind
        if tensor.shape[-1] % its.block:
            what = f"{tensor.name} has rows of {tensor.shape[-1]} values, {its.name} packs {its.block} together"
            raise UserError(what, "--quantize", "give f16 or bf16, which have no blocks")
        heads = {"q": config.q_heads, "k": config.kv_heads}[path[-1]] if paired and path in TURNED else 0
        name = NAMES[path].format(layer=tensor.layer)
        found.append(GgufTensor(name=name, shape=tensor.shape, kind=its, hf=tensor, heads=heads))
    return found


def pair(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of some heads of q or k in llama.cpp's order: it turns neighbours 2j, 2j+1, Hugging Face j, j + h/2."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def unpair(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `pair`."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def shape_fields(config: LlamaConfig) -> dict[str, Any]:
    """Fields of the model's shape: name → value (int or float)."""
    family = architecture(config)
    found: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position,
        "embedding_length": config.embed,
        "block_count": config.layers,
        "feed_forward_length": config.mlp,
        "attention.head_count": config.q_heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.freq_base": float(config.rope_theta),
        "rope.dimension_count": config.head_dim,
    }
    fields = {f"{family}.{name}": value for name, value in found.items()}
    for name, value in vars(config.rope_scaling).items() if config.rope_scaling else ():
        fields[f"{SCALING}.{name}"] = value
    return fields


def rope_factors(config: LlamaConfig) -> np.ndarray | None:
    """What llama.cpp divides the rotary frequencies by, float32 [h/2]; None where nothing is scaled."""
    if config.rope_scaling is None:
        return None
    plain, scaled = (rope.frequencies(config.head_dim, config.rope_theta, s) for s in (None, config.rope_scaling))
    return (plain / scaled).astype(np.float32)


def config_of(fields: Mapping[str, Any], tied: bool) -> LlamaConfig:
    """The model's shape from a file's fields; the inverse of `shape_fields`.

    Raises:
        UserError: another family, or a field is missing.
    """
    family = fields.get("general.architecture")
    if family not in (LLAMA, QWEN2):
        raise UserError(
            f"the file holds a model of the family {family!r}", "general.architecture", "give llama or qwen2"
        )

    def get(name: str) -> Any:
        if f"{family}.{name}" not in fields:
            raise UserError(f"the field {family}.{name} is missing", "GGUF", "export the model again")
        return fields[f"{family}.{name}"]

    scaling: dict[str, Any] = {
        name.removeprefix(f"{SCALING}."): value if isinstance(value, int) else decimal(value)
        for name, value in fields.items()
        if name.startswith(SCALING)
    }
    return LlamaConfig(
        vocab_size=get("vocab_size"),
        embed=get("embedding_length"),
        mlp=get("feed_forward_length"),
        layers=get("block_count"),
        q_heads=get("attention.head_count"),
        kv_heads=get("attention.head_count_kv"),
        head_dim=get("rope.dimension_count"),
        rope_theta=decimal(get("rope.freq_base")),
        rope_scaling=RopeScaling(**scaling) if scaling else None,
        norm_eps=decimal(get("attention.layer_norm_rms_epsilon")),
        tied_embeddings=tied,
        qkv_bias=family == QWEN2,
        max_position=get("context_length"),
    )


def decimal(value: float) -> float:
    """The short decimal that was meant: GGUF keeps 1e-5 as a float32."""
    return float(str(np.float32(value)))
