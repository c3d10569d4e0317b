"""Our train step on GPUs beside transformers + PyTorch, and against the card's own measured matmul rate.

    python -m benchmarks.gpu                    the shape of Llama-3.2-1B, and the deepest slice of Llama-3-8B that fits
    python -m benchmarks.gpu --models 1b --pairs=5 --gpus=8
    python -m benchmarks.gpu --rehearse         tiny shapes on a CPU: tries this script, says nothing of speed

Rows of 8192 tokens of packed documents (seeded lengths), the same weights and tokens for both sides, whose losses must
agree. Ours is the step that `train` runs (loss by group, clipping, the skip of non-finite updates, float32 AdamW);
theirs is `LlamaForCausalLM` with SDPA under `torch.compile` and the fused AdamW, documents kept apart by a mask
(`--mask=causal`: not kept apart, which lets SDPA take its flash kernel but trains something else; losses are then not
compared). Each turn is a process of its own, which has the whole card; turns alternate (ours, theirs, theirs, ours, …);
figures are medians. Several GPUs: ours runs on all; theirs on one, times their number, as if it scaled perfectly.

Exit codes: 0 measured, 2 no GPU (or PyTorch sees none), 1 the losses part or nothing fits. No GPU has run this yet.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import AbstractMesh, AxisType

from t_elaine.hf import mapping
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.parallel.mesh import AXES
from t_elaine.training.fit import need
from t_elaine.training.metrics import flops_per_token

ONE = LlamaConfig(
    vocab_size=128256, embed=2048, mlp=8192, layers=16, q_heads=32, kv_heads=8, head_dim=64, tied_embeddings=True
)
EIGHT = LlamaConfig(vocab_size=128256, embed=4096, mlp=14336, layers=32, q_heads=32, kv_heads=8, head_dim=128)
TINY = LlamaConfig(vocab_size=512, embed=64, mlp=128, layers=2, q_heads=4, kv_heads=2, head_dim=16)
FLASH = {"attention": "flash_gpu", "attention_block": 128, "loss_chunk": 1024}
CANDIDATES = {
    "flash_gpu 128, nothing recomputed": {**FLASH, "remat": "none"},
    "flash_gpu 128, minimal": {**FLASH, "remat": "minimal"},
    "flash_gpu 64, minimal": {**FLASH, "attention_block": 64, "remat": "minimal"},
    "blocked 256, minimal": {"attention": "blocked", "attention_block": 256, "loss_chunk": 1024, "remat": "minimal"},
    "flash_gpu 128, all but q k v o": {
        **FLASH, "remat": "names", "saved": ["q", "k", "v", "attention", "middle"],
    },
}  # fmt: skip
RATIO, SHARE = 1.3, 0.5  # the goals
APART = 0.02  # nats by which losses of the first steps may differ in bfloat16
GROUP_APART = 0.01  # nats, for each group of documents before the first update; another mask parts them by 0.06
ROOM = 0.85  # of a card's memory that a slice may need by arithmetic


def turn(job: Mapping[str, Any], rehearse: bool) -> dict[str, Any]:
    """What one process of benchmarks/gpu_sides.py answers; {"error": …} where the memory was not enough."""
    environment = dict(os.environ)
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    if rehearse:
        environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, "-m", "benchmarks.gpu_sides", json.dumps(job)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    line = next((line for line in reversed(done.stdout.splitlines()) if line.startswith("{")), None)
    if line is None or done.returncode:
        raise SystemExit(f"the {job['side']} process ended with code {done.returncode}")
    return dict(json.loads(line))


def slice_depth(memory: int, rows: int, length: int) -> int:
    """Layers of Llama-3-8B's width that fit both sides by arithmetic.

    Theirs keeps 16 bytes a parameter, every layer's tensors (34 of D's width in bfloat16, with the mlp's) and three
    float32 copies of the logits.
    """
    mesh: Any = AbstractMesh((1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    compute = ComputeConfig(remat="minimal", attention="flash_gpu", loss_chunk=1024)
    for layers in range(EIGHT.layers, 0, -1):
        config = dataclasses.replace(EIGHT, layers=layers)
        tokens = rows * length
        kept = tokens * (34 * 2 * layers * config.embed + 3 * 4 * config.vocab_size)
        peer = 16 * mapping.parameters(config) + kept
        if max(peer, need(config, compute, mesh, rows, length).total) <= ROOM * memory:
            return layers
    raise SystemExit(f"not one layer of Llama-3-8B's width fits {memory / 2**30:.0f} GiB")


def flops(config: LlamaConfig, length: int) -> float:
    """Of a token's training, recomputation and causal attention's masked half not counted (as `plan` counts)."""
    return flops_per_token(config, length) - 6.0 * config.layers * config.q_heads * config.head_dim * length


def best_of_ours(job: Mapping[str, Any], names: Sequence[str], rehearse: bool) -> str:
    """The fastest candidate that fits, "" if none does; each has one turn."""
    rates: dict[str, float] = {}
    for name in names:
        got = turn({**job, "side": "ours", "compute": {**CANDIDATES[name], **job["compute"]}}, rehearse)
        if "error" not in got:
            rates[name] = 1 / got["seconds"]
        told = got.get("error") or f"{got['seconds']:.4f} s a step, {got['memory'] / 2**30:.1f} GiB"
        print(f"  {name}: {told}  {got.get('warning', '')}".rstrip(), flush=True)
    return max(rates, key=lambda name: rates[name]) if rates else ""


def peer_that_fits(job: Mapping[str, Any], rehearse: bool) -> dict[str, Any] | None:
    """The peer's settings: with gradient checkpointing only where it does not fit without."""
    for checkpointing in (False, True):
        tried = {**job, "side": "theirs", "checkpointing": checkpointing}
        got = turn(tried, rehearse)
        told = got.get("error") or f"{got['seconds']:.4f} s a step, {got['memory'] / 2**30:.1f} GiB"
        print(f"  theirs{', checkpointing' if checkpointing else ''}: {told}", flush=True)
        if "error" not in got:
            return tried
    return None


