"""Reads a GGUF file by itself into our model, and says whether it holds what it was made from.

Every value of the file must lie as near to its source as its format allows; the allowance is computed here, from the
source and the formats' definition (ggml-common.h), not by the code that rounded. It writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine.errors import UserError
from t_elaine.hf import gguf_layout, gguf_writing, importing, mapping, tensors
from t_elaine.hf.gguf_layout import GgufTensor
from t_elaine.hf.importing import Source
from t_elaine.hf.mapping import Weight
from t_elaine.model.config import LlamaConfig

HALF = 2.0**-11  # of a float16's value, largest error of rounding to it
TINY = 2.0**-25  # the same, where it is subnormal


@dataclass(frozen=True, kw_only=True)
class GgufModel:
    """A file that was opened: the shape it gives, its fields, its parameters in our layout."""

    config: LlamaConfig
    fields: dict[str, Any]
    source: Source
    rows: Any  # (tensor name, slice of rows) → float32, as the file has them


def open_gguf(file: Path) -> GgufModel:
    """Open a file that this project exported.

    Raises:
        UserError: no GGUF, a file that is cut off, a family or a rope scaling that cannot be read.
    """
    gguf = gguf_writing.library()
    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, IndexError, KeyError, OSError) as problem:
        raise UserError(f"this is no whole GGUF file ({problem})", str(file), "export it again") from problem
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    found = {tensor.name: tensor for tensor in reader.tensors}
    config = gguf_layout.config_of(fields, tied=gguf_layout.NAMES["head/table"] not in found)
    _check_rope(found, config, file)
    names = _check_names(found, config, file)

    def rows(name: str, part: slice) -> np.ndarray:
        tensor = found[name]
        with np.errstate(invalid="ignore"):  # a step that is infinite or no number: `compare` tells
            return gguf.quants.dequantize(np.ascontiguousarray(tensor.data[part]), tensor.tensor_type)

    return GgufModel(config=config, fields=fields, source=_source(names, config, rows), rows=rows)


def _check_names(found: dict[str, Any], config: LlamaConfig, file: Path) -> dict[tuple[str, int | None], GgufTensor]:
    """The file's tensors by our path and layer; all are there with their shapes."""
    plan = gguf_layout.plan(config, "f32")
    stray = sorted(set(found) - {t.name for t in plan} - {gguf_layout.ROPE_FREQS})
    for tensor in plan:
        shape = tuple(int(n) for n in reversed(found[tensor.name].shape)) if tensor.name in found else None
        if shape != tensor.shape:
            what = f"{tensor.name} is missing" if shape is None else f"{tensor.name} has shape {shape}"
            raise UserError(f"{what}; the fields make it {tensor.shape}", str(file), "export it again")
    if stray:
        raise UserError(f"{stray[0]} has no place in this model", str(file), "give a file that this project exported")
    return {(t.hf.weight.path, t.hf.layer): t for t in plan}


def _check_rope(found: dict[str, Any], config: LlamaConfig, file: Path) -> None:
    expected = gguf_layout.rope_factors(config)
    there: Any = found[gguf_layout.ROPE_FREQS].data if gguf_layout.ROPE_FREQS in found else None
    if not ((expected is None and there is None) or (expected is not None and np.array_equal(there, expected))):
        what = "the file's rotary factors are not those of its fields"
        raise UserError(what, str(file), "give a file that this project exported")


