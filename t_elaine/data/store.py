"""The token store: a folder of Arrow IPC files, one row a document, read by memory map without copying.

    <name>/manifest.json  train-00000-of-00004.arrow  validation-00000-of-00001.arrow  quarantine.jsonl  vocabulary/

The manifest is written last and is the sign that the store is whole. This file writes and reads shards and manifests;
it knows nothing of text, tokenizers or training rows.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from t_elaine.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
BATCH_TOKENS = 4_000_000  # 16 MB: a record batch is the block in which the loader shuffles
SPLITS = ("train", "validation")
Spans = tuple[np.ndarray, np.ndarray, np.ndarray]

_LABEL = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        pa.field("tokens", pa.large_list(pa.uint32()), nullable=False),
        pa.field("trained", pa.list_(pa.struct([("start", pa.int32()), ("stop", pa.int32())]))),
        pa.field("id", pa.string(), nullable=False),
        pa.field("language", _LABEL, nullable=False),
        pa.field("category", _LABEL, nullable=False),
        pa.field("source", _LABEL, nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("text_hash", pa.uint64(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One document ready to be stored. `trained`: spans [start, stop) of token positions, or None for every token."""

    tokens: np.ndarray
    id: str
    language: str
    category: str
    source: str
    bytes: int
    text_hash: int
    trained: Sequence[tuple[int, int]] | None = None


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The values of a shard's dictionary columns, fixed before its first batch: an Arrow file cannot change them."""

    languages: tuple[str, ...]
    categories: tuple[str, ...]
    sources: tuple[str, ...]


class ShardWriter:
    """Writes one Arrow file under a temporary name; `close()` flushes it to disk and gives it its final name.

    Until `close()` nothing stands under `path`; a file that does is whole. As a context it drops what was not closed.
    """

    def __init__(self, path: Path, labels: Labels, batch_tokens: int = BATCH_TOKENS) -> None:
        self.path, self._temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._batch_tokens, self._rows, self._pending = batch_tokens, [], 0  # type: ignore[var-annotated]
        self._labels = {
            "language": _dictionary(labels.languages),
            "category": _dictionary(labels.categories),
            "source": _dictionary(labels.sources),
        }
        self._file = open(self._temporary, "wb")  # noqa: SIM115  closed in close() or abandon()
        self._writer = pa.ipc.new_file(self._file, SCHEMA)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.abandon()

    def add(self, row: Row) -> None:
        """Append a document. A batch is written whenever the next document would pass `batch_tokens`."""
        if self._rows and self._pending + len(row.tokens) > self._batch_tokens:
            self._write_batch()
        self._rows.append(row)
        self._pending += len(row.tokens)

    def close(self) -> Path:
        """Write what is left, flush to the disk, rename to the final name."""
        if self._rows:
            self._write_batch()
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)
        return self.path

    def abandon(self) -> None:
        """Drop the temporary file, if it is not closed yet; what stands under the final name is untouched."""
        try:
            self._file.close()  # on a full disk the last buffer cannot be written here either
        except OSError:
            pass
        finally:
            self._temporary.unlink(missing_ok=True)

    def _write_batch(self) -> None:
        rows = self._rows
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row.tokens) for row in rows], out=offsets[1:])
        tokens = np.concatenate([np.asarray(row.tokens, np.uint32) for row in rows])
        columns = {
            "tokens": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens)),
            "trained": _spans_column(rows),
            "id": pa.array([row.id for row in rows], pa.string()),
            "bytes": pa.array([row.bytes for row in rows], pa.int64()),
            "text_hash": pa.array(np.array([row.text_hash for row in rows], np.uint64)),
        }
        for name, (index, values) in self._labels.items():
            indices = pa.array([index[getattr(row, name)] for row in rows], pa.int32())
            columns[name] = pa.DictionaryArray.from_arrays(indices, values)
        self._writer.write_batch(pa.record_batch([columns[f.name] for f in SCHEMA], schema=SCHEMA))
        self._rows, self._pending = [], 0


