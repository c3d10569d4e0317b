"""A tiny step's program as the partitioner leaves it: collectives in the types that were asked for.

A CPU's own passes widen bfloat16 and gather and add in float32 afterwards, so its final program says nothing of types.
"""

import collections
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.planning.compile import compiled_anew
from t_elaine.training import step as steps
from t_elaine.training.optimizer import AdamW
from t_elaine.training.step import Step

CONFIG = LlamaConfig(vocab_size=512, embed=64, mlp=96, layers=2, q_heads=4, kv_heads=2, head_dim=16)
COMPUTE = ComputeConfig(dtype="bfloat16", loss_chunk=8, attention="blocked", attention_block=16)
LENGTH, GROUPS = 32, 3
KINDS = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
COLLECTIVE = re.compile(rf" = (\w+)\[([\d,]*)\]\S* ({KINDS})\(")
WIDTHS = {"bf16": 2, "f32": 4, "s32": 4, "u32": 4, "pred": 1}


def tiny_step(
    mesh: MeshConfig, compute: ComputeConfig = COMPUTE, adamw: AdamW | None = None, devices: int = 8, **more: Any
) -> Step:
    """A step of the tiny model."""
    where = make_mesh(mesh, jax.devices()[:devices])
    rate = lambda step: jax.numpy.float32(1e-3)  # noqa: E731
    return steps.make_step(CONFIG, compute, adamw or AdamW(), rate, where, GROUPS, np.full(512, 4, np.int32), **more)


def compiled(step: Step, rows: int = 8, options: dict[str, str] | None = None, accumulation: int = 1) -> Any:
    """The step compiled for microbatches of `rows` rows."""
    lowered = step.run.lower(step.state_shapes, steps.batch_shapes(accumulation, rows, LENGTH, step.batch_sharding))
    return lowered.compile(compiler_options=options)


def partitioned(step: Step, rows: int = 8) -> str:
    """The program of one device, before any pass after the partitioner."""
    with tempfile.TemporaryDirectory() as folder, compiled_anew():
        compiled(step, rows, {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partitioning"})
        (found,) = Path(folder).glob("*jit_step*after_spmd-partitioning*")
        return found.read_text()


def collectives_of(text: str) -> dict[str, int]:
    """How often each collective stands in the program (in a loop's body: once): "all-gather bf16[64,96]" → 4."""
    found = collections.Counter(f"{kind} {dtype}[{shape}]" for dtype, shape, kind in COLLECTIVE.findall(text))
    return dict(sorted(found.items()))


def bytes_of(collectives: dict[str, int]) -> int:
    """Bytes of their results."""
    total = 0
    for name, count in collectives.items():
        dtype, shape = re.findall(r" (\w+)\[([\d,]*)\]", name)[0]
        total += count * WIDTHS[dtype] * math.prod(int(n) for n in shape.split(",") if n)
    return total