def _source(names: dict[tuple[str, int | None], GgufTensor], config: LlamaConfig, rows: Any) -> Source:
    def get(weight: Weight, layer: int | None, box: Sequence[slice] | None = None) -> np.ndarray:
        tensor = names[weight.path, layer]

        def read(part: Sequence[slice]) -> np.ndarray:
            start, stop, _ = part[0].indices(tensor.shape[0])
            values = rows(tensor.name, slice(start, stop))
            if tensor.heads:
                values = gguf_layout.unpair(values, (stop - start) * tensor.heads // tensor.shape[0])
            return values[(slice(None), *part[1:])]

        return mapping.from_hf(weight, config, read, box)

    return get


def compare(file: Path, folder: Path, quantization: str) -> dict[str, Any]:
    """Every tensor of the file beside the folder that it was made from.

    Returns:
        `count`; `differing`: tensors with a value farther from its source than the format allows, or not finite;
        `worst`: the largest error as a share of what is allowed; `relative`: by kind of matrix, root mean square of the
        error over that of the values; `config_read_back_equal`.
    """
    model = open_gguf(file)
    config, infos = importing.read_config(folder), tensors.open_tensors(folder)
    plan = gguf_layout.plan(config, quantization)
    differing, worst = [], 0.0
    sums: dict[str, np.ndarray] = {}
    for tensor in plan:
        share, squares = _errors(tensor, model, infos[tensor.hf.name])
        # Written so that a NaN fails it.
        if not share <= 1.0:
            differing.append(tensor.name)
        worst = max(worst, share)
        role = tensor.hf.weight.path.rpartition("/")[2] if tensor.hf.layer is not None else tensor.hf.weight.path
        if tensor.kind.name != "f32":
            sums[role] = sums.get(role, np.zeros(2)) + squares
    same = {**vars(model.config), "initializer_range": 0} == {**vars(config), "initializer_range": 0}
    relative = {role: float(np.sqrt(error / max(value, 1e-300))) for role, (error, value) in sums.items()}
    return {
        "count": len(plan),
        "differing": differing,
        "worst": worst,
        "relative": relative,
        "config_read_back_equal": same,
    }


def _errors(tensor: GgufTensor, model: GgufModel, info: tensors.TensorInfo) -> tuple[float, np.ndarray]:
    """The largest error over what is allowed, and the sums of squares of errors and of values."""
    largest, squares = 0.0, np.zeros(2)
    for part in gguf_writing.row_runs(tensor):
        source = gguf_writing.source_rows(tensor, info, part)
        values = model.rows(tensor.name, part)
        error = np.abs(values - source)
        limit = allowed(source, tensor.kind.name)
        share = np.divide(error, limit, out=np.where(error == 0, 0.0, np.inf), where=limit > 0).max(initial=0.0)
        largest = max(largest, float(share)) if np.isfinite(values).all() else np.inf
        squares += [np.square(error, dtype=np.float64).sum(), np.square(source, dtype=np.float64).sum()]
    return largest, squares


def allowed(source: np.ndarray, kind: str) -> np.ndarray:
    """The largest error that a format makes of each value: as `source`, or a column for each block of 32.

    A block has a step d of float16 (and, in q4_1 and q5_1, a least value m of float16): d is the largest magnitude
    / 127 (q8_0), the value of largest magnitude / -8 or / -16 (q4_0, q5_0: the far end of the other side is one step
    short), or the range / 15 or / 31 (q4_1, q5_1). To half a step comes what rounding d and m to float16 adds, and a
    little for float32.
    """
    x = source.astype(np.float64)
    if kind == "f32":
        return np.zeros(x.shape)
    if kind in ("f16", "bf16"):
        return np.abs(x) * (HALF if kind == "f16" else 2.0**-8) + (TINY if kind == "f16" else 0.0)
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    largest = np.abs(blocks).max(-1, keepdims=True)
    if kind in ("q4_1", "q5_1"):
        codes = 15 if kind == "q4_1" else 31
        low = blocks.min(-1, keepdims=True)
        step, away = (blocks.max(-1, keepdims=True) - low) / codes, 0.5
        shift = np.abs(low) * HALF + TINY
    else:
        codes, away = {"q8_0": (127, 0.5), "q4_0": (8, 1.0), "q5_0": (16, 1.0)}[kind]
        step, shift = largest / codes, np.zeros_like(largest)
    limit = away * step + codes * (step * HALF + TINY) + shift + 1e-5 * largest
    return np.broadcast_to(limit, blocks.shape).reshape(x.shape)