def _dictionary(values: Sequence[str]) -> tuple[dict[str, int], pa.Array]:
    return {value: i for i, value in enumerate(values)}, pa.array(list(values), pa.string())


def _spans_column(rows: Sequence[Row]) -> pa.Array:
    """list<struct<start,stop>>, null where every token of the document is trained."""
    spans = [None if r.trained is None else [{"start": a, "stop": b} for a, b in r.trained] for r in rows]
    return pa.array(spans, SCHEMA.field("trained").type)


@dataclass(frozen=True, kw_only=True)
class DocBatch:
    """One record batch: `docs` documents, `n` tokens. `tokens` and `offsets` point into the memory-mapped file.

    Attributes:
        tokens: uint32 [n].
        offsets: int64 [docs+1]; document i is tokens[offsets[i]:offsets[i+1]].
        group: int32 [docs], index into `Store.groups`.
        bytes: int64 [docs], UTF-8 bytes of the original text.
        text_hash: uint64 [docs].
        trained: None (all tokens of all documents), or (offsets int64 [docs+1], starts, stops int64 [spans]), positions
            within the document.
        ids: function that reads the documents' ids, list[str] [docs].
        sources: function that reads the documents' source names, list[str] [docs].
    """

    tokens: np.ndarray
    offsets: np.ndarray
    group: np.ndarray
    bytes: np.ndarray
    text_hash: np.ndarray
    trained: Spans | None
    ids: Callable[[], list[str]] = field(repr=False)
    sources: Callable[[], list[str]] = field(repr=False)

    @property
    def docs(self) -> int:
        return len(self.offsets) - 1

    def spans(self, i: int) -> list[tuple[int, int]] | None:
        """Trained [start, stop) of document i; None: all of it."""
        if self.trained is None:
            return None
        offsets, starts, stops = self.trained
        span = slice(offsets[i], offsets[i + 1])
        return list(zip(starts[span].tolist(), stops[span].tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class Store:
    """An opened store. `groups` lists its (language, category) pairs; `vocabulary` is its vocabulary.json."""

    folder: Path
    name: str
    manifest: dict[str, Any]
    groups: list[tuple[str, str]]
    vocabulary: dict[str, Any]

    def batches(self, split: str = "train") -> list[DocBatch]:
        """The record batches of a split, in file order; an empty list where the store has no such split."""
        return [batch for path in self.files(split) for batch in read_shard(path, self.groups)]

    def files(self, split: str) -> list[Path]:
        return [self.folder / shard["file"] for shard in self.manifest["shards"] if shard["split"] == split]


def open_store(folder: str | os.PathLike[str]) -> Store:
    """Open a store for reading. Checks the manifest, its own digest and every shard's length, not the shards' digests.

    Raises:
        UserError: not a store, not finished, of a newer format, or a file is missing or cut short.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if not path.is_file():
            raise UserError(f"{shard['file']} is missing from the store", str(folder), "prepare the store again")
        if path.stat().st_size != shard["size"]:
            what = f"{shard['file']} has {path.stat().st_size} bytes, the manifest says {shard['size']}"
            raise UserError(what, str(folder), "copy the store again, or prepare it again")
    groups = [(language, category) for language, category in manifest["groups"]]
    return Store(
        folder=folder, name=manifest["name"], manifest=manifest, groups=groups, vocabulary=manifest["vocabulary"]
    )


def verify_store(folder: str | os.PathLike[str], split: str = "") -> None:
    """Read every file of the store, or of one split and the vocabulary, and compare its sha256 with the manifest's.

    Raises:
        UserError: the first file that differs, by name.
    """
    store = open_store(folder)
    shards = {s["file"]: s["sha256"] for s in store.manifest["shards"] if split in ("", s["split"])}
    digests = shards | store.manifest.get("files", {})
    for name, expected in digests.items():
        path = store.folder / name
        if not path.is_file():
            raise UserError(f"{name} is missing from the store", str(folder), "prepare the store again")
        if file_sha256(path) != expected:
            what = f"{name} is damaged: its sha256 is not the one that prepare recorded"
            raise UserError(what, str(folder), "copy the store again, or prepare it again with --overwrite")


def read_shard(path: Path, groups: list[tuple[str, str]]) -> Iterator[DocBatch]:
    """The record batches of one Arrow file of a store."""
    try:
        # The memory map stays alive through the arrays that point into it.
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if reader.schema != SCHEMA:
            raise UserError(f"{path.name} has other columns than a token store", str(path.parent), "prepare it again")
        for i in range(reader.num_record_batches):
            yield _doc_batch(reader.get_batch(i), groups)
    except (pa.ArrowInvalid, OSError) as error:
        what = f"{path.name} cannot be read as an Arrow file: {error}"
        raise UserError(what, str(path.parent), "it is damaged or cut short: prepare the store again") from error


def _doc_batch(batch: pa.RecordBatch, groups: list[tuple[str, str]]) -> DocBatch:
    tokens = batch.column("tokens")
    return DocBatch(
        tokens=tokens.values.to_numpy(zero_copy_only=True),
        offsets=tokens.offsets.to_numpy(zero_copy_only=True),
        group=_group(batch, groups),
        bytes=batch.column("bytes").to_numpy(),
        text_hash=batch.column("text_hash").to_numpy(),
        trained=_trained(batch.column("trained"), tokens.offsets.to_numpy()),
        ids=lambda: batch.column("id").to_pylist(),
        sources=lambda: batch.column("source").to_pylist(),
    )


def _group(batch: pa.RecordBatch, groups: list[tuple[str, str]]) -> np.ndarray:
    language, category = batch.column("language"), batch.column("category")
    index = {pair: i for i, pair in enumerate(groups)}
    # -1: a pair that no document has.
    table = np.array(
        [[index.get((a, b), -1) for b in category.dictionary.to_pylist()] for a in language.dictionary.to_pylist()],
        np.int32,
    )
    return table[language.indices.to_numpy(), category.indices.to_numpy()]


def _trained(column: pa.Array, token_offsets: np.ndarray) -> Spans | None:
    if column.null_count == len(column):
        return None
    spans = column.values
    starts, stops = (spans.field(name).to_numpy().astype(np.int64) for name in ("start", "stop"))
    if not column.null_count:
        return column.offsets.to_numpy().astype(np.int64), starts, stops
    # A document without spans among some that have them: one span over all of it.
    whole = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
    old = column.offsets.to_numpy().astype(np.int64)
    counts = np.where(whole, 1, np.diff(old))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    new_starts, new_stops = np.zeros(offsets[-1], np.int64), np.zeros(offsets[-1], np.int64)
    new_stops[offsets[:-1][whole]] = np.diff(token_offsets)[whole]
    kept = np.ones(offsets[-1], bool)
    kept[offsets[:-1][whole]] = False
    new_starts[kept], new_stops[kept] = starts, stops
    return offsets, new_starts, new_stops


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that `path` is either the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest with its own digest: from here on the store is whole."""
    content = {"format": FORMAT_VERSION, **manifest}
    write_json(folder / MANIFEST, {**content, "manifest_sha256": _own_digest(content)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished store, checked against its own digest and the format that this version reads."""
    if not folder.is_dir():
        raise UserError("there is no such store", str(folder), "check the path, or run prepare first")
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError("this folder has no manifest.json: it is not a finished store", str(folder), "run prepare")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        digest, version = manifest.pop("manifest_sha256"), manifest["format"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise UserError("manifest.json is damaged", str(path), "prepare the store again with --overwrite") from error
    if version != FORMAT_VERSION:
        mend = "prepare the store again with --overwrite, or use the version of T-ELAINE that made it"
        raise UserError(f"the store has format {version}, this version reads {FORMAT_VERSION}", str(path), mend)
    if digest != _own_digest(manifest):
        raise UserError("manifest.json was changed after it was written", str(path), "prepare the store again")
    return manifest


def _own_digest(manifest: dict[str, Any]) -> str:
    text = json.dumps(manifest, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
