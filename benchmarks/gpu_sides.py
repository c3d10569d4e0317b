"""The two sides of benchmarks/gpu.py, each turn in a process of its own: our train step, and transformers + PyTorch.

    python -m benchmarks.gpu_sides '{"side": "ours", …}'        prints one JSON line; benchmarks/gpu.py starts these

Both sides have the same random weights, tokens, documents, AdamW (decay of matrices alone, clipping at 1.0), float32
parameters and moments, bfloat16 matmuls. Not here: what the figures mean, which candidate is taken (gpu.py).
"""

import json
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from benchmarks.step import ADAMW, RATE, read_weights
from t_elaine.hf.mapping import HfTensor
from t_elaine.model.config import ComputeConfig, LlamaConfig, to_hf

Run = Callable[[], float]
GROUPS = 18
WARM = 3  # steps whose losses are compared and whose times are not taken


def batch(seed: int, vocab: int, rows: int, length: int) -> dict[str, np.ndarray]:
    """Packed rows [B,T] of documents whose lengths are log-normal (of 8192: median 410, mean 675); no padding."""
    dice = np.random.default_rng(seed)
    tokens = dice.integers(0, vocab, (rows, length + 1)).astype(np.int32)
    segments, positions = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        start, number = 0, 1
        while start < length:
            stop = min(length, start + max(8, int(dice.lognormal(np.log(length / 20), 1.0))))
            segments[row, start:stop], positions[row, start:stop] = number, np.arange(stop - start)
            start, number = stop, number + 1
    groups = (segments % GROUPS).astype(np.int32)
    weights = np.ones((rows, length), np.float32)
    named = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segments": segments, "positions": positions}
    return {**named, "groups": groups, "weights": weights}


def weight(tensor: HfTensor) -> np.ndarray:
    """A tensor's random weights in Hugging Face's layout, a function of its name."""
    if len(tensor.shape) == 1:
        return np.ones(tensor.shape, np.float32)
    dice = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    return dice.standard_normal(tensor.shape, np.float32) * np.float32(0.02)


def ours(job: Mapping[str, Any], config: LlamaConfig) -> tuple[Run, Callable[[], dict[str, Any]]]:
    """Our train step on `gpus` devices: (does one, memory and what ran)."""
    import jax

    from t_elaine.model import capability
    from t_elaine.parallel.mesh import MeshConfig, make_mesh
    from t_elaine.training.building import build_step
    from t_elaine.training.optimizer import AdamW, Schedule
    from t_elaine.training.step import init_state

    mesh = make_mesh(MeshConfig(), jax.devices()[: job["gpus"]])
    given: dict[str, Any] = {k: tuple(v) if k == "saved" else v for k, v in job["compute"].items()}
    asked = ComputeConfig(**given)
    compute, warning = capability.usable(asked, job["length"], config.head_dim, jax.default_backend())
    schedule = Schedule(peak=RATE, kind="constant", warmup_steps=0)
    lengths = np.full(config.vocab_size, 4, np.int32)
    settings: dict[str, Any] = {**ADAMW, "clip": 1.0}
    step = build_step(config, compute, AdamW(**settings), schedule, 1000, mesh, GROUPS, lengths, job["options"])
    rows = batch(0, config.vocab_size, job["rows"] * job["gpus"], job["length"])
    data = {name: jax.device_put(array[None], step.batch_sharding) for name, array in rows.items()}
    params = jax.device_put(read_weights(config, weight), step.state_shardings["params"])
    held = [jax.jit(init_state, out_shardings=step.state_shardings, donate_argnums=0)(params)]
    first: list[float] = []

    def run() -> float:
        held[0], metrics = step.run(held[0], data)
        if not first:
            nll, counts = np.asarray(metrics["sums"])[:2]
            first.extend((nll / np.maximum(counts, 1)).tolist())
        return float(metrics["loss"])

    def told() -> dict[str, Any]:
        stats = jax.devices()[0].memory_stats() or {}
        used = stats.get("peak_bytes_in_use", 0)
        return {"memory": used, "attention": compute.attention, "warning": warning, "by_group": first}

    return run, told


def theirs(job: Mapping[str, Any], config: LlamaConfig) -> tuple[Run, Callable[[], dict[str, Any]]]:
    """`LlamaForCausalLM` with SDPA under torch.compile on one device, loss inside the compiled function."""
    import torch
    import transformers

    from t_elaine.hf import mapping

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    given = {k: v for k, v in to_hf(config, "float32").items() if k != "rope_scaling"}
    settings = transformers.LlamaConfig(**given)
    settings._attn_implementation = "sdpa"
    with device:
        model = transformers.LlamaForCausalLM(settings).float().train()
    named = dict(model.named_parameters())
    with torch.no_grad():
        for tensor in mapping.hf_tensors(config):
            named[tensor.name].copy_(torch.from_numpy(weight(tensor)))
    if job["checkpointing"]:
        model.gradient_checkpointing_enable()
    rows = batch(0, config.vocab_size, job["rows"], job["length"])
    value = torch_loss(model, rows, device, job["mask"])
    first = by_group(value, rows["groups"], device)
    compiled = torch.compile(partial(value, "mean"), backend=job["backend"], mode=job["mode"] or None)
    optimizer = torch_optimizer(named, device)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            loss = compiled()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    def told() -> dict[str, Any]:
        used = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        return {"memory": used, "attention": f"sdpa, {job['mask']}", "by_group": first}

    return run, told


