"""What Pallas kernels cost, for which the compiler gives no cycles: attention by its shapes, others by their bytes."""

import math
import re
from dataclasses import dataclass

from t_elaine.planning.assumptions import Rates
from t_elaine.planning.hlo import Array, Instruction, arrays, size

FLOATS = ("bf16", "f16", "f32")
FUSED_BACKWARD, DKV, DQ, FORWARD = 5, 4, 3, 2  # matmuls over the score matrix


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One call of an attention kernel.

    Args:
        name: the instruction's.
        direction: "forward" or "backward".
        matmuls: products with a score matrix.
        heads: query heads times rows of the batch.
        queries: tokens.
        keys: tokens.
        head_dim: size of a head.
        causal: share of the score matrix that is executed.
        blocks: "1024x1024", "" where the kernel does not tell.
        flops: executed.
        seconds: at the assumed share of the peak.
    """

    name: str
    direction: str
    matmuls: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    causal: float
    blocks: str
    flops: float
    seconds: float


def names(kernel: Instruction) -> str:
    """All that a kernel is called, for patterns to be sought in."""
    own = re.findall(r'kernel_name[\\"=:\s]*([\w.]+)', kernel.rest)
    return " ".join([kernel.op_name, *own, kernel.name])


def attention(kernel: Instruction, rates: Rates) -> Attention | None:
    """The cost of a kernel if it is attention by its name and shapes, else None."""
    called = names(kernel)
    assumed = rates.assumed
    if not re.search(assumed.attention_names, called, re.IGNORECASE):
        return None
    inputs = [found[0] for shape in kernel.operand_shapes if (found := arrays(shape))]
    tensors = [a for a in inputs if a.dtype in FLOATS and len(a.sizes) >= 3]
    if len(tensors) < 3:
        return None
    queries, keys, head_dim = _sizes(tensors[0], tensors[1])
    heads = math.prod(tensors[0].sizes) // (head_dim * queries)
    matmuls, direction = _kind(kernel, called, queries, keys)
    causal, blocks = _executed(kernel, called, rates, queries, keys)
    flops = 2.0 * heads * queries * keys * head_dim * matmuls * causal
    share = rates.attention_forward if direction == "forward" else rates.attention_backward
    for pattern, own in (assumed.kernel_shares or {}).items():
        share = own if re.search(pattern, called) else share
    return Attention(
        name=kernel.name,
        direction=direction,
        matmuls=matmuls,
        heads=heads,
        queries=queries,
        keys=keys,
        head_dim=head_dim,
        causal=causal,
        blocks=blocks,
        flops=flops,
        seconds=flops / (share * rates.peak),
    )


def other(kernel: Instruction, rates: Rates) -> tuple[float, float]:
    """(FLOPs, seconds) of a kernel that is no attention: by its own cost estimate if it brings one."""
    told = kernel.attribute(r'"cost_estimate":\{([^}]*)\}')
    fields = dict(re.findall(r'"(\w+)":"?(\d+)', told))
    flops = float(fields.get("flops", 0))
    moved = float(fields.get("bytes_accessed", 0)) or size(kernel.shape) + sum(map(size, kernel.operand_shapes))
    return flops, max(flops / (rates.attention_forward * rates.peak), moved / rates.hbm)


def _sizes(q: Array, k: Array) -> tuple[int, int, int]:
    """(query tokens, key tokens, head size) of [..., heads, tokens, head size], or with the last two swapped."""
    tokens, depth = q.sizes[-2:]
    swapped = depth > tokens and k.sizes[-2:] == q.sizes[-2:] and depth >= 1024
    if swapped:
        return depth, k.sizes[-1], tokens
    return tokens, k.sizes[-2] if k.sizes[-1] == depth else k.sizes[-1], depth


def _kind(kernel: Instruction, called: str, queries: int, keys: int) -> tuple[int, str]:
    """(matmuls, direction) by the kernel's name; whether dkv makes dq too, by its metadata or its long outputs."""
    low = called.lower()
    if "dkv" in low:
        told = re.search(r'"use_fused_bwd_kernel":\s*(true|false)', kernel.rest.replace("\\", ""))
        long = [a for a in arrays(kernel.shape) if len(a.sizes) >= 3 and {queries, keys} & set(a.sizes[-2:])]
        fused = told.group(1) == "true" if told else len(long) >= 3
        return (FUSED_BACKWARD if fused else DKV), "backward"
    if re.search(r"(^|[_/.])dq", low):
        return DQ, "backward"
    if "bwd" in low:
        return FUSED_BACKWARD, "backward"
    return FORWARD, "forward"


def _executed(kernel: Instruction, called: str, rates: Rates, queries: int, keys: int) -> tuple[float, str]:
    """(share of the score matrix, blocks): a causal kernel runs every block that the triangle touches."""
    assumed = rates.assumed
    if assumed.causal_share is not None:
        return assumed.causal_share, ""
    low = called.lower()
    part = "_dkv" if "dkv" in low else "_dq" if re.search(r"(^|[_/.])dq", low) else ""
    told = dict(re.findall(r'"(block_\w+)":\s*"?(\d+)', kernel.rest.replace("\\", "")))
    tall, wide = (int(told.get(f"block_{side}{part}", 0)) or assumed.attention_block for side in ("q", "kv"))
    if not tall or not wide:
        return 0.5, ""
    rows, columns = math.ceil(queries / tall), math.ceil(keys / wide)
    run = sum(min(columns, math.ceil((row + 1) * tall / wide)) for row in range(rows))
    return run / (rows * columns), f"{tall}x{wide}"
