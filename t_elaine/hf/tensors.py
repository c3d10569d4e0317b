"""Safetensors on disk: open a folder (one file or shards with an index), read slices, write shards in a stream.

Reading checks every header and file length before a byte of weights is used, and reads by plain file reads, so that a
damaged disk is an error and not a bus fault. Writing holds one tensor and a small block at a time. It knows nothing of
models: names and layouts are `mapping.py`'s. Format: https://huggingface.co/docs/safetensors (header, then raw bytes).
"""

import fnmatch
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from t_elaine.errors import UserError
from t_elaine.hf.ordering import orderer

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
OTHER_SIZES = {"F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
OTHER_SIZES |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
TAGS = {"float32": "F32", "bfloat16": "BF16"}
SHARD_BYTES = 5_000_000_000
HEADER_LIMIT = 100_000_000
BLOCK_BYTES = 16 << 20
FLUSH_BYTES = 64 << 20
# Tensor name → the whole tensor, or an iterator over runs of its rows.
Produce = Callable[[str], "np.ndarray | Iterator[np.ndarray]"]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
NO_WEIGHTS = ("training_args*", "optimizer*", "scheduler*", "rng_state*")  # pickles that trainers leave beside weights


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies: `start` is the byte of `file` at which its values begin."""

    name: str
    tag: str
    shape: tuple[int, ...]
    file: Path
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * _item_size(self.tag)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A tensor that will be written: name, dtype tag (`F32` or `BF16`) and shape."""

    name: str
    tag: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * _item_size(self.tag)


def _item_size(tag: str) -> int:
    return DTYPES[tag].itemsize if tag in DTYPES else OTHER_SIZES[tag]


def open_tensors(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a Hugging Face folder, by name, headers and file lengths checked.

    Raises:
        UserError: no safetensors (legacy pickles are named), a shard that is missing or truncated, a damaged header, an
            index that disagrees with its files.
    """
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _open_sharded(folder)
    raise _no_safetensors(folder)


def _no_safetensors(folder: Path) -> UserError:
    if not folder.is_dir():
        return UserError("there is no such folder", str(folder), "give --hf= a model folder, or owner/name on the hub")
    if pickles := legacy_weights(path.name for path in folder.iterdir()):
        return UserError(
            f"the weights are legacy pickles ({', '.join(pickles[:3])}), which can run code when they are opened",
            str(folder),
            "convert them to safetensors where the model was made, or take a revision that has model.safetensors",
        )
    return UserError(
        f"neither {SINGLE} nor {INDEX} is there", str(folder), "give a folder that holds safetensors weights"
    )


def legacy_weights(names: Iterable[str]) -> list[str]:
    """Those of a folder's files that are pickled weights, sorted."""

    def matches(name: str, patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    return sorted(name for name in names if matches(name, PICKLES) and not matches(name, NO_WEIGHTS))


def _open_sharded(folder: Path) -> dict[str, TensorInfo]:
    where = str(folder / INDEX)
    again = "fetch the model again; the download may have stopped half-way"
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        weight_map = dict(index["weight_map"])
    except (ValueError, KeyError, TypeError) as problem:
        raise UserError(f"the index cannot be read ({problem!r})", where, again) from problem
    tensors: dict[str, TensorInfo] = {}
    for file in sorted(set(weight_map.values())):
        if not isinstance(file, str) or Path(file).name != file:
            raise UserError(
                f"the index names a file outside the folder: {file!r}", where, "take the model from a source you trust"
            )
        if not (folder / file).is_file():
            raise UserError(f"the shard {file} is missing", where, again)
        found = read_header(folder / file)
        if stray := sorted(name for name in found if weight_map.get(name) != file):
            raise UserError(f"{file} holds {stray[0]}, which the index places elsewhere or not at all", where, again)
        tensors |= found
    if absent := sorted(set(weight_map) - set(tensors)):
        raise UserError(f"{absent[0]} is in the index but not in {weight_map[absent[0]]}", where, again)
    return tensors


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file; its header must account for every byte of it.

    Raises:
        UserError: truncated or overlong file, damaged header, unknown dtype.
    """
    size = file.stat().st_size
    damaged = "fetch or write the file again: it is damaged or was cut off"
    with open(file, "rb") as source:
        length = int.from_bytes(source.read(8), "little")
        if size < 8 or length > min(HEADER_LIMIT, size - 8):
            raise UserError(f"the file has {size} bytes and no complete safetensors header", str(file), damaged)
        text = source.read(length)
    try:
        header = json.loads(text)
        entries = sorted(
            ((v["data_offsets"][0], k, v) for k, v in header.items() if k != "__metadata__"), key=lambda e: e[:2]
        )
        tensors, end = {}, 0
        for start, name, entry in entries:
            tag, shape = entry["dtype"], tuple(int(n) for n in entry["shape"])
            if tag not in DTYPES and tag not in OTHER_SIZES:
                raise UserError(
                    f"{name} has the unknown dtype {tag!r}", str(file), "float32, bfloat16 and float16 are read"
                )
            info = TensorInfo(name=name, tag=tag, shape=shape, file=file, start=8 + length + start)
            if start != end or entry["data_offsets"][1] != start + info.nbytes or min(shape, default=0) < 0:
                raise UserError(
                    f"the header's offsets for {name} do not fit its shape {shape} and dtype {tag}", str(file), damaged
                )
            tensors[name], end = info, start + info.nbytes
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as problem:
        raise UserError(f"the safetensors header is damaged ({problem!r})", str(file), damaged) from problem
    if 8 + length + end != size:
        raise UserError(f"the file has {size} bytes where its header promises {8 + length + end}", str(file), damaged)
    return tensors


def read(info: TensorInfo, box: Sequence[slice] | None = None) -> np.ndarray:
    """One tensor, or a box of it: `box` holds a slice with step 1 for each axis. The dtype is the file's own.

    Rows that the box does not touch are not read; columns outside it are read in blocks of 16 MiB and dropped.

    Raises:
        UserError: a dtype that holds no floating-point weights, or a file that shrank meanwhile.
    """
    if info.tag not in DTYPES:
        raise UserError(
            f"{info.name} has dtype {info.tag}",
            str(info.file),
            "float32, bfloat16 and float16 are read; dequantise the model first",
        )
    dtype = DTYPES[info.tag]
    ranges = [part.indices(n)[:2] for part, n in zip(box or [slice(None)] * len(info.shape), info.shape, strict=True)]
    out = np.empty([stop - start for start, stop in ranges], dtype)
    if out.size == 0:
        return out
    with open(info.file, "rb", buffering=0) as source:
        if not info.shape or ranges[1:] == [(0, n) for n in info.shape[1:]]:
            row = math.prod(info.shape[1:]) * dtype.itemsize
            _fill(source, info, info.start + (ranges[0][0] * row if info.shape else 0), out)
        else:
            _read_box(source, info, ranges, out)
    return out


def _read_box(source: BinaryIO, info: TensorInfo, ranges: list[tuple[int, int]], out: np.ndarray) -> None:
    row = math.prod(info.shape[1:]) * out.itemsize
    step = max(1, BLOCK_BYTES // row)
    inner = tuple(slice(start, stop) for start, stop in ranges[1:])
    first, last = ranges[0]
    for begin in range(first, last, step):
        rows = min(step, last - begin)
        block = np.empty((rows, *info.shape[1:]), out.dtype)
        _fill(source, info, info.start + begin * row, block)
        out[begin - first : begin - first + rows] = block[(slice(None), *inner)]


def _fill(source: BinaryIO, info: TensorInfo, position: int, out: np.ndarray) -> None:
    view = memoryview(out.reshape(-1).view(np.uint8).data)
    source.seek(position)
    done = 0
    while done < len(view):
        count = source.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise UserError(f"the file ended inside {info.name}", str(info.file), "fetch or write the file again")
        done += count


def plan_shards(tensors: Sequence[Planned], shard_bytes: int = SHARD_BYTES) -> dict[str, list[Planned]]:
    """File name → tensors, in order: a new shard starts where the next tensor would pass `shard_bytes`."""
    shards: list[list[Planned]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": part for i, part in enumerate(shards, 1)}


def header_bytes(tensors: Sequence[Planned]) -> bytes:
    """Length field and JSON header of one file, padded so that the values start at a multiple of 8."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.tag, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(
    folder: Path,
    tensors: Sequence[Planned],
    produce: Produce,
    shard_bytes: int = SHARD_BYTES,
    reading_ahead: bool = False,
) -> list[Path]:
    """Write `tensors` in order, each from `produce(name)`, and the index where there is more than one shard.

    `produce` gives the whole tensor, or runs of its rows one after another; either may be transposed views. It is asked
    one ahead of the writing, in another thread, so at most two of its results are alive. Float32 is rounded to nearest
    even where the plan says `BF16`. Files are flushed to disk.

    Args:
        folder: to write into.
        tensors: what to write.
        produce: gives the values.
        shard_bytes: a file holds no more than this, unless one tensor does.
        reading_ahead: read and turn in a thread each, which is faster; three of the results are alive then.

    Raises:
        ValueError: `produce` gave another shape than planned.
        OSError: the disk is full or fails; the caller removes the folder.
    """
    shards = plan_shards(tensors, shard_bytes)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as turner, ThreadPoolExecutor(1) as flusher:
        runs = (run for tensor in tensors for run in _runs(tensor, produce(tensor.name)))
        coming = _one_ahead(reader, runs) if reading_ahead else runs
        blocks = _one_ahead(turner, map(orderer(), coming))
        for name, part in shards.items():
            with open(folder / name, "wb", buffering=0) as sink:
                _write_all(sink, header_bytes(part))
                _write_blocks(sink, blocks, sum(tensor.nbytes for tensor in part), flusher)
                os.fsync(sink.fileno())
        if next(blocks, None) is not None:
            raise ValueError("more values than planned")
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, part in shards.items() for tensor in part}
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [folder / name for name in shards]


def _write_blocks(sink: BinaryIO, blocks: Iterator[np.ndarray], left: int, flusher: ThreadPoolExecutor) -> None:
    """Write `left` bytes of blocks; the disk takes what was written while the next blocks are read and turned."""
    flushing: Future[Any] = flusher.submit(int)
    unflushed = 0
    while left:
        block = next(blocks)
        _write_all(sink, block.data)
        left, unflushed = left - block.nbytes, unflushed + block.nbytes
        if unflushed >= FLUSH_BYTES and flushing.done():
            flushing.result()  # a full disk is told here, too
            flushing, unflushed = flusher.submit(os.fsync, sink.fileno()), 0
    flushing.result()


def _one_ahead(pool: ThreadPoolExecutor, items: Iterator[Any]) -> Iterator[Any]:
    coming = pool.submit(next, items, None)
    while (item := coming.result()) is not None:
        coming = pool.submit(next, items, None)
        yield item
        del item  # while this generator waits it must not keep one more alive


def _runs(tensor: Planned, made: np.ndarray | Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.dtype]]:
    """A tensor's rows in blocks, with the dtype that its file has."""
    rows = 0
    for array in [made] if isinstance(made, np.ndarray) else made:
        rows += len(array)
        if array.shape[1:] != tensor.shape[1:] or rows > tensor.shape[0]:
            raise ValueError(f"{tensor.name}: planned {tensor.shape}, got {array.shape}")
        for block in _row_blocks(array):
            yield block, DTYPES[tensor.tag]
    if rows != tensor.shape[0]:
        raise ValueError(f"{tensor.name}: planned {tensor.shape}, got {rows} rows")


def _row_blocks(array: np.ndarray) -> Iterable[np.ndarray]:
    step = max(1, BLOCK_BYTES * len(array) // max(array.nbytes, 1))
    return (array[begin : begin + step] for begin in range(0, len(array), step))


def _write_all(sink: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[sink.write(view) :]
