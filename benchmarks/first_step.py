"""Seconds from the command to the first training step, with an empty and with a warm compilation cache.

    python -m benchmarks.first_step [--pairs=3]                      the quickstart's model (stores: make quickstart)
    python -m benchmarks.first_step --flag=--gin_file=... [--flag=…]  any run; give flags that keep it offline

The clock starts before the process does, so imports, checks of the stores and the opening of the run folder count; it
stops when the line of step 1 stands in metrics.jsonl. Goal: 25 s warm.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUICKSTART = ("--gin_file=cpt.gin", "--gin_file=quickstart.gin")


def seconds_to_step_one(flags: list[str], run: Path, cache: Path) -> float:
    """Start a run in an empty folder, stop it after its first step."""
    words = [sys.executable, "-m", "t_elaine.train", *flags, f"--gin.RUN_DIR={str(run)!r}"]
    words += [f"--gin.train.compilation_cache={str(cache)!r}"]
    environment = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True)
    try:
        while not stepped(run / "metrics.jsonl"):
            if process.poll() is not None and not stepped(run / "metrics.jsonl"):
                raise SystemExit(f"train ended with {process.returncode}:\n{process.stderr.read()[-2000:]}")
            time.sleep(0.02)
        return time.perf_counter() - start
    finally:
        process.kill()
        process.wait()


def stepped(metrics: Path) -> bool:
    """True once a whole line of training stands there."""
    if not metrics.is_file():
        return False
    lines = [line for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return any(json.loads(line)["kind"] == "train" for line in lines)


def main() -> None:
    """Run and print one JSON line at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3, help="warm starts")
    parser.add_argument("--flag", action="append", help="of t-elaine train, instead of the quickstart's")
    args = parser.parse_args()
    flags = args.flag or list(QUICKSTART)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        cold = seconds_to_step_one(flags, Path(folder) / "cold", cache)
        print(f"empty cache: {cold:.1f} s", flush=True)
        warm = []
        for index in range(args.pairs):
            warm.append(seconds_to_step_one(flags, Path(folder) / f"warm{index}", cache))
            print(f"warm cache: {warm[-1]:.1f} s", flush=True)
    result = {"cold_s": round(cold, 1), "warm_s": round(statistics.median(warm), 1), "starts": len(warm)}
    print(json.dumps({**result, "machine": f"{platform.machine()}, {os.cpu_count()} CPUs"}))


if __name__ == "__main__":
    main()
