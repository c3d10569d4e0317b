"""A float32 training step on CPU beside transformers + PyTorch: forward, backward and AdamW, tokens a second.

    python benchmarks/step.py --pairs=5

Both sides start from the same random weights at the shape of SmolLM2-135M and see the same rows of one document each;
their losses must agree at every step, or the benchmark stops. Each side is a process of its own; they alternate (ours,
theirs, theirs, ours, …), so a busy machine slows both, and each timed step follows an untimed one, as in training. The
figure is the median of the ratios. Needs torch and transformers.

Ours is the model code that runs on TPU, with compute settings for a CPU (`COMPUTE`), started as `t_elaine.train` starts
itself: with huge pages where the kernel leaves the choice (`--pages=none`: without). Theirs is `LlamaForCausalLM` with
SDPA attention and the fused AdamW as Python starts it (`--pages=both`: with huge pages too). Default threads for both.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from t_elaine import huge_pages

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if not {"--pages=none", "--serve"} & set(sys.argv):
        huge_pages.start_again()

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t_elaine.hf import mapping
from t_elaine.model import llama, loss
from t_elaine.model.config import ComputeConfig, LlamaConfig, to_hf

SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    embed=576,
    mlp=1536,
    layers=30,
    q_heads=9,
    kv_heads=3,
    head_dim=64,
    rope_theta=100000.0,
    tied_embeddings=True,
)
COMPUTE = {"dtype": "float32", "remat": "none", "attention": "blocked", "attention_block": 64}
ADAMW = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
RATE = 1e-4


def ours(
    config: LlamaConfig, compute: ComputeConfig, params: Any, tokens: np.ndarray, options: dict
) -> Callable[[], float]:
    """A function that does one step and gives its loss."""
    optimizer = optax.adamw(RATE, **ADAMW)
    inputs, targets = jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:])
    positions = jnp.broadcast_to(jnp.arange(inputs.shape[1], dtype=jnp.int32)[None], inputs.shape)
    ones = jnp.ones(inputs.shape, jnp.int32)

    def mean_loss(params: Any) -> jax.Array:
        x = llama.hidden(params, config, compute, inputs, positions, ones)
        table = llama.head_table(params, config)
        total, *_ = loss.weighted_nll(x, table, targets, ones.astype(jnp.float32), compute.loss_chunk)
        return total / ones.size

    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(mean_loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state).compile(compiler_options=options)
    taken, memory = time.perf_counter() - start, compiled.memory_analysis()
    told = f", {memory.temp_size_in_bytes / 2**30:.2f} GiB of temporaries" if memory else ""
    print(f"compiled in {taken:.0f} s{told}", flush=True)
    held = [params, state]

    def run() -> float:
        held[0], held[1], value = compiled(*held)
        return float(value)

    return run


def torch_side(model: Any, tokens: np.ndarray) -> Callable[[], float]:
    """The same for PyTorch."""
    import torch

    betas = (ADAMW["b1"], ADAMW["b2"])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=betas, eps=ADAMW["eps"], weight_decay=ADAMW["weight_decay"], fused=True
    )
    inputs, targets = (torch.tensor(part, dtype=torch.long) for part in (tokens[:, :-1], tokens[:, 1:]))

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(input_ids=inputs, use_cache=False).logits
        value = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        value.backward()
        optimizer.step()
        return float(value.detach())

    return run


def serve(config: LlamaConfig, tokens: np.ndarray, weights: str) -> None:
    """The peer's process: make random weights, keep a copy in a file, then do two steps for each line that comes in."""
    import torch
    import transformers

    torch.manual_seed(0)
    settings = transformers.LlamaConfig(**{k: v for k, v in to_hf(config, "float32").items() if k != "rope_scaling"})
    settings._attn_implementation = "sdpa"
    model = transformers.LlamaForCausalLM(settings).float().train()
    np.savez(weights, **{name: tensor.detach().numpy() for name, tensor in model.state_dict().items()})
    run = torch_side(model, tokens)
    for _ in sys.stdin:
        print(json.dumps(timed(run)), flush=True)


