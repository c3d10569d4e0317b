"""Puts the figures of one plan together: what is asked, what arithmetic says, what the compiled step says.

Makes a dictionary of plain numbers and text, as `--json` prints it; `words` says it to people.
"""

import math
from dataclasses import asdict
from typing import Any

from t_elaine.planning import advice, hlo, memory
from t_elaine.planning.compile import Compiled, TooLarge
from t_elaine.planning.costs import Costs
from t_elaine.planning.hlo import Module
from t_elaine.planning.question import Question
from t_elaine.planning.roofline import flops, roofline, speed
from t_elaine.training.fit import parameter_count

Record = dict[str, Any]
COMPILED = "the compiled step"


def asked(question: Question) -> Record:
    """The part of the record that says what was asked."""
    A, B, T = question.shape
    return {
        "estimated": "estimated, not measured",
        "topology": {
            "name": question.topology.name,
            "text": question.topology.text,
            "chips": question.topology.chips,
            "devices": question.topology.devices,
            "slices": question.topology.slices,
        },
        "mesh": dict(question.mesh),
        "batch": {"accumulation": A, "rows": B, "length": T, "tokens": question.tokens},
        "model": {"parameters": parameter_count(question.model), "layers": question.model.layers},
        "compute": asdict(question.compute),
        "compiler_options": dict(question.options),
        "groups_assumed": question.groups,
        "assumptions": assumptions(question),
    }


def assumptions(question: Question) -> Record:
    """What was counted with: every assumption, the chip's own figures filled in."""
    used = {k: v for k, v in asdict(question.rates).items() if k != "assumed"}
    names = {"hbm_bandwidth": "hbm", "link_bandwidth": "link", "torus_axes": "axes", "roofline_matmul_share": "matmul"}
    names |= {f"attention_share_{way}": f"attention_{way}" for way in ("forward", "backward")}
    return {k: used.get(names.get(k, k), v) for k, v in asdict(question.assumed).items()}


def arithmetic(question: Question) -> Record:
    """What shapes alone say of memory."""
    need, limit = question.needs(), question.rates.memory
    return {
        **{part: getattr(need, part) for part in ("parameters", "moments", "gradients", "activations", "total")},
        "least": need.least,
        "limit": limit,
        "decided": need.least > limit,
    }


def by_arithmetic(question: Question, why: str) -> Record:
    """The record without a compiler: memory, and a coarse time."""
    told = arithmetic(question)
    record = asked(question) | {"by": why, "arithmetic": told}
    if told["total"] > told["limit"]:
        record["limit"] = {"name": "memory", "share": 1.0}
        record["change"] = advice.too_large(question, told["total"] - told["limit"])
    elif question.topology.chip.kind != "cpu":
        record |= roofline(question)
        record["run"] = run_record(question, record["step_seconds"]["sync exposed"])
        seconds = record["roofline_seconds"]
        name = max(seconds, key=lambda part: seconds[part])
        record["limit"] = {"name": name, "share": seconds[name] / sum(seconds.values())}
    return record


def memory_record(question: Question, limit: float, peak: float, arguments: float, largest: list[Record]) -> Record:
    """What the compiler says of memory: the peak against what is there, by kind, and the largest buffers."""
    need = question.needs()
    return {
        "limit": limit,
        "peak": peak,
        "fits": peak <= limit,
        "spare": limit - peak,
        "parameters": need.parameters,
        "optimizer": need.moments,
        "batch_and_padding": max(0, arguments - need.parameters - need.moments),
        "activations": max(0, peak - arguments),
        "largest": largest,
    }


def work_record(question: Question, costs: Costs) -> Record:
    """What the program does, before it is asked how long it takes."""
    return {
        "flops": flops(question, costs.matmul_flops, costs.attention_flops),
        "collectives": collectives(costs),
        "host_bytes": costs.host,
        "host_seconds_not_counted": costs.host / question.assumed.host_bandwidth,
        "loops": [{"name": name, "trips": trips} for name, trips in costs.loops],
        "loops_not_read": costs.unread,
    }


def speed_record(question: Question, costs: Costs) -> Record:
    """Time, rate, MFU and what takes it."""
    return {
        **speed(question, costs.steps()),
        "compute_seconds": costs.compute,
        "collective_seconds": costs.collective_seconds(),
        "synchronous_seconds": costs.synchronous,
        "kinds": {k: asdict(v) for k, v in sorted(costs.kinds.items())},
        "phases": dict(costs.phases),
        "parts": parts(question, costs),
        "dearest": [
            {"seconds": s, "times": n, "name": i.name, "operation": i.op_name} for s, n, i in costs.dearest[:10]
        ],
    }


