"""Export, proof apart, beside a plain copy of the exported files; its memory; the proof's own time and memory.

    python -m benchmarks.export                           a random Llama of 1.0 GB (float32), as bfloat16 and as float32
    python -m benchmarks.export --layers=4 --pairs=1      a smaller one
    python -m benchmarks.export --checkpoint=RUN_DIR      a run of your own

A round is an export, a copy of the files that it wrote and a copy of the checkpoint's files, in turns, each in a
process of its own, the checkpoint in the page cache. All end with fsync of every file; imports and interpreter are not
timed. Two ratios of seconds, copy over export: beside the exported files (the same bytes written; a bfloat16 export
reads two bytes for each of them), and beside the checkpoint's (the same bytes read; a bfloat16 export writes half).
The export timed is the stream of the weights alone; "with digests" adds the comparison of the checkpoint's sha256,
which goes before it. Processor seconds tell more than seconds where others use the machine too. The proof runs once a
dtype: numpy's reference, and transformers with --transformers.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ALLOWANCE = 500e6
RESULT = "result: "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="run folder, with or without /checkpoints/STEP (default: a random model)")
    parser.add_argument("--dtype", action="append", choices=("bfloat16", "float32"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=16, help="of the random model")
    parser.add_argument("--folder", help="where to work (default: a temporary folder)")
    parser.add_argument("--transformers", action="store_true", help="prove through transformers too")
    parser.add_argument("--no-proof", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, checkpoint, rest = args.child
        return print(RESULT + json.dumps(CHILDREN[kind](checkpoint, **json.loads(rest))))
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {load}")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        checkpoint = args.checkpoint or child("make", f"{folder}/run", layers=args.layers)["checkpoint"]
        for dtype in args.dtype or ("bfloat16", "float32"):
            compare(checkpoint, Path(folder), dtype, args.pairs)
            if not args.no_proof:
                prove(checkpoint, Path(folder), dtype, args.transformers)


def compare(checkpoint: str, folder: Path, dtype: str, pairs: int) -> None:
    """Rounds of an export and two copies; medians of the rounds' ratios."""
    rounds = []
    for _ in range(pairs):
        made = child("stream", checkpoint, to=f"{folder}/exported", dtype=dtype)
        copies = [child("copy", source, to=f"{folder}/copied") for source in (f"{folder}/exported", made["source"])]
        rounds.append((made, *copies))
    first = rounds[0][0]
    sizes = [side["bytes"] for side in rounds[0]]
    ours, exported, source = (_speed(size, [r[i]["seconds"] for r in rounds]) for i, size in enumerate(sizes))
    ratios = [statistics.median(r[i]["seconds"] / r[0]["seconds"] for r in rounds) for i in (1, 2)]
    whole = [statistics.median(r[i]["seconds"] / (r[0]["seconds"] + r[0]["digests"]) for r in rounds) for i in (1, 2)]
    print(f"{dtype}: checkpoint {sizes[2] / 1e9:.2f} GB → {sizes[0] / 1e9:.2f} GB, medians of {pairs}: export {ours}")
    for name, taken, ratio, digests in zip(
        ("exported", "checkpoint's"), (exported, source), ratios, whole, strict=True
    ):
        print(f"  copy of the {name} files {taken}: ratio {ratio:.2f} (goal 0.5); with digests {digests:.2f}")
    for name, key in (("seconds", "seconds"), ("processor seconds", "cpu")):
        print(f"  {name} of each round: " + "; ".join(" ".join(f"{side[key]:.2f}" for side in r) for r in rounds))
    peak, bound = max(r[0]["peak"] for r in rounds), 2 * first["largest"] + ALLOWANCE
    print(f"  memory: peak {peak / 1e6:.0f} MB, of it {first['before'] / 1e6:.0f} MB before the export began; bound "
          f"{bound / 1e6:.0f} MB (two tensors of {first['largest'] / 1e6:.0f} MB and 500 MB): "
          f"{'kept' if peak <= bound else 'BROKEN'}")  # fmt: skip


def prove(checkpoint: str, folder: Path, dtype: str, transformers: bool) -> None:
    """A whole export, for the proof's share of time and memory."""
    shutil.rmtree(folder / "exported")
    found = child("whole", checkpoint, to=f"{folder}/exported", dtype=dtype, transformers=transformers)
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in found["seconds"].items())
    print(f"  whole export with proof: {seconds}; peak {found['peak'] / 1e6:.0f} MB; {'; '.join(found['said'][1:])}")


