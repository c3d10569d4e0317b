"""Puts the figures of one plan together: what is asked, what arithmetic says, what the compiled step says.

Makes a dictionary of plain numbers and text, as `--json` prints it; `words` says it to people.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import jax

from t_elaine.model import llama
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.planning import advice, memory
from t_elaine.planning.assumptions import Assumptions, Rates
from t_elaine.planning.compile import Compiled, TooLarge
from t_elaine.planning.costs import Costs
from t_elaine.planning.hlo import Module
from t_elaine.planning.topology import Topology
from t_elaine.training.fit import Need
from t_elaine.training.metrics import flops_per_token

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a plan is made for.

    Args:
        model: its shape.
        compute: how it is computed.
        topology: where.
        mesh: axis → devices along it.
        shape: (A, B, T) of the global batch.
        steps: of the run.
        token_budget: tokens of the run, in place of steps × batch; None: those.
        price: of one chip and hour, in any currency; None: not told.
        groups: groups of the per-group loss that are assumed.
        options: XLA's.
        assumed: what estimates rest on.
        rates: the same with the chip's own figures filled in.
    """

    model: LlamaConfig
    compute: ComputeConfig
    topology: Topology
    mesh: Mapping[str, int]
    shape: tuple[int, int, int]
    steps: int
    token_budget: int | None = None
    price: float | None = None
    groups: int = 18
    options: Mapping[str, str] = field(default_factory=dict)
    assumed: Assumptions
    rates: Rates

    @property
    def tokens(self) -> int:
        """Of a step."""
        return math.prod(self.shape)

    @property
    def model_flops(self) -> float:
        """Of one device in a step: 6 a multiplied weight and token, and attention's lower half alone."""
        return self.tokens / self.topology.devices * flops_of_a_token(self.model, self.shape[2])


def flops_of_a_token(model: LlamaConfig, length: int) -> float:
    """Training FLOPs of a token, recomputation not counted, causal attention's half taken off."""
    return flops_per_token(model, length) - attention_flops_of_a_token(model, length)


def attention_flops_of_a_token(model: LlamaConfig, length: int) -> float:
    """The part of causal attention in it: 6·L·H·h·T."""
    return 6.0 * model.layers * model.q_heads * model.head_dim * length


def asked(question: Question) -> Record:
    """The part of the record that says what was asked."""
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(llama.parameter_shapes(question.model)))
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
        "model": {"parameters": parameters, "layers": question.model.layers},
        "compute": asdict(question.compute),
        "compiler_options": dict(question.options),
        "groups_assumed": question.groups,
        "assumptions": {k: v for k, v in asdict(question.rates).items() if k != "assumed"}
        | asdict_set(question.assumed),
    }


def asdict_set(assumed: Assumptions) -> Record:
    """The assumptions that have values of their own."""
    chips = ("clock", "peak", "memory", "hbm_bandwidth", "link_bandwidth", "torus_axes")
    shares = ("attention_share_forward", "attention_share_backward")
    return {k: v for k, v in asdict(assumed).items() if k not in (*chips, *shares)}


def arithmetic(question: Question, need: Need) -> Record:
    """What shapes alone say of memory."""
    limit = question.rates.memory
    return {
        **{part: getattr(need, part) for part in ("parameters", "moments", "gradients", "activations", "total")},
        "least": need.least,
        "limit": limit,
        "decided": need.least > limit,
    }


def memory_record(question: Question, compiled: Compiled, need: Need, module: Module) -> Record:
    """What the compiler says of memory: the peak against what is there, by kind, and the largest buffers."""
    limit = question.rates.memory
    batch = max(0, compiled.arguments - need.parameters - need.moments)
    rest = max(0, compiled.peak - compiled.arguments)
    return {
        "limit": limit,
        "peak": compiled.peak,
        "fits": compiled.peak <= limit,
        "spare": limit - compiled.peak,
        "parameters": need.parameters,
        "optimizer": need.moments,
        "batch_and_padding": batch,
        "activations": rest,
        "largest": memory.largest(compiled.assignment, compiled.lives, module),
    }


def speed_record(question: Question, costs: Costs) -> Record:
    """Time, rate, MFU and what takes it."""
    per_device = question.tokens / question.topology.devices
    model = question.model_flops
    steps = costs.steps()
    executed = costs.matmul_flops + costs.attention_flops
    chip = question.topology.chip.devices_per_chip
    return {
        "step_seconds": steps,
        "tokens_per_second_per_chip": {k: chip * per_device / v if v else 0.0 for k, v in steps.items()},
        "mfu": {k: model / v / question.rates.peak if v else 0.0 for k, v in steps.items()},
        "flops": {
            "model": model,
            "executed": executed,
            "matmuls": costs.matmul_flops,
            "attention": costs.attention_flops,
            "ratio": executed / model if model else 0.0,
        },
        "compute_seconds": costs.compute,
        "collective_seconds": costs.collective_seconds(),
        "synchronous_seconds": costs.synchronous,
        "kinds": {k: asdict(v) for k, v in sorted(costs.kinds.items())},
        "phases": dict(costs.phases),
        "parts": parts(question, costs),
        "collectives": collectives(costs),
        "host_bytes": costs.host,
        "host_seconds_not_counted": costs.host / question.assumed.host_bandwidth,
        "loops": [{"name": name, "trips": trips} for name, trips in costs.loops],
        "loops_not_read": costs.unread,
        "dearest": [
            {"seconds": s, "times": n, "name": i.name, "operation": i.op_name} for s, n, i in costs.dearest[:10]
        ],
    }


def parts(question: Question, costs: Costs) -> dict[str, float]:
    """Seconds of the step with all collectives exposed, by cause; they add up to it."""
    peak, per_device = question.rates.peak, question.tokens / question.topology.devices
    attention_model = per_device * attention_flops_of_a_token(question.model, question.shape[2])
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
    tokens = question.token_budget or question.steps * question.tokens
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


def compiled_answer(question: Question, compiled: Compiled, module: Module, costs: Costs, need: Need) -> Record:
    """The whole record of a step that compiled for TPUs."""
    record = asked(question) | {"arithmetic": arithmetic(question, need), "by": "compiler"}
    record["compile_seconds"] = compiled.seconds
    record["memory"] = memory_record(question, compiled, need, module)
    record |= speed_record(question, costs)
    record["run"] = run_record(question, record["step_seconds"]["sync exposed"])
    record["limit"], record["change"] = advice.judged(question.compute, question.shape, record)
    return record


def too_large(question: Question, refusal: TooLarge, need: Need) -> Record:
    """The record of a step that the compiler refused for its size."""
    record = asked(question) | {"arithmetic": arithmetic(question, need), "by": "the compiler's refusal"}
    record["compile_seconds"] = refusal.seconds
    used, limit, largest = memory.refused(refusal.message)
    limit = limit or question.rates.memory
    record["memory"] = {
        "limit": limit,
        "peak": used or need.total,
        "fits": False,
        "spare": limit - (used or need.total),
        "parameters": need.parameters,
        "optimizer": need.moments,
        "batch_and_padding": 0,
        "activations": max(0, (used or need.total) - need.parameters - need.moments),
        "largest": largest,
    }
    record["limit"] = {"name": "memory", "share": 1.0}
    record["change"] = advice.too_large(question.compute, question.shape, record["mesh"])
    return record
