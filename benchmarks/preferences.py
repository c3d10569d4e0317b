"""Twenty steps of DPO or RPO on SmolLM2-135M in float32, ours beside TRL's DPOTrainer: each step's loss.

    python -m benchmarks.preferences --model=SMOLLM2_FOLDER --work=FOLDER [--rpo=1.0]

The whole road is ours: the shipped samples of preferences in three languages become stores with the model's own chat
template, the folder is imported, `t-elaine train` with dpo.gin trains in full. TRL then gets the pairs of our batches
as ids, in the same order, and trains the same folder with the same rate. Needs torch, transformers and TRL
(`trl_peer`); the model: `python -m benchmarks.smollm2 --out=SMOLLM2_FOLDER`. What --work holds is not made again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import trl_peer
from t_elaine.data.loader import Loader, open_mixture
from t_elaine.data.mixture import Mixture

LIMIT, STORES = 1e-3, tuple(f"samples_preferences_{language}" for language in ("en", "ja", "zh"))
RATE, ADAM, BETA = 1e-6, (0.9, 0.999, 1e-8), 0.1


def command(*arguments: str) -> None:
    """One of our commands, in a process of its own."""
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def mixture(work: Path, length: int, rows: int) -> Mixture:
    """What the run reads, as its settings say it."""
    folders = tuple(str(work / "stores" / name) for name in STORES)
    return Mixture(
        stores=folders,
        sequence_length=length,
        batch_tokens=rows * length,
        packing="whole",
        overlong="truncate",
    )


def ours(args: argparse.Namespace, run: Path) -> dict[str, Any]:
    """Prepare, import and train; the losses and the median seconds of a step."""
    work: Path = args.work
    if not (work / "stores" / STORES[-1]).exists():
        given = [f"--vocabulary={args.model}", f"--stores={work / 'stores'}", "--gin.prepare.validation_share=0.0"]
        command("t_elaine.prepare", "--tasks=samples_preferences", "--template=chat", *given)
    if not (work / "base").exists():
        command("t_elaine.import_hf", f"--hf={args.model}", f"--to={work / 'base'}")
    settings = {
        "RUN_DIR": str(run),
        "STORES": mixture(work, args.length, args.rows).stores,
        "Start.checkpoint": str(work / "base"),
        "Mixture.sequence_length": args.length,
        "Mixture.batch_tokens": args.rows * args.length,
        "Loop.steps": args.steps,
        "Loop.evaluate_every": 0,
        "Loop.evaluate_tokens": 0,
        "Loop.print_every": 1,
        "Checkpointing.every": 10**6,
        "Preference.beta": BETA,
        "Preference.rpo_alpha": args.rpo,
        "Schedule.peak": RATE,
        "Schedule.kind": "constant",
        "Schedule.warmup_steps": 0,
        "AdamW.b1": ADAM[0],
        "AdamW.b2": ADAM[1],
        "AdamW.eps": ADAM[2],
        "AdamW.weight_decay": 0.0,
        "AdamW.clip": None,
        "ComputeConfig.dtype": "float32",
        "ComputeConfig.remat": "none",
    }
    text = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
    (work / "compared.gin").write_text(text, encoding="utf-8")
    files = ("dpo.gin", "models/smollm2_135m.gin", "hardware/cpu.gin", work / "compared.gin")
    command("t_elaine.train", *(f"--gin_file={file}" for file in files))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    seconds = sorted(line["seconds"]["step"] for line in steps[1:])
    return {"losses": [line["loss"] for line in steps], "seconds": seconds[len(seconds) // 2], "last": steps[-1]}


def theirs(args: argparse.Namespace) -> dict[str, Any]:
    """TRL on the pairs of our batches."""
    import torch
    import transformers

    loader = Loader(open_mixture(mixture(args.work, args.length, args.rows)), 1, args.rows, range(args.rows))
    batches = [trl_peer.pairs_of(loader.batch(step)) for step in range(args.steps)]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    begin = time.perf_counter()
    found = trl_peer.losses(model, batches, beta=BETA, rpo_alpha=args.rpo, rate=RATE, adam=ADAM)
    return {"losses": found, "seconds": (time.perf_counter() - begin) / args.steps, "pairs": [len(b) for b in batches]}


def main() -> int:
    """Run both and print one JSON line; 1 where the losses part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rpo", type=float, default=0.0)
    for flag, default in (("steps", 20), ("rows", 1), ("length", 640)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    args.work.mkdir(parents=True, exist_ok=True)
    one = ours(args, args.work / f"run-{args.rpo}-{os.getpid()}")
    other = theirs(args)
    both = list(zip(one["losses"], other["losses"], strict=True))
    for step, (a, b) in enumerate(both, 1):
        print(f"step {step}: ours {a:.7f}  theirs {b:.7f}", flush=True)
    largest = max(abs(a - b) for a, b in both)
    result = {
        **{"steps": args.steps, "pairs": sum(other["pairs"]), "largest": largest, "within": largest < LIMIT},
        **{"first": both[0], "last": both[-1], "margin": one["last"]["margin"]},
        **{"seconds": [round(one["seconds"], 2), round(other["seconds"], 2)]},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, torch {version('torch')}, jax {version('jax')}",
    }
    print(json.dumps(result))
    return 0 if largest < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
