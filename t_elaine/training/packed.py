"""The check that every run makes once on its own hardware: packed documents compute what each computes alone.

A model of one layer with the run's head sizes, its mesh and its settings; attention over packed rows by the run's
kernel, over each document alone by `reference`. Trains nothing and reads no data.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t_elaine import columns
from t_elaine.errors import UserError
from t_elaine.model import llama
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.model.loss import weighted_nll
from t_elaine.model.placement import constrain
from t_elaine.parallel import sharding as layouts
from t_elaine.training.held_out import globally

# Largest difference, as a share of the tensor's norm. A kernel that lets documents see each other is off by a fifth or
# more (the tests do it), rounding by a hundredth in bfloat16. Accelerators
# multiply float32 matrices in shorter formats unless told otherwise.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
VOCABULARY = 64


def check_packing(
    model: LlamaConfig, compute: ComputeConfig, mesh: Mesh, length: int, say: Callable[[str], None]
) -> None:
    """Refuse to train where packed rows are not what their documents are alone, in logits or in any gradient.

    The result is kept for the life of the process, by settings and mesh.

    Args:
        model: its head sizes are used.
        compute: as the run's.
        mesh: the run's.
        length: tokens a row.
        say: takes messages.

    Raises:
        UserError: they differ by more than the tolerance of the run's dtype.
    """
    start = time.perf_counter()
    length = min(length, 2 * mesh.shape["context"] * compute.attention_block)
    found = differences(tiny(model, mesh), compute, mesh, length)
    device = mesh.devices.flat[0]
    allowed = TOLERANCE["bfloat16" if device.platform != "cpu" else compute.dtype]
    worst = max((name for name in found if name != "logits"), key=lambda name: found[name])
    told = f"attention {compute.attention!r} in {compute.dtype} on {device.device_kind}"
    if not all(value <= allowed for value in found.values()):
        raise UserError(
            f"documents packed into a row do not compute what each computes alone ({told}): logits differ by "
            f"{found['logits']:.1e}, the gradient of {worst} by {found[worst]:.1e} of its norm; at most {allowed:.0e} "
            "is allowed",
            "ComputeConfig.attention",
            "take ComputeConfig.attention = 'reference', and report this: the kernel is wrong on this hardware",
        )
    line = (
        f"packed rows equal their documents alone ({told}): logits within {found['logits']:.0e}, gradients within "
        f"{found[worst]:.0e} of their norm; {time.perf_counter() - start:.1f} s"
    )
    say(columns.wrapped(line))


def tiny(model: LlamaConfig, mesh: Mesh) -> LlamaConfig:
    """One layer with the model's head sizes, and as little else as the mesh divides."""
    ways, tensor = mesh.shape["fsdp"] * mesh.shape["context"], mesh.shape["tensor"]
    embed = 8 * ways * max(1, 4 // ways)
    return dataclasses.replace(
        model,
        vocab_size=VOCABULARY * tensor,
        embed=embed,
        mlp=8 * tensor,
        layers=1,
        q_heads=model.q_heads // model.kv_heads * tensor,
        kv_heads=tensor,
        tied_embeddings=False,
    )


def documents(length: int) -> list[tuple[int, int]]:
    """(start, stop) of a row's documents: across the borders of blocks and pieces, one of one token, padding behind."""
    lengths = [n for n in (length // 3 + 1, 1, length // 2 - 3) if n > 0]
    stops = np.cumsum(lengths).tolist()
    return [(stop - n, stop) for stop, n in zip(stops, lengths, strict=True)]


@lru_cache(maxsize=32)
def differences(config: LlamaConfig, compute: ComputeConfig, mesh: Mesh, length: int) -> dict[str, float]:
    """Norm of the difference over norm, of logits and of each parameter's gradient."""
    spans = documents(length)
    where = layouts.shardings(llama.parameter_axes(config), mesh)
    rows_where = layouts.sharding(mesh, layouts.RULES, None, "batch", None)
    run = jax.jit(
        _comparison(config, compute, mesh, spans),
        in_shardings=(where, rows_where),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
        # A CPU would spend most of the time on optimising what runs once.
        compiler_options={"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None,
    )
    # Made in numpy, the same on all hosts: compiling the model's own initialisation takes longer than the whole check.
    rng = np.random.default_rng(0)
    shapes = llama.parameter_shapes(config)
    params = jax.tree.map(lambda leaf: rng.normal(0, config.embed**-0.5, leaf.shape).astype(np.float32), shapes)
    tokens = rng.integers(
        0, config.vocab_size, (math.prod(mesh.shape[axis] for axis in layouts.RULES["batch"]), length + 1)
    )
    rows = {name: globally(array, rows_where) for name, array in _rows(tokens.astype(np.int32), spans).items()}
    found = jax.device_get(run(jax.tree.map(globally, params, where), rows))
    paths = jax.tree.leaves_with_path(found["gradients"])
    pairs = {jax.tree_util.keystr(path, simple=True, separator="/"): pair for path, pair in paths}
    pairs["logits"] = np.sum(found["logits"], axis=0)
    return {name: float(np.sqrt(off / whole)) for name, (off, whole) in pairs.items()}


def _comparison(
    config: LlamaConfig, compute: ComputeConfig, mesh: Mesh, spans: list[tuple[int, int]]
) -> Callable[[Any, Any], Any]:
    """Function (parameters, rows as `_rows` makes them) → squared norms (difference, documents alone)."""
    plain = dataclasses.replace(compute, attention="reference")

    def compare(params: Any, rows: Any) -> Any:
        with layouts.placing(mesh):
            first, others = (jax.tree.map(lambda x, cut=cut: x[cut], rows) for cut in (0, slice(1, None)))
            if compute == plain:  # one program to compile, not two
                found = jax.lax.map(lambda part: _run(config, plain, params, part), rows)
                together, alone = jax.tree.map(lambda x: x[0], found), jax.tree.map(lambda x: x[1:], found)
            else:
                together = _run(config, compute, params, first)
                alone = jax.lax.map(lambda part: _run(config, plain, params, part), others)
        got = {"gradients": together[0], "logits": [together[1][:, start:stop] for start, stop in spans]}
        wanted = {
            "gradients": jax.tree.map(lambda leaf: leaf.sum(axis=0), alone[0]),
            "logits": [alone[1][i, :, : stop - start] for i, (start, stop) in enumerate(spans)],
        }
        return jax.tree.map(lambda a, b: jnp.stack([jnp.sum((a - b) ** 2), jnp.sum(b**2)]), got, wanted)

    return compare


def _run(config: LlamaConfig, compute: ComputeConfig, params: Any, part: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
    """Gradients of the sum of nats, and logits [B,T,V], float32."""

    def total(params: Any) -> tuple[jax.Array, jax.Array]:
        x = llama.hidden(params, config, compute, part["tokens"], part["positions"], part["segments"])
        w = llama.head_table(params, config)
        weights = (part["segments"] > 0).astype(jnp.float32)
        value, *_ = weighted_nll(x, w, part["targets"], weights, compute.loss_chunk)
        logits = jnp.einsum("BTD,DV->BTV", x, w.astype(x.dtype), preferred_element_type=jnp.float32)
        return value, constrain(logits, "batch", "sequence", "vocab")

    return jax.grad(total, has_aux=True)(params)


def packed(tokens: np.ndarray, spans: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Rows [B,T] that hold the documents side by side, from tokens [B,T+1]."""
    segments, positions = np.zeros((2, *tokens[:, 1:].shape), np.int32)
    for number, (start, stop) in enumerate(spans, 1):
        segments[:, start:stop], positions[:, start:stop] = number, np.arange(stop - start)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segments": segments, "positions": positions}


def _rows(tokens: np.ndarray, spans: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """[1+documents,B,T]: the documents side by side; then each at the start of rows of its own, nothing behind it."""
    parts = [packed(tokens, spans)]
    for start, stop in spans:
        own = np.zeros_like(tokens)
        own[:, : stop + 1 - start] = tokens[:, start : stop + 1]
        parts.append(packed(own, [(0, stop - start)]))
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}
