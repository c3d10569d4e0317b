"""Our model computed layer by layer from a source of parameters, so that no more than one layer is in memory.

It runs the model's own layer function in float32 with full matmul precision; it is for proofs on a few thousand tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t_elaine.hf import mapping
from t_elaine.hf.importing import Source
from t_elaine.hf.mapping import Weight
from t_elaine.model import llama, rope
from t_elaine.model.config import ComputeConfig, LlamaConfig

EXACT = ComputeConfig(dtype="float32", remat="none", attention="reference")


def hidden(config: LlamaConfig, source: Source, rows: Sequence[np.ndarray]) -> np.ndarray:
    """The residual stream after the final norm for all rows of ids, one after another: float32 [tokens, D]."""
    by_path = {weight.path: weight for weight in mapping.weights(config)}
    length = max(len(row) for row in rows)
    tokens_BT = np.zeros((len(rows), length), np.int32)
    segments_BT = np.zeros((len(rows), length), np.int32)
    for index, row in enumerate(rows):
        tokens_BT[index, : len(row)] = row
        segments_BT[index, : len(row)] = 1
    positions_BT = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], tokens_BT.shape)
    # Other devices than CPUs round float32 matmuls unless told not to.
    with jax.default_matmul_precision("highest"):
        cos, sin = rope.angles(positions_BT, config)
        step = jax.jit(partial(_one_layer, config))
        x_BTD = jnp.asarray(_embed(source, by_path["embed/table"], tokens_BT))
        for layer in range(config.layers):
            x_BTD = step(x_BTD, _layer_params(source, by_path, layer), cos, sin, segments_BT)
            x_BTD.block_until_ready()  # else the next layer is read while this one is still held
        scale_D = jnp.asarray(source(by_path["final_norm/scale"], None, None))
        x_BTD = llama.rms_norm(x_BTD, scale_D, config.norm_eps)
    return np.asarray(x_BTD)[segments_BT == 1]


def head_reader(config: LlamaConfig, source: Source, at_once: bool) -> Callable[[int, int], np.ndarray]:
    """Columns [start, stop) of the output table, float32 [D,v].

    Args:
        config: the model.
        source: the parameters.
        at_once: read the table whole now and cut it, for sources that cannot read a part of a tensor.
    """
    path = "embed/table" if config.tied_embeddings else "head/table"
    weight = next(w for w in mapping.weights(config) if w.path == path)
    whole = source(weight, None, None) if at_once else None

    def columns(start: int, stop: int) -> np.ndarray:
        part = slice(start, stop)
        box = [part, slice(None)] if config.tied_embeddings else [slice(None), part]
        table = source(weight, None, box) if whole is None else whole[tuple(box)]
        return table.T if config.tied_embeddings else table

    return columns


def _embed(source: Source, weight: Weight, tokens_BT: np.ndarray) -> np.ndarray:
    return source(weight, None, None)[tokens_BT]


def _layer_params(source: Source, by_path: dict[str, Weight], layer: int) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, weight in by_path.items():
        if weight.stacked:
            _, group, name = path.split("/")
            tree.setdefault(group, {})[name] = source(weight, layer, None)
    return tree


def _one_layer(
    config: LlamaConfig, x_BTD: jax.Array, w: dict[str, Any], cos: jax.Array, sin: jax.Array, segments_BT: jax.Array
) -> jax.Array:
    return llama._layer(config, EXACT, cos, sin, segments_BT)(x_BTD, w)[0]
