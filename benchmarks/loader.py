"""Speed of the loader: tokens a second beside a bare reader, time to a far row, memory at 2·10⁸ documents.

    python -m benchmarks.loader                      all three, on stores made for it in a temporary folder
    python -m benchmarks.loader --only=throughput

throughput: one process, row length 8192, all six arrays of a batch (tokens, targets, segments, positions, weights,
groups) from a warm memory-mapped store of 111 M tokens in 200,000 documents. Beside it, in turns, a bare reader: plain
numpy over one mapped token column, documents in a random order, which makes nothing but rows of tokens.
far: a fresh process opens a store of 10⁷ documents and makes row 10⁹.
large: a fresh process does so with 2·10⁸ documents (about 14 GB of disk); the peak of its resident memory, with and
without the pages of the mapped files that the kernel may drop.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from t_elaine.data.mixture import Mixture
from t_elaine.data.rows import open_mixture
from t_elaine.data.store import BATCH_TOKENS, SCHEMA, open_store, write_manifest

LENGTH = 8192
ROWS = 64


def make_store(folder: Path, documents: int, mean: int) -> Path:
    """A store of random tokens with log-normal document lengths, written in columns (a row at a time takes minutes)."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = [pa.array(values) for values in (["en", "ja", "zh"], ["PubMed abstract", "textbook"], ["made up"])]
    path, left = folder / "train-00000-of-00001.arrow", documents
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        while left:
            n = min(left, BATCH_TOKENS // mean)
            writer.write_batch(_record_batch(rng, n, mean, labels))
            left -= n
    groups = [[language, category] for language in labels[0].to_pylist() for category in labels[1].to_pylist()]
    shard = {"file": path.name, "split": "train", "size": path.stat().st_size, "sha256": ""}
    vocabulary = {"kind": "none", "sha256": "0" * 64, "size": 1 << 17, "bos": 0, "eos": 1, "pad": None}
    write_manifest(folder, {"name": folder.name, "groups": groups, "vocabulary": vocabulary, "shards": [shard]})
    return folder


def _record_batch(rng: np.random.Generator, n: int, mean: int, labels: list[pa.Array]) -> pa.RecordBatch:
    lengths = np.maximum(1, rng.lognormal(np.log(mean) - 0.32, 0.8, n).astype(np.int64))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(0, 1 << 17, offsets[-1], np.uint32)
    language, category, source = (
        pa.DictionaryArray.from_arrays(pa.array(rng.integers(0, len(v), n, np.int32)), v) for v in labels
    )
    ids = pa.StringArray.from_buffers(n, pa.py_buffer(np.zeros(n + 1, np.int32)), pa.py_buffer(b""))
    columns = {
        "tokens": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens)),
        "trained": pa.nulls(n, SCHEMA.field("trained").type),
        "id": ids,
        "language": language,
        "category": category,
        "source": source,
        "bytes": pa.array(lengths * 4),
        "text_hash": pa.array(rng.integers(0, 1 << 63, n, np.uint64)),
    }
    return pa.record_batch([columns[f.name] for f in SCHEMA], schema=SCHEMA)


def mixture(folder: Path) -> Mixture:
    return Mixture(stores=(str(folder),), sequence_length=LENGTH, batch_tokens=LENGTH * ROWS)


def bare_reader(folder: Path, rows: int) -> int:
    """Rows of tokens from the documents in a random order; nothing else of a batch. Returns tokens made."""
    batch = open_store(folder).batches("train")
    tokens = [b.tokens for b in batch]
    block = np.repeat(np.arange(len(batch)), [b.docs for b in batch])
    starts, stops = (np.concatenate([b.offsets[i : len(b.offsets) - 1 + i] for b in batch]) for i in (0, 1))
    order = np.random.default_rng(0).permutation(len(block))
    edges = np.concatenate([[0], np.cumsum((stops - starts)[order])])
    began = time.perf_counter()
    for r in range(rows):
        low, high = np.searchsorted(edges, [r * LENGTH, (r + 1) * LENGTH + 1])
        low -= edges[low] > r * LENGTH
        parts = [tokens[block[d]][starts[d] : stops[d]] for d in order[low:high]]
        row = np.concatenate(parts)[r * LENGTH - edges[low] :][: LENGTH + 1]
        assert len(row) == LENGTH + 1
    return round(rows * LENGTH / (time.perf_counter() - began))