def child(kind: str, checkpoint: str, **arguments: Any) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.export", "--child", kind, checkpoint, json.dumps(arguments)]
    os.sync()  # nobody pays for what another left to be written
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.rpartition(RESULT)[2])


def make(run_dir: str, layers: int) -> dict[str, Any]:
    """A run folder with a random model as checkpoint 0: 16 layers are 253 M parameters, 1.01 GB."""
    import jax

    from t_elaine.checkpoints.layout import CheckpointMeta
    from t_elaine.checkpoints.writing import save_params
    from t_elaine.model import llama
    from t_elaine.model.config import LlamaConfig

    config = LlamaConfig(vocab_size=32000, embed=1024, mlp=2816, layers=layers, q_heads=16, kv_heads=8, head_dim=64)
    sha256 = hashlib.sha256(b"none").hexdigest()
    record = {"kind": "none", "sha256": sha256, "size": 300, "bos": None, "eos": None, "pad": None}
    os.makedirs(f"{run_dir}/vocabulary")
    Path(run_dir, "vocabulary", "vocabulary.json").write_text(json.dumps(record), encoding="utf-8")
    params = jax.jit(lambda key: llama.init(config, key))(jax.random.key(0))
    meta = CheckpointMeta(
        step=0, tokens=0, row=0, vocabulary_sha256=sha256, model=dataclasses.asdict(config), config_hash="",
        parent=None, has_optimizer=False,
    )  # fmt: skip
    save_params(run_dir, 0, params, meta)
    return {"checkpoint": run_dir}


def stream(checkpoint: str, to: str, dtype: str) -> dict[str, Any]:
    """The part of an export that moves the weights, and the comparison of digests before it."""
    from t_elaine.checkpoints import reading
    from t_elaine.checkpoints.layout import step_dir
    from t_elaine.hf import exporting, mapping, proof, tensors

    run_dir, step = reading.resolve(checkpoint)
    config = exporting.config_of(reading.read_meta(run_dir, step))
    folder = _empty(to)
    before = peak_bytes()
    digests = _timed(lambda: exporting.check_digests(run_dir, step))  # brings the files into the page cache, too
    source = proof.checkpoint_source(run_dir, step)
    cpu = time.process_time()
    seconds = _timed(lambda: exporting.write_weights(folder, source, config, dtype, tensors.SHARD_BYTES))
    cpu = time.process_time() - cpu
    listed = mapping.hf_tensors(config)
    return {
        "seconds": seconds, "cpu": cpu, "digests": digests, "before": before, "peak": peak_bytes(),
        "bytes": _size(folder),
        "source": f"{step_dir(run_dir, step)}/params", "largest": max(4 * int(np.prod(t.shape)) for t in listed),
    }  # fmt: skip


def copy(folder: str, to: str) -> dict[str, Any]:
    """`shutil.copyfile` of each file, flushed to disk as the export flushes its own."""
    target = _empty(to)

    def work() -> None:
        for number, path in enumerate(path for path in Path(folder).rglob("*") if path.is_file()):
            shutil.copyfile(path, target / str(number))
            with open(target / str(number), "rb") as handle:
                os.fsync(handle.fileno())

    cpu = time.process_time()
    return {"seconds": _timed(work), "cpu": time.process_time() - cpu, "bytes": _size(target)}


def whole(checkpoint: str, to: str, dtype: str, transformers: bool) -> dict[str, Any]:
    """An export as the command does it, with ids from a stand-in for a tokenizer: one a byte."""
    from t_elaine.hf.exporting import export_checkpoint

    def encode(texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) + 10 for text in texts]

    said: list[str] = []
    done = export_checkpoint(checkpoint, to, encode, dtype, transformers=transformers, say=said.append)
    return {"seconds": done.seconds, "peak": peak_bytes(), "said": said}


def peak_bytes() -> int:
    """The most memory that this process has had resident (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _empty(folder: str) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    os.sync()
    return Path(folder)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _speed(size: int, seconds: list[float]) -> str:
    middle = statistics.median(seconds)
    return f"{middle:.2f} s ({size / 1e6 / middle:.0f} MB/s)"


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"make": make, "stream": stream, "copy": copy, "whole": whole}

if __name__ == "__main__":
    main()
