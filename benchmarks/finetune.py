"""A float32 LoRA step on CPU beside PEFT + transformers + PyTorch, and both sides' losses over twenty steps.

    python -m benchmarks.finetune --pairs=5          tokens a second at the shape of SmolLM2-135M, and the ratio
    python -m benchmarks.finetune --losses=20        the largest difference of a step's loss; 1e-3 is the limit
    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.finetune --clock=processor      on a machine that is busy

Both sides start from the same random weights and adapters and see the same rows of one document each. Each side is a
process of its own; they alternate, and each timed step follows an untimed one (`benchmarks.step`). Ours is the training
step of `t_elaine.training`, with compute settings for a CPU; theirs `get_peft_model` over `LlamaForCausalLM` with SDPA
attention and the fused AdamW on the adapters. With --clock=processor seconds of the processor are counted, which other
programs lengthen little; on one core, since threads that wait for each other burn it. Needs torch, transformers, peft.
"""

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from t_elaine import huge_pages

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if "--serve" not in sys.argv:
        huge_pages.start_again()

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.step import ADAMW, COMPUTE, RATE, SMOLLM2, ask, compare, read_weights, timed, torch_side
from t_elaine.hf.peft_format import name as peft_name
from t_elaine.model import lora
from t_elaine.model.config import ComputeConfig, LlamaConfig, to_hf
from t_elaine.model.lora import Lora
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.training import step as steps
from t_elaine.training.optimizer import AdamW

LIMIT = 1e-3
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}


def ours(config: LlamaConfig, compute: ComputeConfig, settings: Lora, held: Any, tokens: np.ndarray) -> Any:
    """A function that does one step and gives its loss."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    adamw = AdamW(**ADAMW, clip=None)
    rate = lambda step: jnp.float32(RATE)  # noqa: E731
    made = steps.make_step(config, compute, adamw, rate, mesh, 1, np.ones(config.vocab_size, np.int32), lora=settings)
    base = lora.freeze(config, settings.base, read_weights(config, lambda tensor: held[tensor.name]))
    adapters = lora.init(config, settings, base, jax.random.key(0))
    for m in lora.targets(config, settings):
        own = adapters["layers"][m.group][m.name]
        for part in own:
            own[part] = jnp.asarray(np.stack([held[peft_name(m, i, part)].T for i in range(config.layers)]))
    place = jax.jit(lambda own, base: steps.init_state(own) | {"base": base}, out_shardings=made.state_shardings)
    rows, length = tokens.shape[0], tokens.shape[1] - 1
    ones, places = np.ones((rows, length), np.int32), np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    arrays = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segments": ones, "positions": places}
    arrays |= {"weights": ones.astype(np.float32), "groups": 0 * ones}
    batch = jax.device_put({key: value[None] for key, value in arrays.items()}, made.batch_sharding)
    compiled = made.run.lower(made.state_shapes, batch).compile()
    memory = compiled.memory_analysis()
    print(f"{memory.temp_size_in_bytes / 2**30:.2f} GiB of temporaries" if memory else "", flush=True)
    state = [place(adapters, base)]

    def run() -> float:
        state[0], metrics = compiled(state[0], batch)
        return float(metrics["loss"])

    return run


def serve(config: LlamaConfig, settings: Lora, tokens: np.ndarray, weights: str, clock: Callable[[], float]) -> None:
    """The peer: weights into a file, then for each line that comes in two steps, the second timed, or one."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    fields = {k: v for k, v in to_hf(config, "float32").items() if k != "rope_scaling"}
    whole = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields, attn_implementation="sdpa")).float()
    arrays = {key: value.detach().numpy().copy() for key, value in whole.state_dict().items()}
    names = [f"{m.name}_proj" for m in lora.targets(config, settings)]
    chosen = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=names, use_dora=settings.dora)
    model = peft.get_peft_model(whole, chosen).train()
    own = peft.get_peft_model_state_dict(model)
    np.savez(weights, **arrays, **{key: value.numpy().copy() for key, value in own.items()})
    print("[0.0, 0.0]", flush=True)  # the weights are there
    run = torch_side(model, tokens)
    for line in sys.stdin:
        print(json.dumps(timed(run, clock) if line.strip() == "step" else [run(), 0.0]), flush=True)


def start_peer(weights: str) -> subprocess.Popen[str]:
    """Start the peer's process as Python starts it, without our huge pages."""
    environment = {key: value for key, value in os.environ.items() if key != huge_pages.VARIABLE}
    command = [sys.executable, "-m", "benchmarks.finetune", *sys.argv[1:], "--serve", "--weights", weights]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(peer: subprocess.Popen[str]) -> list[float]:
    """The peer's next line of figures."""
    assert peer.stdout is not None
    line = next((line for line in peer.stdout if line.startswith("[")), None)
    if line is None:
        raise SystemExit("the peer's process ended")
    return list(json.loads(line))


def losses(run: Callable[[], float], peer: subprocess.Popen[str], count: int) -> dict[str, Any]:
    """Each step's loss on both sides, and the largest difference."""
    assert peer.stdin is not None
    pairs = []
    for index in range(count):
        print("one", file=peer.stdin, flush=True)
        pairs.append((run(), answer(peer)[0]))
        print(f"step {index + 1}: ours {pairs[-1][0]:.6f}  theirs {pairs[-1][1]:.6f}", flush=True)
    largest = max(abs(a - b) for a, b in pairs)
    return {"steps": count, "largest": largest, "within": largest < LIMIT, "first": pairs[0], "last": pairs[-1]}


def main() -> int:
    """Run and print one JSON line at the end; 1 where the losses part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for flag, default in (("pairs", 5), ("rows", 4), ("length", 512), ("layers", SMOLLM2.layers), ("rank", 16)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    parser.add_argument("--losses", type=int, default=0, help="compare this many steps' losses instead of their speed")
    parser.add_argument("--dora", action="store_true")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="processor: of a machine that is shared")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = dataclasses.replace(SMOLLM2, layers=args.layers)
    settings = Lora(rank=args.rank, alpha=2 * args.rank, dora=args.dora, base="float32")
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (args.rows, args.length + 1)).astype(np.int32)
    if args.serve:
        serve(config, settings, tokens, args.weights, CLOCKS[args.clock])
        return 0
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/weights.npz"
        peer = start_peer(weights)
        try:
            answer(peer)
            result = measured(args, config, settings, weights, tokens, peer)
        finally:
            peer.kill()
    packages = f"torch {version('torch')}, jax {jax.__version__}"
    result["clock"] = args.clock
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} CPUs, {packages}"
    print(json.dumps(result))
    return 0 if result.get("within", True) else 1


def measured(
    args: argparse.Namespace, config: LlamaConfig, settings: Lora, weights: str, tokens: np.ndarray, peer: Any
) -> dict[str, Any]:
    """Losses or speed, as asked."""
    with np.load(weights) as held:
        run = ours(config, ComputeConfig(**COMPUTE), settings, held, tokens)
    if args.losses:
        return losses(run, peer, args.losses)
    clock = CLOCKS[args.clock]
    timed(run)
    print(f"before the first pair, the peer's loss is {ask(peer)[1]:.4f}", flush=True)
    return compare(lambda: timed(run, clock), lambda: ask(peer), args.pairs, args.rows * args.length)


if __name__ == "__main__":
    sys.exit(main())
