"""Tiny models of every supported family for the tests of this folder: config.json dictionaries and distinct tensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine.hf import mapping, tensors
from t_elaine.model import config as model_config

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED["original_max_position_embeddings"] = 64
FAMILIES: dict[str, dict[str, Any]] = {
    "llama3": BASE,
    "llama31": {**BASE, "rope_scaling": SCALED},
    "llama32_tied": {**BASE, "rope_scaling": {**SCALED, "factor": 32.0}, "tie_word_embeddings": True},
    "qwen2": {
        **{key: value for key, value in BASE.items() if key not in ("attention_bias", "mlp_bias")},
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": False,
    },
}


def distinct_values(shape: tuple[int, ...], seed: int, dtype: str = "float32") -> np.ndarray:
    """Random values, all different from those of any other seed with near certainty."""
    scale = 0.1 if len(shape) > 1 else 1.0
    values = np.random.default_rng(seed).normal(float(len(shape) == 1), scale, shape).astype(np.float32)
    return values.astype(tensors.DTYPES[tensors.TAGS[dtype]])


def write_model(folder: Path, family: str, dtype: str = "float32", shard_bytes: int = tensors.SHARD_BYTES) -> Path:
    """A Hugging Face folder (config.json and weights) of a tiny model; no two tensors hold the same values."""
    folder.mkdir(parents=True)
    config = model_config.from_hf(FAMILIES[family])
    listed = mapping.hf_tensors(config)
    seeds = {tensor.name: number for number, tensor in enumerate(listed)}
    shapes = {tensor.name: tensor.shape for tensor in listed}
    planned = [tensors.Planned(name=t.name, tag=tensors.TAGS[dtype], shape=t.shape) for t in listed]
    tensors.write_tensors(folder, planned, lambda n: distinct_values(shapes[n], seeds[n], dtype), shard_bytes)
    (folder / "config.json").write_text(json.dumps({**FAMILIES[family], "dtype": dtype}), encoding="utf-8")
    return folder
