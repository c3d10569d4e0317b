"""From a step's sums on the host to a record: loss and bits-per-byte by language and category, speed, MFU.

Writes nothing (see `sinks`) and reads no device.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.training.preference import pair_figures
from t_elaine.training.step import SUMS, token_count

Record = dict[str, Any]

# Dense bfloat16 peak, FLOP/s a chip, from the vendors' data sheets; the longest prefix of JAX's device kind wins.
PEAK_FLOPS: Mapping[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Peak FLOP/s of one device, or None where no data sheet gives one (CPUs; float32 on accelerators)."""
    matching = [kind for kind in PEAK_FLOPS if device_kind.startswith(kind)]
    return PEAK_FLOPS[max(matching, key=len)] if matching and dtype == "bfloat16" else None


def flops_per_token(config: LlamaConfig, length: int, frozen: bool = False) -> float:
    """Training FLOPs of one token, recomputation not counted: 6 for each matmul weight and 12·L·H·h·T for attention.

    The count of Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B); the causal half is not taken off, and the
    embedding lookup is no matmul. Frozen weights have no gradient: 4 for each; adapters' own are not counted.
    """
    width, heads = config.head_dim, config.q_heads + 2 * config.kv_heads
    layer = config.embed * width * (heads + config.q_heads) + 3 * config.embed * config.mlp
    weights = config.layers * layer + config.embed * config.vocab_size
    return (4.0 if frozen else 6.0) * weights + 12.0 * config.layers * config.q_heads * width * length


def mfu(
    config: LlamaConfig,
    compute: ComputeConfig,
    length: int,
    rate: float,
    kinds: Sequence[str],
    frozen: bool = False,
) -> float | None:
    """Model FLOPs utilisation: FLOP/s of `rate` tokens/s over the devices' peak; None where a peak is unknown."""
    peaks = [peak_flops(kind, compute.dtype) for kind in kinds]
    if not peaks or any(peak is None for peak in peaks):
        return None
    return rate * flops_per_token(config, length, frozen) / sum(peak for peak in peaks if peak)


def by_group(
    sums_4G: np.ndarray, groups: Sequence[tuple[str, str]], figures: Callable[[np.ndarray], Record] | None = None
) -> Record:
    """Loss (nats a token), bits-per-byte and tokens, overall and by language and category.

    Bits-per-byte = nats over targets that are text / ln 2 / their bytes; special tokens are in neither. Groups without
    a target in this batch are left out.

    Args:
        sums_4G: rows in the order of `step.SUMS`.
        groups: (language, category) of each column.
        figures: sums of other rows → figures, "tokens" among them.
    """
    figures, sums = figures or _figures, np.asarray(sums_4G, np.float64)
    record = figures(sums.sum(axis=1))
    for part, name in enumerate(("language", "category")):
        keys = sorted({group[part] for group in groups})
        columns = {key: [i for i, group in enumerate(groups) if group[part] == key] for key in keys}
        parts = {key: figures(sums[:, where].sum(axis=1)) for key, where in columns.items()}
        record[name] = {key: part for key, part in parts.items() if part["tokens"]}
    return record


def _figures(sums_4: np.ndarray) -> Record:
    nll, tokens, text_nll, count = (float(value) for value in sums_4[: len(SUMS)])
    return {
        "loss": finite(nll / tokens) if tokens else None,
        "bits_per_byte": finite(text_nll / math.log(2) / count) if count else None,
        "tokens": int(tokens),
    }


def finite(value: float) -> float | None:
    """The value, or None for what JSON cannot write."""
    return value if math.isfinite(value) else None


def step_record(step: int, read: Mapping[str, Any], groups: Sequence[tuple[str, str]]) -> Record:
    """The deterministic part of a step's line: equal, bit for bit, in an uninterrupted and a resumed run.

    Args:
        step: number of updates done after this one.
        read: a step's metrics, on the host.
        groups: (language, category) pairs.
    """
    figures = by_group(read["sums"], groups)
    count = figures.pop("tokens")
    if "pairs" in read:
        figures = by_group(read["pairs"], groups, pair_figures)
        del figures["tokens"]
    return {
        "kind": "train",
        "step": step,
        **figures,
        "batch_tokens": count,
        "tokens": token_count(read["tokens"]),
        "learning_rate": float(read["learning_rate"]),
        "grad_norm": finite(float(read["grad_norm"])),
        "skipped": int(read["skipped"]),
        "skipped_in_a_row": int(read["skipped_in_a_row"]),
        **({"z_loss": finite(float(read["z_loss"]))} if "z_loss" in read else {}),
    }


def scalars(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """A record's numbers by flat name ("language/ja/loss"), for TensorBoard."""
    flat: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = float(value)
    return flat
