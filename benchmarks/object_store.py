"""The loader on a store in an object store against the same on a disk: tokens a second, and how long a step waits.

    python -m benchmarks.object_store [--latency=0.05] [--tokens_per_second=40000]

The object store is the tests' stand-in in a process of its own, which pauses before each answer as a real one does; its
own rate of bytes is printed, since where that limits, the figure says nothing of the loader. `open`: until the first
batch is there. `flat out`: batches one after the other, as no training asks for them. `paced`: a batch each time that a
step of the stated rate would ask for one, and how long it then waits.
"""

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.loader import LENGTH, ROWS, make_store, mixture
from t_elaine import paths
from t_elaine.data.loader import Loader, open_mixture, prefetch
from t_elaine.hf.folders import copy_into
from tests.storage.bucket import environment, running

STEPS = 40


def flat_out(folder: str) -> tuple[float, float]:
    """(seconds until the first batch, tokens a second of the next ones)."""
    begun = time.perf_counter()
    loader = Loader(open_mixture(mixture(folder)), 1, ROWS, range(ROWS))
    loader.batch(0)
    first = time.perf_counter()
    for step in range(1, STEPS):
        loader.batch(step)
    return first - begun, (STEPS - 1) * ROWS * LENGTH / (time.perf_counter() - first)


def paced(folder: str, rate: float, rows: int = 4) -> list[float]:
    """Seconds that each step waits for its batch of `rows` rows, when steps train `rate` tokens a second."""
    loader = Loader(open_mixture(mixture(folder)), 1, ROWS, range(rows))
    batches, waits = prefetch(loader.batch, 0, STEPS), []
    next(batches)
    for _ in range(STEPS - 1):
        time.sleep(rows * LENGTH / rate)
        begun = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - begun)
    batches.close()
    return waits


def raw_rate(file: str, size: int) -> float:
    """Bytes a second that the object store gives to 32 requests at a time, of 1 MiB each."""
    begun = time.perf_counter()
    spans = [(start, start + (1 << 20)) for start in range(0, size - (1 << 20), 1 << 20)]
    with ThreadPoolExecutor(32) as pool:
        total = sum(len(piece) for piece in pool.map(lambda span: paths.read_range(file, *span), spans))
    return total / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--tokens_per_second", type=float, default=40000.0)
    parser.add_argument("--documents", type=int, default=40000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(os.path.join(folder, "objects")) as bucket:
        os.environ.update(environment(bucket.port))
        here = make_store(Path(folder, "made_up"), given.documents, 555)
        there = f"{bucket.url}/made_up"
        copy_into(here, there, last="manifest.json")
        bucket.faults({"match": "GET", "delay": given.latency, "times": 10**9})
        size = paths.sizes(there)["train-00000-of-00001.arrow"]
        print(f"store of {size / 1e6:.0f} MB; answers {given.latency * 1e3:.0f} ms late; batches of {ROWS} x {LENGTH}")
        print(f"the stand-in gives {raw_rate(f'{there}/train-00000-of-00001.arrow', size) / 1e6:.0f} MB a second")
        for name, place in (("disk", str(here)), ("object store", there)):
            opened, rate = flat_out(place)
            print(f"{name}: open {opened:.2f} s, flat out {rate / 1e6:.1f} M tokens a second")
        waits = paced(there, given.tokens_per_second)
        print(
            f"paced, a host that trains {given.tokens_per_second:,.0f} tokens a second: waits of median "
            f"{statistics.median(waits) * 1e3:.2f} ms, longest {max(waits) * 1e3:.2f} ms"
        )


if __name__ == "__main__":
    main()
