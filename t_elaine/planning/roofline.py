"""A step's time from shapes alone, where nothing is compiled: GPUs, and machines without libtpu.

Three rooflines added up (matmuls, attention, elementwise traffic), and the bytes of the collectives over the links. Far
coarser than the compiled estimate; docs/plan.md holds the two side by side.
"""

from collections.abc import Mapping
from typing import Any

from t_elaine.model.config import SAVEABLE
from t_elaine.planning.question import Question

FORWARD, BACKWARD = 2, 5  # matmuls of attention over the score matrix
STATE = 28  # bytes read and written for a parameter by AdamW: parameter, two moments, gradient


def roofline(question: Question) -> dict[str, Any]:
    """Seconds of a step by part, rates and MFU, and the FLOPs behind them."""
    rates, assumed = question.rates, question.assumed
    attention, again = attention_flops(question), recomputed(question)
    matmuls = question.model_flops - question.attention_flops + again
    per_matmul = rates.peak * rates.matmul
    seconds = {
        "matmuls": matmuls / per_matmul,
        "attention": attention[0] / (rates.peak * rates.attention_forward)
        + attention[1] / (rates.peak * rates.attention_backward),
        "elementwise": traffic(question) / rates.hbm,
    }
    compute = sum(seconds.values())
    moved = collective_seconds(question)
    hidden = min(moved * assumed.roofline_hidden, compute)
    steps = {"hidden": max(compute, moved), "sync exposed": compute + moved - hidden, "exposed": compute + moved}
    return {
        **speed(question, steps),
        "roofline_seconds": seconds | {"collectives": moved},
        "flops": flops(question, matmuls, sum(attention)),
    }


def speed(question: Question, steps: Mapping[str, float]) -> dict[str, Any]:
    """Rates and MFU of a step that takes so many seconds."""
    tokens = question.topology.chip.devices_per_chip * question.tokens_a_device
    return {
        "step_seconds": steps,
        "tokens_per_second_per_chip": {name: tokens / seconds for name, seconds in steps.items()},
        "mfu": {name: question.model_flops / seconds / question.rates.peak for name, seconds in steps.items()},
    }


def flops(question: Question, matmuls: float, attention: float) -> dict[str, float]:
    """What a device executes, beside what the model asks for."""
    executed = matmuls + attention
    return {
        "model": question.model_flops,
        "executed": executed,
        "matmuls": matmuls,
        "attention": attention,
        "ratio": executed / question.model_flops,
    }


def attention_flops(question: Question) -> tuple[float, float]:
    """Executed in attention's forward (and again, where its output is not kept) and backward pass."""
    compute = question.compute
    block = min(compute.attention_block, question.shape[2])
    count = -(-question.shape[2] // block)
    share = 1.0 if compute.attention == "reference" else (count + 1) / (2 * count)
    one = question.attention_flops / 6 * 2 * share  # a matmul over the executed part
    kept = compute.remat in ("none", "minimal") or "attention" in (*compute.saved, *compute.offloaded)
    return one * FORWARD * (1 if kept else 2), one * BACKWARD


def recomputed(question: Question) -> float:
    """FLOPs of the projections that the backward pass runs again, on one device."""
    model, compute = question.model, question.compute
    q, kv = model.q_heads * model.head_dim, model.kv_heads * model.head_dim
    kept = (*compute.saved, *compute.offloaded)
    made_by = {"q": q, "k": kv, "v": kv, "middle": q, "gate": model.mlp, "up": model.mlp}
    saved = {"none": tuple(SAVEABLE), "minimal": tuple(SAVEABLE), "full": ()}.get(compute.remat, kept)
    widths = sum(width for name, width in made_by.items() if name not in saved)
    return 2.0 * model.embed * widths * model.layers * question.tokens_a_device


def traffic(question: Question) -> float:
    """Bytes that everything but matmuls moves through HBM; passes over each width as counted in compiled steps."""
    model = question.model
    width = 4 if question.compute.dtype == "float32" else 2
    a_layer = 50 * model.embed + 15 * model.mlp + 30 * model.q_heads * model.head_dim
    a_token = width * model.layers * a_layer + 12 * model.vocab_size
    parameters = question.needs().parameters / 4
    return a_token * question.tokens_a_device + STATE * parameters


def collective_seconds(question: Question) -> float:
    """Weights gathered twice and gradients scattered once a microbatch; activations summed over `tensor`, keys gathered
    over `context`; gradients summed over `replica` once a step."""
    mesh, rates = question.mesh, question.rates
    width = 4 if question.compute.dtype == "float32" else 2
    whole = question.needs().parameters / 4 * mesh["fsdp"] * width
    links = rates.link * (1 if question.topology.chip.kind != "tpu" else 2 * rates.axes)
    on_gpus, node = question.topology.chip.kind == "gpu", question.topology.chip.node
    if on_gpus and mesh["fsdp"] * mesh["context"] * mesh["tensor"] > node:
        links = question.assumed.dcn_bandwidth
    apart = question.topology.slices > 1 or (on_gpus and question.topology.devices > node)
    seconds = 0.0
    if mesh["fsdp"] > 1:
        seconds += 3 * whole * (mesh["fsdp"] - 1) / mesh["fsdp"] * question.shape[0] / links
    tokens = question.tokens_a_device * mesh["tensor"]
    if mesh["tensor"] > 1:
        seconds += 8 * question.model.layers * tokens * question.model.embed * width / links
    if mesh["context"] > 1:
        keys = 2 * question.model.kv_heads * question.model.head_dim * width
        seconds += 4 * question.model.layers * tokens * mesh["context"] * keys / links
    if mesh["replica"] > 1:
        between = question.assumed.dcn_bandwidth if apart else links
        seconds += 2 * whole / mesh["fsdp"] / between
    return seconds
