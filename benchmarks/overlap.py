"""Looking for exam items in text: MB/s of UTF-8, with several processes, on corpora repeated to a given size.

    python -m benchmarks.overlap --exams FOLDER --text FILE.jsonl.gz … [--megabytes 500] [--processes 2]

Timed are: making the index; looking through each language's texts in this process; and, with several processes, all of
them written to one plain JSON Lines file again and again: reading JSON, folding, look-up and the processes' start. The
index is left out there: it is made once whatever the size of the texts. Beside MB/s stand MB a CPU second, since other
work on the machine slows the first alone.
"""

import argparse
import gzip
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from t_elaine.data import overlap, trained_texts
from t_elaine.data.exam_items import find_suites, read_suite
from t_elaine.data.overlap import Overlap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exams", required=True)
    parser.add_argument("--text", required=True, nargs="+", type=Path)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--processes", type=int, default=2)
    settings = parser.parse_args()
    suites = [read_suite(path) for path in find_suites([settings.exams])]
    began = time.perf_counter()
    index = overlap.build_index(suites)
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"index of {len(index.ids)} items of {len(suites)} suites: {time.perf_counter() - began:.1f} s")
    by_language: dict[str, list[tuple[str, str]]] = {}
    for path in settings.text:
        rows = [json.loads(row) for row in gzip.decompress(path.read_bytes()).decode().split("\n") if row]
        by_language.setdefault(rows[0]["lang"], []).extend((row["id"], row["text"]) for row in rows)
    for language, documents in sorted(by_language.items()):
        wall, used = time.perf_counter(), time.process_time()
        hits = overlap.scan(index, documents)
        wall, used = time.perf_counter() - wall, time.process_time() - used
        size = hits.bytes / 1e6
        print(f"{language}: {size:.1f} MB in this process, {size / wall:.0f} MB/s ({size / used:.0f} a CPU second)")
    everything = [document for documents in by_language.values() for document in documents]
    with tempfile.TemporaryDirectory() as folder:
        path = write(everything, Path(folder) / "texts.jsonl", settings.megabytes)
        place = trained_texts.open_place(str(path))
        trained_texts.kept_index(tuple(suites), Overlap())
        wall, used = time.perf_counter(), cpu()
        found = trained_texts.look_through([place], suites, Overlap(), "", settings.processes)
        wall, used = time.perf_counter() - wall, cpu() - used
    parts = list(found[place.name].values())
    size = parts[0]["bytes"] / 1e6
    seen = sum(len(part["items"]) for part in parts)
    per = f"{size / wall:.0f} MB/s ({size / used:.0f} a CPU second)"
    load = os.getloadavg()[0]
    print(f"{size:.0f} MB, {settings.processes} processes: {wall:.1f} s, {per}; {seen} items; load {load:.1f}")


def cpu() -> float:
    """Seconds of processor time of this process and those it started that have ended."""
    return sum(os.times()[:4])


def write(documents: list[tuple[str, str]], path: Path, megabytes: float) -> Path:
    """The documents as JSON Lines, repeated."""
    size = count = 0
    with open(path, "w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            for name, text in documents:
                file.write(json.dumps({"id": f"{name}-{count}", "text": f"{count} {text}"}, ensure_ascii=False) + "\n")
                size += len(text.encode())
            count += 1
    return path


if __name__ == "__main__":
    sys.exit(main())
