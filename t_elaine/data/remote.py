"""Reading a store in an object store: everything but the tokens once, tokens by ranged requests, ahead of their turn.

The tokens are nearly all of a store and each host needs few of them at a time; what was read lies in a bounded cache in
memory. Digests are not compared here: a part of a file has none.
"""

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from t_elaine import paths
from t_elaine.data.arrow_layout import Range, layout
from t_elaine.errors import UserError

CHUNK = 1 << 20
Key = tuple[str, int, int]  # file, first byte, end


class TokenCache:
    """Chunks of remote files, the latest used ones kept, several requests at once. Safe for threads."""

    def __init__(self, limit: int = 4 << 30, requests: int = 32) -> None:
        """limit: bytes kept, at least those that one batch needs; requests: made at the same time."""
        self._limit, self._bytes = limit, 0
        self._chunks: OrderedDict[Key, Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(requests, thread_name_prefix="store")
        self.misses = 0  # chunks that were waited for

    def ask(self, keys: Iterable[Key]) -> None:
        """Begin to read chunks that are not there yet."""
        with self._lock:
            for key in keys:
                self._future(key)

    def get(self, key: Key) -> bytes:
        """One chunk; waits for it if need be."""
        with self._lock:
            future = self._future(key)
        if not future.done():
            self.misses += 1
        try:
            return future.result()
        except UserError:
            with self._lock:  # the next one that asks tries again
                if self._chunks.pop(key, None) is not None:
                    self._bytes -= key[2] - key[1]
            raise

    def read(self, file: str, ranges: Sequence[Range]) -> list[bytes]:
        """Byte ranges of a file, not kept."""
        return list(self._pool.map(lambda span: paths.read_range(file, *span) if span[1] > span[0] else b"", ranges))

    def _future(self, key: Key) -> "Future[bytes]":
        if (known := self._chunks.get(key)) is not None:
            self._chunks.move_to_end(key)
            return known
        made = self._chunks[key] = self._pool.submit(paths.read_range, *key)
        self._bytes += key[2] - key[1]
        while self._bytes > self._limit and len(self._chunks) > 1:
            old, _ = self._chunks.popitem(last=False)
            self._bytes -= old[2] - old[1]
        return made


class LazyTokens:
    """The tokens of one record batch, uint32 [n], read when a slice is taken."""

    def __init__(self, cache: TokenCache, file: str, place: Range) -> None:
        """place: their bytes in the file."""
        self._cache, self._file, self._place = cache, file, place

    def __len__(self) -> int:
        return (self._place[1] - self._place[0]) // 4

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, _ = index.indices(len(self))
        keys = self.keys(start, stop)
        parts = [np.frombuffer(self._cache.get(key), np.uint32) for key in keys]
        if not parts:
            return np.zeros(0, np.uint32)
        shift = (keys[0][1] - self._place[0]) // 4
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return joined[start - shift : stop - shift]

    def keys(self, start: int, stop: int) -> list[Key]:
        """The chunks that hold tokens [start, stop), cut from the batch's beginning, so that none splits a token."""
        base, end = self._place
        first, last = 4 * start // CHUNK, -(-4 * stop // CHUNK)
        places = (base + CHUNK * i for i in range(first, last if stop > start else first))
        return [(self._file, place, min(place + CHUNK, end)) for place in places]

    def ask(self, start: int, stop: int) -> None:
        """Begin to read tokens [start, stop)."""
        self._cache.ask(self.keys(start, stop))


class Remote:
    """Opens the shards of a store in an object store."""

    def __init__(self, cache: TokenCache) -> None:
        self._cache = cache

    def open(self, file: str, size: int, lazy: bool) -> tuple[Any, list[LazyTokens]]:
        """(Arrow reader, the tokens of each of its batches; empty where the reader has them too).

        Args:
            file: address of a shard.
            size: its bytes.
            lazy: leave the tokens there; else the whole file is read at once.
        """
        tokens: list[Range] = []
        if lazy:
            tokens, content = layout(lambda spans: self._cache.read(file, spans), size, file)
        else:
            spans = [(a, min(a + CHUNK, size)) for a in range(0, size, CHUNK)]
            content = list(zip([a for a, _ in spans], self._cache.read(file, spans), strict=True))
        # A sparse file without a name: holes where the tokens are, gone with the process.
        with tempfile.NamedTemporaryFile(prefix="t-elaine-index-") as sparse:
            sparse.truncate(size)
            for place, piece in content:
                sparse.seek(place)
                sparse.write(piece)
            sparse.flush()
            mapped = pa.memory_map(sparse.name)
        try:
            reader = pa.ipc.open_file(mapped)
        except pa.ArrowInvalid as error:
            mend = "it is damaged or cut short: copy or prepare the store again"
            raise UserError(f"it cannot be read as an Arrow file: {error}", file, mend) from error
        return reader, [LazyTokens(self._cache, file, place) for place in tokens]