def pairs(mine: Mapping[str, Any], peer: Mapping[str, Any], count: int, rehearse: bool) -> list[tuple[float, float]]:
    """(our seconds, their seconds) of a step, alternately. Ends where the losses part."""
    rows = []
    for index in range(count):
        order = (mine, peer) if index % 2 == 0 else (peer, mine)
        got = {job["side"]: turn(job, rehearse) for job in order}
        if bad := [f"{side}: {answer['error']}" for side, answer in got.items() if "error" in answer]:
            raise SystemExit("; ".join(bad))
        a, b = got["ours"], got["theirs"]
        apart = max(abs(x - y) for x, y in zip(a["losses"], b["losses"], strict=True))
        parted = max(abs(x - y) for x, y in zip(a["by_group"], b["by_group"], strict=True))
        if peer["mask"] == "packed" and mine["gpus"] == 1 and (apart > APART or parted > GROUP_APART):
            told = f"ours {a['losses']}, theirs {b['losses']}; by groups of documents {parted:.4f} apart"
            raise SystemExit(f"the losses part: {told}")
        rows.append((a["seconds"], b["seconds"]))
        losses = f"losses {apart:.4f} apart, by group {parted:.4f}"
        print(f"  pair {index + 1}: ours {a['seconds']:.4f} s, theirs {b['seconds']:.4f} s, {losses}", flush=True)
    return rows


def judged(job: Mapping[str, Any], rows: Sequence[tuple[float, float]], card: float, rehearse: bool) -> dict[str, Any]:
    """The figures of one shape, in tokens/s of all GPUs; a rehearsal reaches and misses nothing."""
    config, tokens = LlamaConfig(**job["config"]), job["rows"] * job["length"] * job["gpus"]
    ours, theirs = (tokens / statistics.median(part) for part in zip(*rows, strict=True))
    ratio = statistics.median(b / a for a, b in rows)
    a_token = flops(config, job["length"])
    shares = {side: rate * a_token / job["gpus"] / card for side, rate in (("ours", ours), ("theirs", theirs))}
    for told, value, goal in (("ratio", ratio, RATIO), ("of the card's matmul rate", shares["ours"], SHARE)):
        verdict = "rehearsed, not judged" if rehearse else "reached" if value >= goal else "missed"
        print(f"  {told}: {value:.3f}, goal {goal}: {verdict}")
    print(f"  tokens/s: ours {ours:,.0f}, theirs {theirs:,.0f} ({100 * shares['theirs']:.1f} % of the matmul rate)")
    return {
        "layers": config.layers,
        "ours_tokens_per_s": round(ours, 1),
        "theirs_tokens_per_s": round(theirs, 1),
        "ratio": round(ratio, 3),
        "pairs": [round(b / a, 3) for a, b in rows],
        "share_of_matmul_rate": {side: round(share, 3) for side, share in shares.items()},
    }


