"""Bytes of what a step keeps between its forward and backward pass, and of what it works with: arithmetic on shapes.

Compared with the compiler's figures in docs/plan.md; the exact answer is always the compiler's.
"""

import dataclasses
import math
from collections.abc import Mapping

from t_elaine.model.config import SAVEABLE, ComputeConfig, LlamaConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes on one device.

    Args:
        kept: of all layers, alive together when the backward pass begins.
        loss: while the loss and the output table's gradient are computed.
        layer: while one layer's backward pass runs.
    """

    kept: int
    loss: int
    layer: int

    @property
    def total(self) -> int:
        """At the worst moment: the loss and a layer's backward pass come one after the other."""
        return self.kept + max(self.loss, self.layer)


def activations(
    config: LlamaConfig,
    compute: ComputeConfig,
    axes: Mapping[str, int],
    rows: int,
    length: int,
    frozen: bool = False,
) -> Activations:
    """What one device holds of activations.

    Args:
        config: the model.
        compute: dtype, recomputation, attention.
        axes: mesh axis → devices along it.
        rows: of a microbatch, on this device.
        length: tokens of a row, of which the device has 1/context.
        frozen: the output table gets no gradient.
    """
    tokens, tensor = rows * length // axes["context"], axes["tensor"]
    width = 4 if compute.dtype == "float32" else 2
    # Offloaded tensors are not on this device.
    saved = {"full": (), "minimal": SAVEABLE, "names": compute.saved}.get(compute.remat)
    sizes = tensors(config, tensor)
    scores = _scores(config, compute, axes, rows, length)
    if saved is None:  # everything: inputs of both norms, both sides of each projection and of the rotation
        a_layer = tokens * width * (sum(sizes.values()) + sizes["q"] + sizes["k"] + sizes["gate"] + 3 * config.embed)
        a_layer += scores
    else:
        # A kernel's log-normaliser goes with its output: float32, one a head and token.
        norms = 4 * tokens * config.q_heads // tensor if "attention" in saved else 0
        a_layer = tokens * width * (config.embed + sum(sizes[name] for name in saved)) + norms
    return Activations(
        kept=config.layers * a_layer,
        loss=loss(config, compute, tokens, rows, width, tensor, frozen),
        layer=_layer(config, compute, tokens, width, tensor, length) + 2 * scores,
    )


def tensors(config: LlamaConfig, tensor: int) -> dict[str, int]:
    """Elements a token of each tensor that can be saved by name, on one of `tensor` devices."""
    q, kv = (heads * config.head_dim // min(tensor, heads) for heads in (config.q_heads, config.kv_heads))
    mlp = config.mlp // tensor
    return {"q": q, "k": kv, "v": kv, "attention": q, "middle": config.embed, "gate": mlp, "up": mlp}


def loss(
    config: LlamaConfig,
    compute: ComputeConfig,
    tokens: int,
    rows: int,
    width: int,
    tensor: int,
    frozen: bool = False,
) -> int:
    """What `model.loss.weighted_nll` holds: the table, a chunk's logits, kept errors, the table's gradient."""
    table = config.embed * config.vocab_size // tensor
    chunk = max(1, min(rows * compute.loss_chunk, tokens))
    chunks = math.ceil(tokens / chunk)
    most = max(1, 4 * config.embed // (chunk * width))
    group = max(size for size in range(1, chunks + 1) if chunks % size == 0 and size <= most)
    logits = 4 * chunk * config.vocab_size // tensor
    if frozen:  # no errors are kept: a chunk's logits, and what it is off by
        return table * width + logits + logits * width // 4 + 2 * tokens * config.embed * width
    errors = group * chunk * config.vocab_size * width // tensor
    gradient = 4 * table
    while_chunks, while_product = table * width + errors + logits, errors + gradient
    later = gradient if group < chunks else 0  # of the groups before
    return later + max(while_chunks, while_product) + 2 * tokens * config.embed * width


def _layer(config: LlamaConfig, compute: ComputeConfig, tokens: int, width: int, tensor: int, length: int) -> int:
    """A layer recomputed and differentiated: six tensors as wide as the mlp, queries and keys twice, its weights."""
    sizes = tensors(config, tensor)
    wide = 6 * sizes["gate"] + 4 * sizes["q"] + 4 * sizes["k"] + 4 * config.embed
    weights = config.embed * (2 * sizes["q"] + 2 * sizes["k"] + 3 * sizes["gate"])
    partial = 0
    if compute.attention == "splash" and compute.attention_fused_backward:
        partial = sizes["q"] * math.ceil(length / compute.attention_block)  # of dq, one a block of keys
    return tokens * width * (wide + partial) + 3 * weights * width


def _scores(config: LlamaConfig, compute: ComputeConfig, axes: Mapping[str, int], rows: int, length: int) -> int:
    """Float32 scores of a layer's whole rows, which only the reference attention makes."""
    if compute.attention != "reference":
        return 0
    heads = config.q_heads // min(axes["tensor"], config.q_heads)
    return 4 * rows * heads * length * length // axes["context"]
