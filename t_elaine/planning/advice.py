"""What holds a planned step back, and what to change, by the settings' names and with their effect by arithmetic."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from t_elaine.errors import UserError
from t_elaine.model.capability import KERNELS
from t_elaine.model.config import SAVEABLE
from t_elaine.planning.question import Question
from t_elaine.planning.roofline import recomputed

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
    found = []
    if more := save_more(question, free):
        spared = 1 - recomputed(question.but(remat="names", saved=more)) / recomputed(question)
        told = f"recompute less: ComputeConfig.remat = 'names', ComputeConfig.saved = {more!r}"
        found.append((spared * parts["recomputed"], told))
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


def save_more(question: Question, free: float) -> tuple[str, ...]:
    """The names to save where some more fit into the memory that is free; () if none do."""
    compute = question.compute
    if compute.remat not in ("full", "names"):
        return ()
    saved = list(compute.saved)
    before = question.needs().total
    for name in SAVEABLE:
        if name in saved or name in compute.offloaded:
            continue
        tried = (*saved, name)
        more = question.but(remat="names", saved=tried).needs().total - before
        if more < free - 0.3 * GIB:
            saved.append(name)
    return tuple(saved) if len(saved) > len(compute.saved) else ()


def more_rows(question: Question, free: float) -> bool:
    """Whether twice the rows would fit and the batch allows it."""
    if question.shape[0] % 2:
        return False
    used = question.needs()
    return used.activations < free


def too_large(question: Question, over: float) -> list[str]:
    """What makes a step fit that is too large by `over` bytes, in the order of how little it costs."""
    now = question.needs().total
    told, anything = [], False
    for steps in ways(question):
        tried = [(setting, now - _total(smaller)) for setting, smaller in steps]
        enough = [pair for pair in tried if pair[1] >= over]
        setting, saves = (enough or tried)[0 if enough else -1]
        fits = "fits then" if enough else f"{(over - saves) / GIB:.1f} GiB too much even then"
        if saves > 0.01 * now:
            told.append(f"{setting}: about {saves / GIB:.1f} GiB less, {fits}")
        anything = anything or bool(enough)
    if found := more_chips(question, over):
        told.append(found)
    elif not anything:
        told.append("several of these together, or shorter rows (Mixture.sequence_length)")
    return told


def more_chips(question: Question, over: float) -> str:
    """The smallest number of chips, more of them along fsdp, with which it would fit; "" where no number helps."""
    now, topology = question.needs().total, question.topology
    A, B, T = question.shape
    for times in (2, 4, 8, 16, 32, 64, 128, 256):
        mesh = {**question.mesh, "fsdp": times * question.mesh["fsdp"]}
        if now - _total(dataclasses.replace(question, mesh=mesh, shape=(A, times * B, T))) >= over:
            count = times * topology.chips // topology.slices
            shapes = [s for s in topology.chip.shapes if math.prod(map(int, s.split("x"))) == count] or [str(count)]
            if topology.chip.kind == "tpu" and shapes == [str(count)]:
                continue  # no slice of so many
            return f"more chips along MeshConfig.fsdp: plan.topology = '{topology.family}:{shapes[0]}' fits"
    return ""


def _total(question: Question) -> float:
    """Bytes on one device; infinite where the model does not divide so."""
    try:
        return question.needs().total
    except UserError:
        return math.inf


def ways(question: Question) -> Iterator[list[tuple[str, Question]]]:
    """For everything that takes less memory, its degrees: (setting, the question with it), the mildest first."""
    compute, (A, B, T) = question.compute, question.shape
    if compute.attention == "reference" and (kernel := _kernel(question)):
        yield [(f"ComputeConfig.attention = {kernel!r}", question.but(attention=kernel))]
    halves = [n for n in (2, 4, 8, 16, 32) if question.rows % n == 0]
    if halves:
        fewer = {n: dataclasses.replace(question, shape=(n * A, B // n, T)) for n in halves}
        yield [(f"train.rows_per_device = {question.rows // n}", smaller) for n, smaller in fewer.items()]
    chunks = [c for c in (1024, 512, 256) if c < compute.loss_chunk]
    if chunks:
        yield [(f"ComputeConfig.loss_chunk = {c}", question.but(loss_chunk=c)) for c in chunks]
    saved = [compute.saved[:n] for n in range(len(compute.saved) - 1, 0, -1)]
    if compute.remat in ("none", "minimal"):
        saved = [USUAL]
    less = {f"ComputeConfig.saved = {names!r}, remat 'names'": (names, "names") for names in saved}
    if compute.remat != "full":
        yield [
            *((setting, question.but(remat=remat, saved=names)) for setting, (names, remat) in less.items()),
            ("ComputeConfig.remat = 'full' (nothing saved)", question.but(remat="full", saved=(), offloaded=())),
        ]
    now, rows = question.mesh["context"], question.mesh["fsdp"]
    cuts = [n for n in (2, 4, 8) if rows % n == 0 and B % n == 0 and T % (n * now) == 0]
    if cuts:
        yield [(f"rows in pieces: MeshConfig.context = {n * now}", _in_pieces(question, n)) for n in cuts]


def _in_pieces(question: Question, n: int) -> Question:
    """Each row on n times as many devices; accumulation makes up for the rows that go at a time."""
    mesh, (A, B, T) = question.mesh, question.shape
    cut = {**mesh, "fsdp": mesh["fsdp"] // n, "context": n * mesh["context"]}
    return dataclasses.replace(question, mesh=cut, shape=(n * A, B // n, T))


def _kernel(question: Question) -> str:
    kind = question.topology.chip.kind
    fit = [name for name, kernel in KERNELS.items() if name != "reference" and kind in kernel.platforms]
    return min(fit, key=lambda name: len(KERNELS[name].platforms), default="")