def measured(
    name: str, config: LlamaConfig, base: Mapping[str, Any], args: argparse.Namespace, card: float
) -> dict[str, Any] | None:
    """One shape: candidates, the peer, pairs. None where a side does not fit."""
    job = {**base, "config": {**dataclasses.asdict(config), "rope_scaling": None}}
    print(f"{name}, {config.layers} layers, {mapping.parameters(config) / 1e9:.2f} B parameters", flush=True)
    chosen = best_of_ours(job, args.candidates, args.rehearse)
    peer = peer_that_fits(job, args.rehearse) if chosen else None
    if peer is None:
        return None
    mine = {**job, "side": "ours", "compute": {**CANDIDATES[chosen], **job["compute"]}}
    rows = pairs(mine, peer, args.pairs, args.rehearse)
    told = {"ours": chosen, "their_checkpointing": peer["checkpointing"], "their_mask": peer["mask"]}
    return told | judged(job, rows, card, args.rehearse)


def matmul_rate(sizes: Sequence[int], rehearse: bool) -> float:
    """The best bfloat16 matmul rate of some sizes in JAX and in PyTorch, FLOP/s."""
    found: dict[str, float] = {}
    for library in ("jax", "torch"):
        job = {"side": "matmul", "library": library, "sizes": list(sizes), "steps": 3 if rehearse else 30}
        found |= {f"{library} {n}": rate for n, rate in turn(job, rehearse).get("rates", {}).items()}
    best = max(found, key=lambda name: found[name])
    print(f"bfloat16 matmuls: {found[best] / 1e12:.2f} TFLOP/s at best ({best})", flush=True)
    return found[best]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("1b", "8b"), default=["1b", "8b"])
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a turn")
    parser.add_argument("--rows", type=int, default=1, help="rows a GPU, on both sides")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=0, help="of the 8B slice; 0: as many as fit both sides")
    parser.add_argument("--candidates", nargs="+", choices=tuple(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--compute", type=json.loads, default={}, help="changes to our compute settings, as JSON")
    parser.add_argument("--options", type=json.loads, default={}, help="XLA compiler options, as JSON")
    parser.add_argument("--mask", choices=("packed", "causal"), default="packed", help="what the peer attends to")
    parser.add_argument("--mode", default="", help="torch.compile's mode, as max-autotune-no-cudagraphs")
    parser.add_argument("--rehearse", action="store_true")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and end with one JSON line."""
    args = arguments(argv)
    found = turn({"side": "devices"}, args.rehearse)
    if not args.rehearse and min(found["gpus"], found["torch_gpus"]) < args.gpus:
        seen = f"JAX sees {found['gpus']} GPU(s), PyTorch {found['torch_gpus']}; --gpus={args.gpus}"
        mend = "a machine with GPUs, jax[cuda13] and a PyTorch with CUDA; or --rehearse"
        print(f"error: nothing was measured: {seen}\nwhere: this machine\nmend: {mend}", file=sys.stderr)
        return 2
    shapes = {"1b": ("the shape of Llama-3.2-1B", ONE), "8b": ("a slice of Llama-3-8B", EIGHT)}
    memory, sizes, backend = found["memory"], [4096, 8192, 16384], "inductor"
    if args.rehearse:
        print("REHEARSAL on a CPU with tiny shapes: no figure below says anything of a GPU", flush=True)
        shapes, args.length, sizes, backend = dict.fromkeys(args.models, ("a toy", TINY)), 128, [64, 128], "eager"
    card = matmul_rate(sizes, args.rehearse)
    kept = ("gpus", "rows", "length", "steps", "compute", "options", "mask", "mode")
    base = {**{name: getattr(args, name) for name in kept}, "backend": backend}
    results: dict[str, Any] = {}
    for model in args.models:
        name, config = shapes[model]
        if model == "8b" and not args.rehearse:
            config = dataclasses.replace(config, layers=args.layers or slice_depth(memory, args.rows, args.length))
        while (result := measured(name, config, base, args, card)) is None:
            if model == "1b" or args.layers or args.rehearse or config.layers == 1:
                raise SystemExit(f"{name} does not fit this GPU on both sides")
            config = dataclasses.replace(config, layers=config.layers - 1)
        results[model] = result
    told = {"gpu": found["kind"], "gpus": args.gpus, "versions": found["versions"], "rehearsal": args.rehearse}
    print(json.dumps(told | {"matmul_tflops": round(card / 1e12, 2), **results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
