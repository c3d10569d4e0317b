"""A float32 training step on CPU beside transformers + PyTorch: forward, backward and AdamW, tokens a second.

    python benchmarks/step.py --pairs=5

Both sides start from the same random weights at the shape of SmolLM2-135M and see the same rows of one document each;
their losses must agree at every step, or the benchmark stops. Sides alternate (ours, theirs, theirs, ours, …), so a
busy machine slows both; each timed step follows an untimed one of its own side, as in training (the first after the
other side pays for the other's memory); the figure is the median of the ratios. Needs torch and transformers.

Ours is the model code that runs on TPU, with compute settings for a CPU (`COMPUTE`) and the compiler options below.
Theirs is `LlamaForCausalLM` with SDPA attention and the fused AdamW, in the default number of threads for both.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

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
        total, _ = loss.weighted_nll(x, table, targets, ones.astype(jnp.float32), compute.loss_chunk)
        return total / ones.size

    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(mean_loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state).compile(compiler_options=options)
    memory = compiled.memory_analysis().temp_size_in_bytes / 2**30
    print(f"compiled in {time.perf_counter() - start:.0f} s, {memory:.2f} GiB of temporaries", flush=True)
    held = [params, state]

    def run() -> float:
        held[0], held[1], value = compiled(*held)
        return float(value)

    return run


def theirs(model: Any, tokens: np.ndarray) -> Callable[[], float]:
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


def peer(config: LlamaConfig) -> tuple[Any, Any]:
    """A random transformers model in training mode, and its weights as our parameters."""
    import torch
    import transformers

    torch.manual_seed(0)
    settings = transformers.LlamaConfig(**{k: v for k, v in to_hf(config, "float32").items() if k != "rope_scaling"})
    settings._attn_implementation = "sdpa"
    model = transformers.LlamaForCausalLM(settings).float().train()
    weights = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
    parts: dict[str, list[np.ndarray]] = {}
    for tensor in mapping.hf_tensors(config):
        value = mapping.from_hf(tensor.weight, config, lambda box, t=tensor: weights[t.name][tuple(box)])
        parts.setdefault(tensor.weight.path, []).append(value)

    def fill(path: tuple[Any, ...], _: Any) -> jax.Array:
        values = parts[jax.tree_util.keystr(path, simple=True, separator="/")]
        return jnp.array(np.stack(values) if path[0].key == "layers" else values[0])

    return model, jax.tree.map_with_path(fill, llama.parameter_shapes(config))


def timed(run: Callable[[], float]) -> tuple[float, float]:
    """(seconds, loss) of the second of two steps."""
    run()
    start = time.perf_counter()
    value = run()
    return time.perf_counter() - start, value


def compare(one: Callable[[], float], two: Callable[[], float], pairs: int, tokens: int) -> dict[str, Any]:
    """Alternate, print each pair, give the medians. Losses that part raise."""
    rows: list[tuple[float, float]] = []
    for index in range(pairs + 1):
        order = [one, two] if index % 2 else [two, one]
        results = {run: timed(run) for run in order}
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
    parser.add_argument("--compute", type=json.loads, default={}, help="changes to the compute settings, as JSON")
    parser.add_argument("--options", type=json.loads, default={}, help="XLA compiler options, as JSON")
    args = parser.parse_args()
    import dataclasses

    import torch

    config = dataclasses.replace(SMOLLM2, layers=args.layers)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (args.rows, args.length + 1)).astype(np.int32)
    model, params = peer(config)
    compute = ComputeConfig(**{**COMPUTE, **args.compute})
    result = compare(
        ours(config, compute, params, tokens, args.options), theirs(model, tokens), args.pairs, args.rows * args.length
    )
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}, jax {jax.__version__}"
    print(json.dumps(result))


if __name__ == "__main__":
    main()
