"""Tokenising a corpus: `prepare` beside `datasets.map`, in tokens a second, on the same texts and processes.

    python -m benchmarks.prepare [--tokenizer FOLDER …] [--text FILE.jsonl.gz …] [--pairs 5]

Without --tokenizer: Llama 3's and SmolLM2's, from two packages (`packaged.py`); without --text: the shipped samples.
Each FOLDER holds a tokenizer.json. One that also holds Llama 3's tokenizer.model gets a further row, `datasets.map`
with tiktoken, and `prepare` reads that file. The texts are written once to plain JSON Lines, repeated to --megabytes.
Timed from plain rows to tokens on disk: `prepare` from call to finished store (start of its processes, digests, fsync),
`datasets.map` (batched, fast tokenizer, caching off) from a loaded data set to its mapped Arrow files; loading its JSON
is not timed. Pairs take turns; medians and the ratio of medians are printed with the machine.
"""

import argparse
import gzip
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import packaged

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", action="append", type=Path)
    parser.add_argument("--text", action="append", type=Path, help="JSON Lines with a field text")
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts = settings.text or sorted((ROOT / "data_tasks" / "samples").glob("*/documents.jsonl"))
        corpus, size, rows = write_corpus(texts, Path(folder), settings.megabytes)
        packages = {"llama3": packaged.llama3_folder, "smollm2": packaged.smollm2_folder}
        tokenizers = settings.tokenizer or [make(Path(folder) / name) for name, make in packages.items()]
        print(f"{platform.platform()}, {os.cpu_count()} cores; {settings.processes} processes, {settings.pairs} pairs")
        print(f"{rows} documents, {size / 1e6:.1f} MB of text\n")
        for tokenizer in tokenizers:
            compare(tokenizer, corpus, Path(folder), settings.pairs, settings.processes)


def write_corpus(texts: list[Path], folder: Path, megabytes: float) -> tuple[Path, int, int]:
    """The texts in one plain file, repeated with a running number in front so that no two documents are equal."""
    rows: list[str] = []
    for path in texts:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows += [json.loads(row)["text"] for row in raw.decode().split("\n") if row]
    corpus, size, count = folder / "corpus.jsonl", 0, 0
    with open(corpus, "w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            for row in rows:
                text = f"{count} {row}"
                file.write(json.dumps({"id": str(count), "text": text}, ensure_ascii=False) + "\n")
                size, count = size + len(text.encode()), count + 1
    return corpus, size, count


def compare(tokenizer: Path, corpus: Path, folder: Path, pairs: int, processes: int) -> None:
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("json", data_files=str(corpus), split="train", cache_dir=str(folder / "cache"))
    tiktoken = tokenizer / "tokenizer.model"
    ways: dict[str, Callable[[], int]] = {
        "prepare": lambda: ours(tiktoken if tiktoken.is_file() else tokenizer, corpus, folder / "stores", processes),
        "datasets.map, fast tokenizer": lambda: mapped(loaded, fast_map(tokenizer), processes),
    }
    if tiktoken.is_file():
        ways["datasets.map, tiktoken"] = lambda: mapped(loaded, tiktoken_map(tiktoken), processes)
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    counts: dict[str, int] = {}
    for pair in range(pairs + 1):  # the first round warms caches and is not counted
        for name, way in ways.items():
            began = time.perf_counter()
            counts[name] = way()
            if pair:
                speeds[name].append(counts[name] / (time.perf_counter() - began) / 1e6)
    assert len(set(counts.values())) == 1, f"the ways disagree on the number of tokens: {counts}"
    print(f"{tokenizer.name}: {counts['prepare']:,} tokens")
    mine = statistics.median(speeds["prepare"])
    for name, found in speeds.items():
        median = statistics.median(found)
        spread = f"{min(found):.2f}–{max(found):.2f}"
        print(f"  {name:32} {median:6.2f} M tokens/s  ({spread})   prepare is {mine / median:5.2f} ×")
    print()


def ours(vocabulary: Path, corpus: Path, stores: Path, processes: int) -> int:
    """A whole store, as the command makes it, without framing so that the tokens are the same."""
    import io

    from rich.console import Console

    from t_elaine.data.identity import Making
    from t_elaine.data.sources import Source
    from t_elaine.data.texts import Task
    from t_elaine.data.vocabulary import load_vocabulary
    from t_elaine.data.workers import prepare_stores

    source = Source(
        name="corpus", files=(str(corpus),), language="en", category="benchmark", licence="any", url="benchmark"
    )
    making = Making(before=(), after=(), validation_share=0.0, shards=4 * processes)
    manifests = prepare_stores(
        [Task(name="corpus", sources=(source,))],
        load_vocabulary(vocabulary),
        stores,
        making,
        workers=processes,
        console=Console(file=io.StringIO()),
    )
    shutil.rmtree(stores)
    return sum(count["tokens"] for count in manifests[0]["counts"])


def fast_map(tokenizer: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"))

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": fast(batch["text"], add_special_tokens=False, split_special_tokens=True)["input_ids"]}

    return encode


class TiktokenMap:
    """Encodes with tiktoken; the encoding is made once in each process, since it cannot be sent to another."""

    def __init__(self, path: Path) -> None:
        self.path, self.encoding = path, None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "encoding": None}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.encoding is None:
            from llama_models.llama3.tokenizer import Tokenizer

            self.encoding = Tokenizer(self.path).model
        return {"tokens": [self.encoding.encode_ordinary(text) for text in batch["text"]]}  # type: ignore[attr-defined]


def tiktoken_map(path: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return TiktokenMap(path)


def mapped(loaded: Any, function: Callable[[dict[str, Any]], dict[str, Any]], processes: int) -> int:
    import pyarrow.compute as pc

    result = loaded.map(function, batched=True, num_proc=processes, remove_columns=["text"], load_from_cache_file=False)
    count = int(pc.sum(pc.list_value_length(result.data.column("tokens"))).as_py())
    for file in result.cache_files:
        Path(file["filename"]).unlink(missing_ok=True)
    return count


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
