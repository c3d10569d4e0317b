"""An independent forward pass: what a Hugging Face folder computes, in plain numpy or through transformers.

Shares nothing with `mapping`, `importing` or the model: it reads config.json and tensors by their own names, so that a
mistake there shows as a difference. Float32 throughout. For checks on a few thousand tokens, not for speed.
The numpy one holds one layer at a time.
"""

import importlib
import importlib.util
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine.hf import tensors


class NumpyModel:
    """A Llama or Qwen2 folder, computed layer by layer from disk."""

    name = "numpy, float32, layer by layer"

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.tensors = tensors.open_tensors(folder)
        self.heads = self.config["num_attention_heads"]
        self.kv_heads = self.config.get("num_key_value_heads") or self.heads
        self.head_dim = self.config.get("head_dim") or self.config["hidden_size"] // self.heads

    def get(self, name: str, box: Sequence[slice] | None = None) -> np.ndarray:
        """One tensor in float32."""
        return tensors.read(self.tensors[name], box).astype(np.float32, copy=False)

    def hidden(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The float32 residual stream after the final norm of all rows of ids, one after another: [N,D]."""
        name, parts = "model.embed_tokens.weight", []
        for row in rows:
            picked = {int(i): self.get(name, [slice(int(i), int(i) + 1), slice(None)])[0] for i in set(row.tolist())}
            parts.append(np.stack([picked[int(i)] for i in row]))
        x_ND, ends = np.concatenate(parts), np.cumsum([len(row) for row in rows])[:-1]
        for layer in range(self.config["num_hidden_layers"]):
            names = [n for n in self.tensors if n.startswith(f"model.layers.{layer}.") and not n.endswith("inv_freq")]
            x_ND = self._layer(x_ND, {n.split(".", 3)[3]: self.get(n) for n in names}, ends)
        return _norm(x_ND, self.get("model.norm.weight"), self.config["rms_norm_eps"])

    def head_columns(self, start: int, stop: int) -> np.ndarray:
        """The output table for ids [start, stop): float32 [D, stop - start]."""
        tied = self.config.get("tie_word_embeddings", False)
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        return self.get(name, [slice(start, stop), slice(None)]).T

    def logits(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For each row of ids [T]: float32 logits [T,V]."""
        size = self.config["vocab_size"]
        return np.split(self.hidden(rows) @ self.head_columns(0, size), np.cumsum([len(row) for row in rows])[:-1])

    def _layer(self, x_ND: np.ndarray, w: dict[str, np.ndarray], ends: np.ndarray) -> np.ndarray:
        eps = self.config["rms_norm_eps"]
        x = _norm(x_ND, w["input_layernorm.weight"], eps)
        q, k, v = (
            x @ w[f"self_attn.{n}_proj.weight"].T + w.get(f"self_attn.{n}_proj.bias", np.float32(0)) for n in "qkv"
        )
        mixed = [self._attend(*one) for one in zip(*(np.split(y, ends) for y in (q, k, v)), strict=True)]
        x_ND = x_ND + np.concatenate(mixed) @ w["self_attn.o_proj.weight"].T
        x = _norm(x_ND, w["post_attention_layernorm.weight"], eps)
        gate = x @ w["mlp.gate_proj.weight"].T
        gate = gate / (1 + np.exp(-gate))
        return x_ND + (gate * (x @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T

    def _attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        T = len(q)
        q, k, v = (y.reshape(T, -1, self.head_dim).transpose(1, 0, 2) for y in (q, k, v))
        cos, sin = _rotations(self.config, self.head_dim, T)
        q, k = (y * cos + np.concatenate(np.split(y, 2, -1)[::-1], -1) * sin for y in (q, k))
        repeat = self.heads // self.kv_heads
        k, v = np.repeat(k, repeat, 0), np.repeat(v, repeat, 0)
        scores = q @ k.transpose(0, 2, 1) / np.float32(math.sqrt(self.head_dim))
        scores = np.where(np.tri(T, dtype=bool), scores, np.float32(-np.inf))
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        return mixed.transpose(1, 0, 2).reshape(T, -1)


def _norm(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(eps)) * scale


def _rotations(config: dict[str, Any], head_dim: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and signed sine [T,h] in Hugging Face's half-and-half order; Llama 3.1's three bands of wavelengths."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    freq = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    if rope.get("rope_type", rope.get("type", "default")) == "llama3":
        factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
        old = rope["original_max_position_embeddings"]
        for i, f in enumerate(freq):
            wavelength = 2 * math.pi / f
            if wavelength > old / low:
                freq[i] = f / factor
            elif wavelength > old / high:
                smooth = (old / wavelength - low) / (high - low)
                freq[i] = (1 - smooth) * f / factor + smooth * f
    angle = np.outer(np.arange(length), freq).astype(np.float32)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([cos, cos], -1), np.concatenate([-sin, sin], -1)


def transformers_lack(parameters: int) -> str:
    """Why a model of so many parameters cannot be run through transformers here; "" where it can.

    It must take at most half of the memory that is free, in float32. PyTorch is tried, since half an installation of it
    is found like a whole one.
    """
    for module, name in (("transformers", "transformers"), ("torch", "PyTorch")):
        if importlib.util.find_spec(module) is None:
            return f"{name} is not installed"
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 2 * 4 * parameters >= free:
        return f"the model needs {8 * parameters / 1e9:.1f} GB of free memory, there are {free / 1e9:.1f} GB"
    try:
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
        whole = hasattr(torch, "no_grad") and transformers.utils.is_torch_available()
    except (ImportError, OSError, AttributeError) as error:
        return f"PyTorch or transformers does not load ({error})"
    return "" if whole else "transformers finds no PyTorch that it can use"


def transformers_logits(folder: Path) -> tuple[str, Callable[[Sequence[np.ndarray]], list[np.ndarray]]]:
    """The reference's name with versions, and a function from rows of ids [T] to float32 logits [T,V] of each.

    The whole model is in memory as float32. Needs transformers and PyTorch; safetensors only, no remote code.
    """
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )
    model.eval()

    def logits(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        # Padding on the right is after all that a causal model looks at.
        tokens_BT = torch.zeros((len(rows), max(len(row) for row in rows)), dtype=torch.int64)
        for index, row in enumerate(rows):
            tokens_BT[index, : len(row)] = torch.from_numpy(row.astype(np.int64))
        with torch.no_grad():
            scores_BTV = model(tokens_BT, use_cache=False).logits.numpy()
        return [scores[: len(row)] for scores, row in zip(scores_BTV, rows, strict=True)]

    return f"transformers {transformers.__version__}, torch {torch.__version__}, float32", logits


def mean_loss(logits: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> float:
    """Mean cross-entropy in nats of each token after a row's first, given those before it, in float64."""
    total, count = 0.0, 0
    for scores, row in zip(logits, rows, strict=True):
        x = scores[:-1].astype(np.float64)
        top = x.max(-1, keepdims=True)
        norm = np.log(np.exp(x - top).sum(-1)) + top[:, 0]
        total += float((norm - x[np.arange(len(row) - 1), row[1:].astype(np.int64)]).sum())
        count += len(row) - 1
    return total / count
