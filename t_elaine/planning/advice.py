"""What holds a planned step back, and what to change, by the settings' names and with their effect by arithmetic."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from t_elaine.model.capability import KERNELS
from t_elaine.model.config import SAVEABLE
from t_elaine.planning.question import Question

Record = dict[str, Any]
NOTEWORTHY = 0.04  # share of the step
USUAL = ("q", "k", "v", "attention")
GIB = 2**30


def judged(question: Question, record: Record) -> tuple[Record, list[str]]:
    """(which limit binds, with its share of the step; what to change first) of a step that fits."""
    step, parts = record["step_seconds"]["sync exposed"], record["parts"]
    compute = record["compute_seconds"]
    late = max(0.0, record["collective_seconds"] - record["synchronous_seconds"] - compute)
    shares = {
        "compute: matmuls and attention": (compute - parts["elementwise"]) / step,
        "HBM bandwidth: elementwise work": parts["elementwise"] / step,
        "collectives": (record["synchronous_seconds"] + late) / step,
    }
    name = max(shares, key=lambda key: shares[key])
    return {"name": name, "share": shares[name]}, faster(question, record)


def faster(question: Question, record: Record) -> list[str]:
    """Changes that the figures suggest, the largest possible gain first."""
    step, parts = record["step_seconds"]["sync exposed"], record["parts"]
    free = record["memory"]["spare"]
    found = [(parts["recomputed"], told) for told in (save_more(question, free),) if told]
    if parts["synchronous"] / step > NOTEWORTHY:
        told = "synchronous collectives: train.compiler_options as in the shipped hardware file of this chip"
        found.append((parts["synchronous"], told))
    if more_rows(question, free):
        told = f"train.rows_per_device = {2 * question.rows}: fewer gathers a token ({free / GIB:.1f} GiB are free)"
        found.append((record["collective_seconds"] / 2, told))
    if parts["attention_below_peak"] / step > 2 * NOTEWORTHY:
        block = question.compute.attention_block
        told = f"attention: another kernel or block than {question.compute.attention!r} with {block} (plan --search)"
        found.append((parts["attention_below_peak"] / 2, told))
    if parts["matmuls_below_peak"] / step > NOTEWORTHY and not any("scoped_vmem" in name for name in question.options):
        told = "matmuls in larger tiles: train.compiler_options = {'xla_tpu_scoped_vmem_limit_kib': '65536'}"
        found.append((parts["matmuls_below_peak"], told))
    ordered = sorted(found, key=lambda pair: -pair[0])
    return [f"{told}; up to {100 * gain / step:.0f} %" for gain, told in ordered if gain / step > 0.01]


def save_more(question: Question, free: float) -> str:
    """The names that could be saved too in the memory that is free; "" if there are none."""
    compute = question.compute
    if compute.remat not in ("full", "names"):
        return ""
    saved = list(compute.saved)
    before = question.needs().total
    for name in SAVEABLE:
        tried = (*saved, name)
        more = question.but(remat="names", saved=tried).needs().total - before
        if name not in saved and more < free - 0.3 * GIB:
            saved.append(name)
    if saved == list(compute.saved):
        return ""
    return f"recompute less: ComputeConfig.remat = 'names', ComputeConfig.saved = {tuple(saved)!r}"


def more_rows(question: Question, free: float) -> bool:
    """Whether twice the rows would fit and the batch allows it."""
    if question.shape[0] % 2:
        return False
    used = question.needs()
    return used.activations < free


def too_large(question: Question, over: float) -> list[str]:
    """What makes a step fit that is too large by `over` bytes, in the order of how little it costs."""
    now = question.needs().total
    told = []
    for setting, smaller in ways(question):
        saves = now - smaller.needs().total
        if saves > 0.01 * now:
            fits = "fits then" if saves >= over else f"{(over - saves) / GIB:.1f} GiB too much even then"
            told.append(f"{setting}: about {saves / GIB:.1f} GiB less, {fits}")
    if found := more_chips(question, over):
        told.append(found)
    return told or ["a smaller model, or shorter rows (Mixture.sequence_length)"]


def more_chips(question: Question, over: float) -> str:
    """The smallest number of chips, more of them along fsdp, with which it would fit; "" where no number helps."""
    now, topology = question.needs().total, question.topology
    A, B, T = question.shape
    for times in (2, 4, 8, 16, 32, 64, 128, 256):
        mesh = {**question.mesh, "fsdp": times * question.mesh["fsdp"]}
        if now - dataclasses.replace(question, mesh=mesh, shape=(A, times * B, T)).needs().total >= over:
            count = times * topology.chips // topology.slices
            shape = next((s for s in topology.chip.shapes if math.prod(map(int, s.split("x"))) == count), str(count))
            return f"more chips along MeshConfig.fsdp: plan.topology = '{topology.family}:{shape}' fits"
    return ""


def ways(question: Question) -> Iterator[tuple[str, Question]]:
    """(setting, the question with it) for everything that takes less memory."""
    compute = question.compute
    if compute.attention == "reference" and (kernel := _kernel(question)):
        yield f"ComputeConfig.attention = {kernel!r}", question.but(attention=kernel)
    if question.rows > 1 and question.rows % 2 == 0:
        A, B, T = question.shape
        half = dataclasses.replace(question, shape=(2 * A, B // 2, T))
        yield f"train.rows_per_device = {question.rows // 2}", half
    if compute.loss_chunk > 256:
        chunk = compute.loss_chunk // 4 if compute.loss_chunk >= 1024 else 256
        yield f"ComputeConfig.loss_chunk = {chunk}", question.but(loss_chunk=chunk)
    if compute.remat in ("none", "minimal"):
        usual = question.but(remat="names", saved=USUAL)
        yield f"ComputeConfig.remat = 'names' with ComputeConfig.saved = {USUAL!r}", usual
    if compute.remat != "full":
        yield "ComputeConfig.remat = 'full' (and no ComputeConfig.saved)", question.but(remat="full", saved=())
    mesh = question.mesh
    if mesh["fsdp"] % 2 == 0:
        context = {**mesh, "fsdp": mesh["fsdp"] // 2, "context": 2 * mesh["context"]}
        A, B, T = question.shape
        if B % 2 == 0 and T % (2 * mesh["context"]) == 0:
            pieces = dataclasses.replace(question, mesh=context, shape=(2 * A, B // 2, T))
            yield f"rows in pieces: MeshConfig.context = {2 * mesh['context']}", pieces


def _kernel(question: Question) -> str:
    kind = question.topology.chip.kind
    fit = [name for name, kernel in KERNELS.items() if name != "reference" and kind in kernel.platforms]
    return min(fit, key=lambda name: len(KERNELS[name].platforms), default="")
