"""Random parameters made in numpy, since compiling the model's own initialisation takes seconds, and their record."""

import dataclasses
from typing import Any

import jax
import numpy as np

from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.model import llama
from t_elaine.model.config import LlamaConfig


def random_params(config: LlamaConfig, seed: int = 0) -> Any:
    """The tree of `llama.init`, float32 numpy arrays: normal matrices and embeddings, norms of one, biases of zero."""
    rng = np.random.default_rng(seed)

    def leaf(shape: Any, role: str) -> np.ndarray:
        if role in ("norm", "bias"):
            return np.full(shape.shape, role == "norm", np.float32)
        return (config.initializer_range * rng.standard_normal(shape.shape)).astype(np.float32)

    return jax.tree.map(leaf, llama.parameter_shapes(config), llama.parameter_roles(config))


def meta_of(config: LlamaConfig, adapter: dict[str, Any] | None = None) -> CheckpointMeta:
    """The record of a checkpoint that holds parameters alone, as an import makes it."""
    return CheckpointMeta(
        step=0,
        tokens=0,
        row=0,
        vocabulary_sha256="v" * 64,
        model=dataclasses.asdict(config),
        config_hash="",
        adapter=adapter,
        has_optimizer=False,
    )
