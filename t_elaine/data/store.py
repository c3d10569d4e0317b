"""The token store: a folder of Arrow IPC files, one row a document, read by memory map without copying.

    <name>/manifest.json  train-00000-of-00004.arrow  validation-00000-of-00001.arrow  quarantine.jsonl  vocabulary/

The manifest is written last and is the sign that the store is whole. This file writes and reads shards and manifests;
it knows nothing of text, tokenizers or training rows.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from t_elaine import paths
from t_elaine.data.doc_batch import DocBatch, doc_batch
from t_elaine.data.remote import Remote, TokenCache
from t_elaine.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
BATCH_TOKENS = 4_000_000  # 16 MB: a record batch is the block in which the loader shuffles
SPLITS = ("train", "validation")

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
class Store:
    """An opened store. `groups` lists its (language, category) pairs; `vocabulary` is its vocabulary.json.

    `remote` reads what lies in an object store; `folder` is then its address.
    """

    folder: str
    name: str
    manifest: dict[str, Any]
    groups: list[tuple[str, str]]
    vocabulary: dict[str, Any]
    remote: Remote | None = None

    @property
    def pairs(self) -> bool:
        """Whether its documents are preferences (`preference_tokens`)."""
        return bool(self.manifest.get("pairs"))

    def batches(self, split: str = "train") -> list[DocBatch]:
        """The record batches of a split, in file order; an empty list where the store has no such split."""
        return [batch for name in self.files(split) for batch in self.file_batches(name, lazy=split == "train")]

    def file_batches(self, name: str, lazy: bool = False) -> Iterator[DocBatch]:
        """The record batches of one file. lazy: tokens in an object store are read when they are asked for."""
        if self.remote is None:
            yield from read_shard(Path(self.folder, name), self.groups)
            return
        sizes = {shard["file"]: shard["size"] for shard in self.manifest["shards"]}
        reader, tokens = self.remote.open(paths.join(self.folder, name), sizes[name], lazy=lazy)
        yield from _batches(reader, name, self.folder, self.groups, tokens)

    def files(self, split: str) -> list[str]:
        return [shard["file"] for shard in self.manifest["shards"] if shard["split"] == split]

    def digests(self, split: str = "") -> dict[str, str]:
        """sha256 by name of the shards of a split, or of all."""
        return {s["file"]: s["sha256"] for s in self.manifest["shards"] if split in ("", s["split"])}


def open_store(folder: str | os.PathLike[str], cache: TokenCache | None = None) -> Store:
    """Open a store for reading. Checks the manifest, its own digest and every shard's length, not the shards' digests.

    Args:
        folder: local or in an object store.
        cache: for what is read from an object store; None: one of its own.

    Raises:
        UserError: not a store, not finished, of a newer format, or a file is missing or cut short.
    """
    manifest = read_manifest(folder)
    where = os.fspath(folder)
    there = paths.sizes(where)
    for shard in manifest["shards"]:
        if shard["file"] not in there:
            raise UserError(f"{shard['file']} is missing from the store", where, "prepare the store again")
        if there[shard["file"]] != shard["size"]:
            what = f"{shard['file']} has {there[shard['file']]} bytes, the manifest says {shard['size']}"
            raise UserError(what, where, "copy the store again, or prepare it again")
    return Store(
        folder=where,
        name=manifest["name"],
        manifest=manifest,
        groups=[(language, category) for language, category in manifest["groups"]],
        vocabulary=manifest["vocabulary"],
        remote=Remote(cache or TokenCache()) if paths.is_remote(where) else None,
    )


def verify_store(folder: str | os.PathLike[str], split: str = "") -> None:
    """`verify_stores` of one store, whole."""
    verify_stores([folder], split)


def verify_stores(folders: Sequence[str | os.PathLike[str]], split: str = "", share: tuple[int, int] = (0, 1)) -> None:
    """Compare the files of stores with their digests. Raises UserError naming the first that is damaged.

    Args:
        folders: of the stores.
        split: only the shards of this split, with the vocabulary; "": everything.
        share: (i, n): check only every n-th file from the i-th, so that n hosts share the reading.
    """
    digests = [
        (store, name, expected)
        for store in map(open_store, folders)
        for name, expected in (store.digests(split) | store.manifest.get("files", {})).items()
    ]
    for store, name, expected in digests[share[0] :: share[1]]:
        try:
            found = paths.file_sha256(paths.join(store.folder, name))
        except FileNotFoundError as error:
            raise UserError(f"{name} is missing from the store", store.folder, "prepare the store again") from error
        if found != expected:
            what = f"{name} is damaged: its sha256 is not the one that prepare recorded"
            raise UserError(what, store.folder, "copy the store again, or prepare it again with --overwrite")


def read_shard(path: Path, groups: list[tuple[str, str]]) -> Iterator[DocBatch]:
    """The record batches of one local Arrow file of a store."""
    try:
        # The memory map stays alive through the arrays that point into it.
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path.name, str(path.parent), error) from error
    yield from _batches(reader, path.name, str(path.parent), groups)


def _batches(
    reader: Any, name: str, folder: str, groups: list[tuple[str, str]], tokens: Sequence[Any] = ()
) -> Iterator[DocBatch]:
    """tokens: of each batch, where they are not in the file that the reader sees."""
    try:
        if reader.schema != SCHEMA:
            raise UserError(f"{name} has other columns than a token store", folder, "prepare it again")
        for i in range(reader.num_record_batches):
            batch = doc_batch(reader.get_batch(i), groups)
            yield replace(batch, tokens=tokens[i]) if tokens else batch
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(name, folder, error) from error


def _unreadable(name: str, folder: str, error: Exception) -> UserError:
    what = f"{name} cannot be read as an Arrow file: {error}"
    return UserError(what, folder, "it is damaged or cut short: prepare the store again")


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


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a finished store, checked against its own digest and the format that this version reads."""
    path = paths.join(folder, MANIFEST)
    try:
        text = paths.read_text(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not paths.is_folder(folder):
            raise UserError("there is no such store", str(folder), "check the path, or run prepare first") from error
        what = "this folder has no manifest.json: it is not a finished store"
        raise UserError(what, str(folder), "run prepare") from error
    except UnicodeDecodeError as error:
        raise UserError("manifest.json is damaged", path, "prepare the store again with --overwrite") from error
    try:
        manifest = json.loads(text)
        digest, version = manifest.pop("manifest_sha256"), manifest["format"]
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise UserError("manifest.json is damaged", path, "prepare the store again with --overwrite") from error
    if version != FORMAT_VERSION:
        mend = "prepare the store again with --overwrite, or use the version of T-ELAINE that made it"
        raise UserError(f"the store has format {version}, this version reads {FORMAT_VERSION}", path, mend)
    if digest != _own_digest(manifest):
        raise UserError("manifest.json was changed after it was written", path, "prepare the store again")
    return manifest


def _own_digest(manifest: dict[str, Any]) -> str:
    text = json.dumps(manifest, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
