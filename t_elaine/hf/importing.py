"""A Hugging Face folder → the parameters of our model, each device's piece read straight from the file.

It checks names, shapes and dtypes of every tensor before any is read. It neither fetches (`hub.py`) nor saves
(`checkpoints.writing`); the command puts these together.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t_elaine.errors import UserError
from t_elaine.hf import mapping, tensors
from t_elaine.hf.mapping import Weight
from t_elaine.hf.tensors import TensorInfo
from t_elaine.model import config as model_config
from t_elaine.model.config import LlamaConfig

# One layer of a parameter (or a box of it), float32, in our layout: what proofs and imports read from.
Source = Callable[[Weight, int | None, Sequence[slice] | None], np.ndarray]

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def read_config(folder: Path) -> LlamaConfig:
    """The model's shape from a folder's config.json.

    Raises:
        UserError: no config.json, no JSON, or a model that ours cannot represent (which feature is named).
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError("there is no config.json", str(folder), "give the folder of a Hugging Face model")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise UserError(f"config.json cannot be read ({problem})", str(file), "copy the file again") from problem
    if not isinstance(values, dict):
        raise UserError("config.json holds no object", str(file), "copy the file again")
    try:
        return model_config.from_hf(values)
    except UserError as problem:
        raise UserError(problem.what, str(file), problem.mend) from problem


def check_tensors(infos: dict[str, TensorInfo], config: LlamaConfig, folder: Path) -> None:
    """Every tensor of the config is there with its shape and a dtype we read, and nothing else that matters is.

    Raises:
        UserError: the first tensor that is missing, unexpected, of another shape or dtype; a head that differs from the
            embedding although config.json ties them.
    """
    expected = {tensor.name: tensor.shape for tensor in mapping.hf_tensors(config)}
    where, mend = str(folder), "config.json and the weights must come from one and the same model"
    if missing := [name for name in expected if name not in infos]:
        raise UserError(f"{len(missing)} tensors are missing, first {missing[0]}", where, mend)
    stray = [n for n in infos if n not in expected and not n.endswith("rotary_emb.inv_freq")]
    if config.tied_embeddings and HEAD in stray:
        _check_tied(infos, where)
        stray.remove(HEAD)
    if stray:
        raise UserError(f"{len(stray)} tensors have no place in this model, first {stray[0]}", where, mend)
    for name, shape in expected.items():
        info = infos[name]
        if info.shape != shape:
            raise UserError(f"{name} has shape {list(info.shape)}, config.json makes it {list(shape)}", where, mend)
        if info.tag not in tensors.DTYPES:
            raise UserError(
                f"{name} has dtype {info.tag}", where, "give float32, bfloat16 or float16 weights, not quantised ones"
            )


def _check_tied(infos: dict[str, TensorInfo], where: str) -> None:
    head, table = infos[HEAD], infos[EMBEDDING]
    same = head.shape == table.shape and head.tag == table.tag
    for start in range(0, head.shape[0], 4096) if same else ():
        rows = [slice(start, min(start + 4096, head.shape[0])), slice(None)]
        same = same and tensors.read(head, rows).tobytes() == tensors.read(table, rows).tobytes()
    if not same:
        mend = "set tie_word_embeddings to false in config.json if both tables are meant"
        raise UserError(f"config.json ties the embeddings, but {HEAD} differs from {EMBEDDING}", where, mend)


def hf_source(infos: dict[str, TensorInfo], config: LlamaConfig) -> Source:
    """The parameters as a folder's files hold them: float32 from any float dtype (widening is exact)."""

    def get(weight: Weight, layer: int | None, box: Sequence[slice] | None = None) -> np.ndarray:
        info = infos[weight.name.format(layer=layer)]
        values = mapping.from_hf(weight, config, lambda part: tensors.read(info, part), box)
        return values.astype(np.float32, copy=False)

    return get


def load_params(source: Source, config: LlamaConfig, shardings: Any) -> dict[str, Any]:
    """The parameter tree, float32, laid out as `shardings` (the same tree of NamedShardings) says.

    Each device's piece is filled layer by layer from the source; beside the pieces, one layer's piece is in memory.
    """
    tree: dict[str, Any] = {}
    for weight in mapping.weights(config):
        *parents, last = weight.path.split("/")
        node, sharding = tree, shardings
        for key in parents:
            node, sharding = node.setdefault(key, {}), sharding[key]
        node[last] = _load(source, weight, config, sharding[last])
    return tree


def _load(source: Source, weight: Weight, config: LlamaConfig, sharding: Any) -> jax.Array:
    one = mapping.our_shape(weight, config)
    shape = (config.layers, *one) if weight.stacked else one
    pieces: dict[tuple[tuple[int, int], ...], np.ndarray] = {}  # replicas ask for the same piece again

    def piece(index: Any) -> np.ndarray:
        ranges = tuple(part.indices(n)[:2] for part, n in zip(index, shape, strict=True))
        if ranges not in pieces:
            pieces[ranges] = fill(ranges)
        return pieces[ranges]

    def fill(ranges: tuple[tuple[int, int], ...]) -> np.ndarray:
        out = np.empty([stop - start for start, stop in ranges], np.float32)
        if not weight.stacked:
            out[...] = source(weight, None, [slice(*r) for r in ranges])
            return out
        for layer in range(*ranges[0]):
            out[layer - ranges[0][0]] = source(weight, layer, [slice(*r) for r in ranges[1:]])
        return out

    return jax.make_array_from_callback(shape, sharding, piece)
