"""Writes a Hugging Face folder's model as one GGUF file, for llama.cpp and what is built on it.

Rows are read, turned, rounded by the package gguf and written in blocks of 8 MB, so memory does not grow with the
model. Whether the file is right is `gguf_reading.py`'s to say; that it appears whole or not at all, the caller's.
"""

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine.errors import UserError
from t_elaine.faults import fault_point
from t_elaine.hf import gguf_layout, importing, tensors
from t_elaine.hf.gguf_layout import GgufTensor
from t_elaine.hf.tensors import TensorInfo

BLOCK_BYTES = 8 << 20
THREADS = 2


def library() -> Any:
    """The package gguf.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        what = "GGUF is written through the package gguf, which is not installed"
        raise UserError(what, "--quantize", "pip install 't-elaine[gguf]', or: pip install gguf")
    return importlib.import_module("gguf")


def planned_bytes(plan: list[GgufTensor]) -> int:
    """Bytes of the weights in the file."""
    return sum(tensor.nbytes for tensor in plan)


def write(folder: Path, file: Path, quantization: str, fields: Mapping[str, Any]) -> None:
    """Write the model of `folder` to `file`.

    Args:
        folder: in Hugging Face format, with float32, bfloat16 or float16 weights.
        file: to make.
        quantization: a name of `gguf_layout.KINDS`.
        fields: what the file says beside the model's shape: vocabulary, names, licence. Values are str, bool, int,
            float, or lists of one of them.

    Raises:
        UserError: a model that GGUF cannot hold, a missing shard, weights that are not finite in the format.
        OSError: the disk is full or fails; the caller removes the file.
    """
    gguf = library()
    config, infos = importing.read_config(folder), tensors.open_tensors(folder)
    importing.check_tensors(infos, config, folder)
    plan, factors = gguf_layout.plan(config, quantization), gguf_layout.rope_factors(config)
    logging.getLogger("gguf").setLevel(logging.WARNING)
    writer = gguf.GGUFWriter(file, gguf_layout.architecture(config))
    _add_fields(writer, {**gguf_layout.shape_fields(config), **fields})
    writer.add_file_type(_file_type(gguf, quantization))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if factors is not None:
        writer.add_tensor_info(gguf_layout.ROPE_FREQS, factors.shape, factors.dtype, factors.nbytes)
    for tensor in plan:
        kind = gguf.GGMLQuantizationType[tensor.kind.name.upper()]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (sink,) = writer.fout
    try:
        writer.write_padding(sink, sink.tell())
        if factors is not None:
            sink.write(factors.tobytes())
            writer.write_padding(sink, factors.nbytes)
        for tensor in plan:
            fault_point("gguf.mid_write")
            for block in _rounded(gguf, tensor, infos[tensor.hf.name]):
                sink.write(block.data)
            writer.write_padding(sink, tensor.nbytes)
    finally:
        writer.close()


def _file_type(gguf: Any, quantization: str) -> int:
    name = "ALL_F32" if quantization == "f32" else f"MOSTLY_{quantization.upper()}"
    return int(gguf.LlamaFileType[name])


def _add_fields(writer: Any, fields: Mapping[str, Any]) -> None:
    add: dict[type, Callable[[str, Any], None]] = {
        str: writer.add_string,
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        list: writer.add_array,
    }
    for name, value in fields.items():
        add[type(value)](name, value)


def _rounded(gguf: Any, tensor: GgufTensor, info: TensorInfo) -> Iterator[np.ndarray]:
    """A tensor's bytes, a run of rows after another; the next are read and rounded while these are written."""
    kind = gguf.GGMLQuantizationType[tensor.kind.name.upper()]

    def one(rows: slice) -> np.ndarray:
        values = source_rows(tensor, info, rows)
        with np.errstate(over="ignore", invalid="ignore"):
            made = np.ascontiguousarray(gguf.quants.quantize(values, kind))
        return made.view(np.uint8)

    with ThreadPoolExecutor(THREADS) as pool:
        coming = []
        for rows in row_runs(tensor):
            coming.append(pool.submit(one, rows))
            if len(coming) > THREADS:
                yield coming.pop(0).result()
        while coming:
            yield coming.pop(0).result()


def row_runs(tensor: GgufTensor) -> Iterator[slice]:
    """Runs of rows of at most 8 MB in float32, whole heads where rows are paired; one run for a vector."""
    if len(tensor.shape) == 1:
        yield slice(0, tensor.shape[0])
        return
    rows, width = tensor.shape
    unit = rows // tensor.heads if tensor.heads else 1
    step = max(unit, BLOCK_BYTES // (4 * width) // unit * unit)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def source_rows(tensor: GgufTensor, info: TensorInfo, rows: slice) -> np.ndarray:
    """Rows of the Hugging Face tensor as float32, in the file's order."""
    box = [rows, slice(None)] if len(tensor.shape) == 2 else [rows]
    values = tensors.read(info, box).astype(np.float32)
    if not tensor.heads:
        return values
    return gguf_layout.pair(values, len(values) * tensor.heads // tensor.shape[0])