def start_peer(arguments: list[str], weights: str, pages: str) -> subprocess.Popen[str]:
    """Start the peer's process; its weights are there when the file has its name."""
    environment = dict(os.environ)
    if pages != "both":
        environment.pop(huge_pages.VARIABLE, None)
    command = [sys.executable, "-m", "benchmarks.step", *arguments, "--serve", "--weights", weights]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(peer: subprocess.Popen[str]) -> tuple[float, float]:
    """(seconds, loss) of the peer's next steps."""
    assert peer.stdin is not None and peer.stdout is not None
    print("step", file=peer.stdin, flush=True)
    line = next((line for line in peer.stdout if line.startswith("[")), None)
    if line is None:
        raise SystemExit("the peer's process ended")
    seconds, value = json.loads(line)
    return seconds, value


def _part(whole: np.ndarray, box: Any) -> np.ndarray:
    return whole[tuple(box)]


def read_weights(config: LlamaConfig, read: Callable[[mapping.HfTensor], np.ndarray]) -> Any:
    """The peer's weights, read tensor by tensor in Hugging Face's layout, as our parameters."""
    parts: dict[str, list[np.ndarray]] = {}
    for tensor in mapping.hf_tensors(config):
        value = mapping.from_hf(tensor.weight, config, partial(_part, read(tensor)))
        parts.setdefault(tensor.weight.path, []).append(value)

    def fill(path: tuple[Any, ...], _: Any) -> jax.Array:
        values = parts.pop(jax.tree_util.keystr(path, simple=True, separator="/"))
        return jnp.array(np.stack(values) if path[0].key == "layers" else values[0])

    return jax.tree.map_with_path(fill, llama.parameter_shapes(config))


def timed(run: Callable[[], float], clock: Callable[[], float] = time.perf_counter) -> tuple[float, float]:
    """(seconds, loss) of the second of two steps."""
    run()
    start = clock()
    value = run()
    return clock() - start, value


def compare(
    one: Callable[[], tuple[float, float]], two: Callable[[], tuple[float, float]], pairs: int, tokens: int
) -> dict[str, Any]:
    """Alternate, print each pair, give the medians. Losses that part raise."""
    rows: list[tuple[float, float]] = []
    for index in range(pairs + 1):
        results = {side: side() for side in ([one, two] if index % 2 else [two, one])}
        (a, loss_a), (b, loss_b) = results[one], results[two]
        if abs(loss_a - loss_b) > 2e-3:
            raise SystemExit(f"the losses part at step {index}: ours {loss_a:.5f}, theirs {loss_b:.5f}")
        warm = "warm-up" if index == 0 else f"pair {index}"
        print(f"{warm}: ours {tokens / a:6.1f}  theirs {tokens / b:6.1f} tokens/s  ratio {b / a:.3f}  "
              f"loss {loss_a:.4f} {loss_b:.4f}", flush=True)  # fmt: skip
        if index:
            rows.append((a, b))
    return {
        "ours_tokens_per_s": round(tokens / statistics.median(a for a, _ in rows), 1),
        "theirs_tokens_per_s": round(tokens / statistics.median(b for _, b in rows), 1),
        "ratio": round(statistics.median(b / a for a, b in rows), 3),
        "pairs": [round(b / a, 3) for a, b in rows],
    }


def main() -> None:
    """Run and print one JSON line at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--layers", type=int, default=SMOLLM2.layers)
    parser.add_argument("--pages", choices=("ours", "both", "none"), default="ours", help="who has huge pages")
    parser.add_argument("--compute", type=json.loads, default={}, help="changes to the compute settings, as JSON")
    parser.add_argument("--options", type=json.loads, default={}, help="XLA compiler options, as JSON")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = dataclasses.replace(SMOLLM2, layers=args.layers)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (args.rows, args.length + 1)).astype(np.int32)
    if args.serve:
        return serve(config, tokens, args.weights)
    compute = ComputeConfig(**{**COMPUTE, **args.compute})
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/weights.npz"
        peer = start_peer(sys.argv[1:], weights, args.pages)
        print(f"before the first pair, the peer's loss is {ask(peer)[1]:.4f}", flush=True)
        with np.load(weights) as held:
            params = read_weights(config, lambda tensor: held[tensor.name])
        run = ours(config, compute, params, tokens, args.options)
        Path(weights).unlink()
        timed(run)
        result = compare(lambda: timed(run), lambda: ask(peer), args.pairs, args.rows * args.length)
        peer.kill()
    result["pages"] = {"ours": os.environ.get(huge_pages.VARIABLE, ""), "theirs": args.pages == "both"}
    packages = f"torch {version('torch')}, jax {jax.__version__}"
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} CPUs, {packages}"
    print(json.dumps(result))


if __name__ == "__main__":
    main()