def by_group(value: Callable[[str], Any], groups: np.ndarray, device: Any) -> list[float]:
    """Mean loss of each group before the first update: it shows a wrong mask, which the mean of all hides."""
    import torch

    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        nll = value("none").float().cpu().numpy()
    sums, counts = (np.bincount(groups.ravel(), part, GROUPS) for part in (nll, np.ones_like(nll)))
    return [float(x) for x in sums / np.maximum(counts, 1)]


def torch_loss(model: Any, rows: Mapping[str, np.ndarray], device: Any, mask: str) -> Callable[[str], Any]:
    """Function to the loss, "mean" or "none" (by token). mask "packed": as ours; "causal": whole rows."""
    import torch

    part = {name: torch.tensor(array, device=device) for name, array in rows.items()}
    tokens, targets = part["tokens"].long(), part["targets"].long().flatten()
    given: dict[str, Any] = {}
    if mask == "packed":
        segments, order = part["segments"], torch.arange(part["segments"].shape[1], device=device)
        same = segments[:, None, :, None] == segments[:, None, None, :]
        given["attention_mask"] = same & (order[:, None] >= order)
        given["position_ids"] = part["positions"].long()

    def value(reduction: str) -> Any:
        logits = model(input_ids=tokens, use_cache=False, **given).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets, reduction=reduction)

    return value


def torch_optimizer(named: Mapping[str, Any], device: Any) -> Any:
    """AdamW with our settings; norms are not decayed."""
    import torch

    decayed = [p for p in named.values() if p.ndim > 1]
    rest = [p for p in named.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": ADAMW["weight_decay"]}, {"params": rest, "weight_decay": 0.0}]
    betas = (ADAMW["b1"], ADAMW["b2"])
    return torch.optim.AdamW(groups, lr=RATE, betas=betas, eps=ADAMW["eps"], fused=device.type == "cuda")


def step_times(job: Mapping[str, Any]) -> dict[str, Any]:
    """One turn of a side: warm-up, then `steps` steps, each awaited; the median of their times."""
    config = LlamaConfig(**job["config"])
    begun = time.perf_counter()
    run, told = (ours if job["side"] == "ours" else theirs)(job, config)
    losses = [run() for _ in range(WARM)]
    ready, seconds = time.perf_counter() - begun, []
    for _ in range(job["steps"]):
        start = time.perf_counter()
        losses.append(run())
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "losses": losses[:WARM], "until_ready": round(ready), **told()}


def matmul_rate(job: Mapping[str, Any]) -> dict[str, Any]:
    """FLOP/s of bfloat16 matmuls of random numbers, by size, in this side's library."""
    rates = {}
    for n in job["sizes"]:
        one, wait = matmul_of(job["library"], n)
        for _ in range(3):
            wait(one())
        begun = time.perf_counter()
        for _ in range(job["steps"]):
            last = one()
        wait(last)
        rates[str(n)] = 2 * n**3 * job["steps"] / (time.perf_counter() - begun)
    return {"rates": rates}


def matmul_of(library: str, n: int) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """(one matmul [n,n] x [n,n], waits for its result)."""
    if library == "jax":
        import jax

        a, b = (jax.random.normal(jax.random.key(i), (n, n), jax.numpy.bfloat16) for i in range(2))
        multiply = jax.jit(lambda a, b: a @ b)
        return lambda: multiply(a, b), jax.block_until_ready
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    c, d = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return lambda: c @ d, (lambda _: torch.cuda.synchronize()) if device == "cuda" else (lambda x: x)


def devices(job: Mapping[str, Any]) -> dict[str, Any]:
    """GPUs as JAX and PyTorch see them."""
    import jax
    import torch

    found = [device for device in jax.devices() if device.platform == "gpu"]
    memory = (found[0].memory_stats() or {}).get("bytes_limit", 0) if found else 0
    versions = f"jax {jax.__version__}, torch {torch.__version__}"
    kind = found[0].device_kind if found else ""
    torch_sees = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {"gpus": len(found), "torch_gpus": torch_sees, "kind": kind, "memory": memory, "versions": versions}


def main() -> None:
    """Do the job of the first argument and print what came of it; being out of memory is an answer too."""
    import jax

    job = json.loads(sys.argv[1])
    try:
        done = {"ours": step_times, "theirs": step_times, "matmul": matmul_rate, "devices": devices}[job["side"]](job)
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        if not any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "out of memory")):
            raise
        done = {"error": "out of memory"}
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