def parts(question: Question, costs: Costs) -> dict[str, float]:
    """Seconds of the step with all collectives exposed, by cause; they add up to it."""
    peak, attention_model = question.rates.peak, question.attention_flops
    matmul = costs.kinds["matmul"].seconds if "matmul" in costs.kinds else 0.0
    attention = sum(v.seconds for k, v in costs.kinds.items() if k.startswith("attention"))
    return {
        "model": question.model_flops / peak,
        "recomputed": (costs.matmul_flops - (question.model_flops - attention_model)) / peak,
        "matmuls_below_peak": matmul - costs.matmul_flops / peak,
        "attention_extra": (costs.attention_flops - attention_model) / peak,
        "attention_below_peak": attention - costs.attention_flops / peak,
        "elementwise": costs.compute - matmul - attention,
        "asynchronous": costs.collective_seconds() - costs.synchronous,
        "synchronous": costs.synchronous,
    }


def collectives(costs: Costs) -> list[Record]:
    """Calls, bytes and seconds by mesh axis, kind and mode; the dearest first."""
    rows: dict[tuple[str, str, int, bool], Record] = {}
    for call, times in costs.collectives:
        key = (call.axes, call.kind, call.group, call.asynchronous)
        row = rows.setdefault(
            key,
            {
                "axes": call.axes,
                "kind": call.kind,
                "group": call.group,
                "mode": "asynchronous" if call.asynchronous else "synchronous",
                "calls": 0,
                "bytes": 0.0,
                "seconds": 0.0,
            },
        )
        row["calls"] += times
        row["bytes"] += call.bytes * times
        row["seconds"] += call.seconds * times
    return sorted(rows.values(), key=lambda row: -row["seconds"])


def run_record(question: Question, step_seconds: float) -> Record:
    """Hours and money of the whole run, at the step's sync-exposed time."""
    tokens = question.run_tokens
    hours = tokens / question.tokens * step_seconds / 3600
    chip_hours = hours * question.topology.chips
    return {
        "tokens": tokens,
        "steps": math.ceil(tokens / question.tokens),
        "hours": hours,
        "chip_hours": chip_hours,
        "cost": None if question.price is None else chip_hours * question.price,
        "price_per_chip_hour": question.price,
    }


def compiled_answer(question: Question, compiled: Compiled, module: Module, costs: Costs) -> Record:
    """The record of a step that compiled; simulated CPUs have no time to tell."""
    record = asked(question) | {"arithmetic": arithmetic(question), "by": COMPILED}
    record["compile_seconds"] = compiled.seconds
    buffers = memory.largest(compiled.assignment, compiled.lives, module)
    record["memory"] = memory_record(question, question.rates.memory, compiled.peak, compiled.arguments, buffers)
    record |= work_record(question, costs)
    if question.topology.chip.kind == "tpu":
        record |= speed_record(question, costs)
        record["run"] = run_record(question, record["step_seconds"]["sync exposed"])
    if not record["memory"]["fits"]:
        record["limit"] = {"name": "memory", "share": 1.0}
        record["change"] = advice.too_large(question, -record["memory"]["spare"])
    elif "parts" in record:
        record["limit"], record["change"] = advice.judged(question, record)
    return record


def too_large(question: Question, refusal: TooLarge) -> Record:
    """The record of a step that the compiler refused for its size."""
    record = asked(question) | {"arithmetic": arithmetic(question), "by": "the compiler, which refuses it"}
    record["compile_seconds"] = refusal.seconds
    need = question.needs()
    buffers = []
    if refusal.hlo and refusal.assignment:
        buffers = memory.largest(refusal.assignment, refusal.lives, hlo.parse(refusal.hlo))
    used, limit = memory.refused(refusal.message)
    used, limit = used or need.total, limit or question.rates.memory
    state = need.parameters + need.moments  # of its arguments the compiler says nothing
    record["memory"] = memory_record(question, limit, used, state, buffers) | {"fits": False}
    record["limit"] = {"name": "memory", "share": 1.0}
    record["change"] = advice.too_large(question, used - limit)
    return record
