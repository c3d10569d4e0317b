"""What a model is (`LlamaConfig`) and how it is computed (`ComputeConfig`); Hugging Face's config.json, both ways.

Does not read or write files, and knows no weights: `from_hf` takes the parsed dictionary, `to_hf` gives one.
What the model cannot represent is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t_elaine.errors import UserError

WHERE = "config.json"


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's stretching of the rotary frequencies (Hugging Face's `rope_type: llama3`).

    Args:
        factor: what wavelengths longer than the old context are multiplied by.
        low_freq_factor: wavelengths above `original_max_position / low_freq_factor` are stretched whole.
        high_freq_factor: wavelengths below `original_max_position / high_freq_factor` are left alone.
        original_max_position: the context that the model was pre-trained with.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a Llama-family decoder (Llama 3, 3.1, 3.2; Qwen2 through `qkv_bias`).

    Args:
        vocab_size: V, rows of the embedding.
        embed: D, width of the residual stream.
        mlp: F, width of the gated feed-forward part.
        layers: L.
        q_heads: H, query heads.
        kv_heads: K, key/value heads; divides H.
        head_dim: h, even.
        rope_theta: base of the rotary frequencies.
        rope_scaling: Llama 3.1's stretching, or None.
        norm_eps: added to the mean square in RMSNorm.
        tied_embeddings: the output table is the embedding.
        qkv_bias: biases on q, k and v (Qwen2).
        max_position: longest context that the model claims.
        initializer_range: standard deviation of random initial matrices.
    """

    vocab_size: int
    embed: int
    mlp: int
    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied_embeddings: bool = False
    qkv_bias: bool = False
    max_position: int = 8192
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "embed", "mlp", "layers", "q_heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", "LlamaConfig", "give a positive number")
        if self.q_heads % self.kv_heads:
            raise UserError(
                f"q_heads {self.q_heads} is no multiple of kv_heads {self.kv_heads}",
                "LlamaConfig",
                "each key/value head must serve the same number of query heads",
            )
        if self.head_dim % 2:
            raise UserError(
                f"head_dim {self.head_dim} is odd", "LlamaConfig", "rotary positions turn pairs: make it even"
            )


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the model is computed; changes speed and memory, and results only within rounding.

    Args:
        dtype: "bfloat16" or "float32", for matmuls and the residual stream. Norms, rotary angles, softmax and loss are
            always float32, parameters are stored in float32.
        remat: what the backward pass recomputes: "none" (nothing), "full" (all of a layer but its input), "minimal"
            (all but matmul and attention outputs), "names" (all but the tensors in `saved`).
        saved: for remat="names": some of q, k, v, attention, middle (the residual stream after it), gate, up.
        offloaded: for remat="names": of the same, those that are kept in the host's memory (moved there and back).
        attention: "reference" (scores of a whole row at once), "blocked" (one block of queries at a time, scores
            recomputed in the backward pass), "splash" (JAX's kernel for TPUs), "flash_tpu" (ours) or "flash_gpu"
            (JAX's for GPUs).
        attention_block: queries a block for "blocked"; queries and keys a block for the kernels.
        attention_fused_backward: for "splash": one backward kernel for all gradients instead of two.
        loss_chunk: sequence positions whose logits exist at the same time.
        scan_layers: layers as one compiled loop; otherwise unrolled (longer compile).
        scan_unroll: layers a loop step.
    """

    dtype: str = "bfloat16"
    remat: str = "full"
    saved: tuple[str, ...] = ()
    offloaded: tuple[str, ...] = ()
    attention: str = "reference"
    attention_block: int = 128
    attention_fused_backward: bool = False
    loss_chunk: int = 512
    scan_layers: bool = True
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (
            ("dtype", ("bfloat16", "float32")),
            ("remat", ("none", "full", "minimal", "names")),
            ("attention", ("reference", "blocked", "splash", "flash_tpu", "flash_gpu")),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"{name} is {getattr(self, name)!r}", "ComputeConfig", f"give one of {', '.join(allowed)}"
                )
        for name in ("attention_block", "loss_chunk", "scan_unroll"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", "ComputeConfig", "give a positive number")
        for name in ("saved", "offloaded"):
            unknown = set(getattr(self, name)) - set(SAVEABLE)
            if unknown or (getattr(self, name) and self.remat != "names"):
                nothing = f"{name} does nothing with remat={self.remat!r}"
                what = f"no tensors named {sorted(unknown)}" if unknown else nothing
                raise UserError(what, f"ComputeConfig.{name}", f"give some of {', '.join(SAVEABLE)} and remat='names'")
        if both := sorted(set(self.saved) & set(self.offloaded)):
            what = f"{', '.join(both)}: both saved on the device and offloaded to the host"
            raise UserError(what, "ComputeConfig.offloaded", "name each tensor in one of the two")


OFFLOAD = "pinned_host"  # JAX's name of the host's memory that devices reach
SAVEABLE = ("q", "k", "v", "attention", "middle", "gate", "up")

FIELDS = {
    "vocab_size": "vocab_size",
    "embed": "hidden_size",
    "mlp": "intermediate_size",
    "layers": "num_hidden_layers",
    "q_heads": "num_attention_heads",
}

MUST_BE = {
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
    "attention_dropout": (0, 0.0, None),
    "partial_rotary_factor": (1, 1.0, None),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
}


def from_hf(hf: Mapping[str, Any]) -> LlamaConfig:
    """Read a parsed config.json (transformers 4's or 5's spelling of RoPE).

    Raises UserError for another architecture, a missing field, or a feature that this model does not compute.
    """
    kind = hf.get("model_type")
    if kind not in ("llama", "qwen2"):
        raise UserError(f"model_type is {kind!r}", WHERE, "give a model of type llama or qwen2")
    for name, allowed in MUST_BE.items():
        if name in hf and hf[name] not in allowed:
            raise UserError(f"{name} is {hf[name]!r}", WHERE, f"only {name} = {allowed[0]!r} is supported")
    if kind == "llama" and hf.get("attention_bias"):
        raise UserError(
            "attention_bias is true", WHERE, "a Llama with a bias on its output projection is not supported"
        )
    if "sliding_attention" in (hf.get("layer_types") or ()):
        raise UserError("layer_types names sliding_attention", WHERE, "only full attention is supported")
    missing = [name for name in (*FIELDS.values(), "rms_norm_eps") if name not in hf]
    if missing:
        raise UserError(f"no {', '.join(missing)}", WHERE, "give the config.json of a whole model")
    theta, scaling = _read_rope(hf)
    sizes = {ours: int(hf[theirs]) for ours, theirs in FIELDS.items()}
    return LlamaConfig(
        **sizes,
        kv_heads=int(hf.get("num_key_value_heads") or sizes["q_heads"]),
        head_dim=int(hf.get("head_dim") or sizes["embed"] // sizes["q_heads"]),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=float(hf["rms_norm_eps"]),
        tied_embeddings=bool(hf.get("tie_word_embeddings", False)),
        qkv_bias=kind == "qwen2",
        max_position=int(hf.get("max_position_embeddings", 2048 if kind == "llama" else 32768)),
        initializer_range=float(hf.get("initializer_range", 0.02)),
    )


def from_record(fields: Mapping[str, Any]) -> LlamaConfig:
    """The model's shape from the plain values of a checkpoint's record."""
    scaling = fields.get("rope_scaling")
    return LlamaConfig(**{**fields, "rope_scaling": RopeScaling(**scaling) if scaling else None})


def _read_rope(hf: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    new, old = hf.get("rope_parameters") or {}, hf.get("rope_scaling") or {}
    theta = new.get("rope_theta", hf.get("rope_theta", 10000.0))
    if new and "rope_theta" in hf and hf["rope_theta"] != theta:
        raise UserError(
            f"rope_theta is {hf['rope_theta']} at the top and {theta} in rope_parameters", WHERE, "make both the same"
        )
    rope = new or old
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise UserError(f"rope_type is {kind!r}", WHERE, "only 'default' and 'llama3' are supported")
    scaling = RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_position=int(rope["original_max_position_embeddings"]),
    )
    return float(theta), scaling


def to_hf(config: LlamaConfig, dtype: str) -> dict[str, Any]:
    """The config.json of this model, with RoPE in both spellings, so that old and new readers agree.

    Args:
        config: the model.
        dtype: of the weights beside it, "float32" or "bfloat16".

    Token ids (`bos_token_id` …) are not known here; the exporter adds them.
    """
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        rope = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_position,
        }
    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": False, "mlp_bias": False}
    if config.qkv_bias:
        kind = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False}
    return {
        **kind,
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else rope,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": config.max_position,
        "initializer_range": config.initializer_range,
        "use_cache": True,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