def loader(folder: Path, batches: int) -> int:
    plan = open_mixture(mixture(folder))
    # The order of the first window is made within the time, as it is in training.
    began = time.perf_counter()
    for step in range(batches):
        plan.rows(np.arange(step * ROWS, (step + 1) * ROWS))
    return round(batches * ROWS * LENGTH / (time.perf_counter() - began))


def throughput(folder: Path, pairs: int, batches: int) -> None:
    """Medians over pairs of runs, one after the other."""
    store = make_store(folder / "warm", 200_000, 555)
    for batch in open_store(store).batches("train"):
        batch.tokens.sum()
    figures = np.array([(bare_reader(store, batches * ROWS), loader(store, batches)) for _ in range(pairs)])
    bare, ours = np.median(figures, axis=0) / 1e6
    ratio = np.median(figures[:, 1] / figures[:, 0])
    print(f"throughput, row length {LENGTH}, {pairs} pairs, medians: loader {ours:.1f} M tokens/s (all six arrays), "
          f"bare reader {bare:.1f} M tokens/s (tokens only), ratio {ratio:.2f}; goal 50 M tokens/s")  # fmt: skip


def far_row(folder: Path) -> None:
    """In a process of its own: open the store, make row 10⁹; print seconds and memory as JSON."""
    began = time.perf_counter()
    before = _memory()
    plan = open_mixture(mixture(folder))
    opened = time.perf_counter()
    plan.row(10**9)
    ended = time.perf_counter()
    after = _memory()
    print(json.dumps({
        "open_s": opened - began, "row_s": ended - opened, "total_s": ended - began,
        "anonymous_gb": (after["RssAnon"] - before["RssAnon"]) / 1e6, "resident_gb": after["VmHWM"] / 1e6,
        "epochs": plan.describe(10**9)["sources"][folder.name]["epochs"],
    }))  # fmt: skip


def _memory() -> dict[str, int]:
    """Linux: kilobytes of resident memory by kind."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return {k: int(v.split()[0]) for k, v in (line.split(":", 1) for line in lines) if k in ("RssAnon", "VmHWM")}


def far(folder: Path, name: str, documents: int, mean: int, runs: int) -> None:
    store = make_store(folder / name, documents, mean)
    command = [sys.executable, "-m", "benchmarks.loader", f"--far_row={store}"]
    found = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(runs)]
    f = {key: float(np.median([g[key] for g in found])) for key in found[0]}
    print(f"row 10^9 of {documents:,} documents, medians of {runs}: {f['total_s']:.2f} s (opening {f['open_s']:.2f} s, "
          f"row {f['row_s']:.3f} s), {f['epochs']:.0f} epochs in; memory added {f['anonymous_gb']:.2f} GB, peak "
          f"resident with mapped pages {f['resident_gb']:.2f} GB")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("throughput", "far", "large"))
    parser.add_argument("--folder", help="where to make the stores (default: a temporary folder)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=200, help=f"of {ROWS} rows, a run")
    parser.add_argument("--far_row", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.far_row:
        return far_row(args.far_row)
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.only in (None, "throughput"):
            throughput(Path(folder), args.pairs, args.batches)
        if args.only in (None, "far"):
            far(Path(folder), "far", 10**7, 40, 3)
        if args.only in (None, "large"):
            far(Path(folder), "large", 2 * 10**8, 6, 1)


if __name__ == "__main__":
    main()
