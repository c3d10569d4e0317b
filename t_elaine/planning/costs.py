"""Walks a compiled step from its entry, every loop as often as it runs, and sums what each instruction costs.

TPU only: seconds are the compiler's own `estimated_cycles`; what it gives none for is costed from shapes (`kernels`,
`collectives`, else bytes over HBM bandwidth). Estimates rank programs; they are no measurements.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from t_elaine.planning import collectives, flops, kernels, loops
from t_elaine.planning.assumptions import Rates
from t_elaine.planning.collectives import Collective
from t_elaine.planning.hlo import Instruction, Module, size
from t_elaine.planning.kernels import Attention

# They name, join or wait for what others do.
WITHOUT_WORK = {
    *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency"),
    *("partition-id", "replica-id", "domain", "opt-barrier", "optimization-barrier", "infeed"),
}
STARTS = ("async-start", "call-start", "custom-call-start", "fusion-start")
PREFETCHES = ("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start")
SCALARS = 4096  # bytes; smaller results without cycles cost nothing


@dataclass
class Sum:
    """Seconds, executions and matmul FLOPs of one kind of instruction."""

    seconds: float = 0.0
    times: float = 0
    flops: float = 0.0


@dataclass
class Costs:
    """What one device does in a step.

    Args:
        kinds: matmul, attention forward, …, without collectives.
        phases: forward, recomputation, backward, other → seconds.
        collectives: each call and how often it runs.
        attention: each kernel and how often it runs.
        dearest: (seconds, executions, instruction).
        matmul_flops: executed in dots and convolutions.
        host: bytes copied to and from the host.
        loops: (name, trips) of each loop.
        unread: loops whose trips could not be read.
    """

    kinds: dict[str, Sum] = field(default_factory=lambda: defaultdict(Sum))
    phases: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    collectives: list[tuple[Collective, float]] = field(default_factory=list)
    attention: list[tuple[Attention, float]] = field(default_factory=list)
    dearest: list[tuple[float, float, Instruction]] = field(default_factory=list)
    matmul_flops: float = 0.0
    host: float = 0.0
    loops: list[tuple[str, int]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def compute(self) -> float:
        """Seconds without collectives."""
        return sum(kind.seconds for kind in self.kinds.values())

    @property
    def attention_flops(self) -> float:
        """Executed in attention kernels."""
        return sum(call.flops * times for call, times in self.attention)

    def collective_seconds(self, wanted: Callable[[Collective], bool] = lambda call: True) -> float:
        """Seconds of the collectives that are wanted."""
        return sum(call.seconds * times for call, times in self.collectives if wanted(call))

    @property
    def synchronous(self) -> float:
        """Seconds of collectives that nothing can hide."""
        return self.collective_seconds(lambda call: not call.asynchronous)

    def steps(self) -> dict[str, float]:
        """Seconds of a step: all collectives hidden, the synchronous ones exposed, all exposed."""
        compute, sync, all_of_them = self.compute, self.synchronous, self.collective_seconds()
        return {
            "hidden": max(compute, all_of_them),
            "sync exposed": max(compute, all_of_them - sync) + sync,
            "exposed": compute + all_of_them,
        }


def count(module: Module, rates: Rates, mesh: Mapping[str, int], slices: int = 1) -> Costs:
    """What a step costs.

    Args:
        module: the optimised program of one device.
        rates: what is assumed.
        mesh: axis → devices along it, in the order of the device ids.
        slices: in how many slices the devices stand.
    """
    walk = _Walk(module, rates, mesh, slices)
    walk.computation(module.entry.name, 1)
    walk.costs.dearest.sort(key=lambda row: -row[0])
    return walk.costs


class _Walk:
    def __init__(self, module: Module, rates: Rates, mesh: Mapping[str, int], slices: int) -> None:
        self.module, self.rates, self.mesh, self.slices = module, rates, mesh, slices
        self.costs = Costs()
        self.known: dict[str, float] = {}

    def computation(self, name: str, times: float) -> None:
        for instruction in self.module.computations[name]:
            self.instruction(instruction, times)

    def instruction(self, i: Instruction, times: float) -> None:
        kind = i.opcode.removesuffix("-start")
        if i.opcode in WITHOUT_WORK or i.opcode.endswith(("-done", "-update")):
            return
        if i.opcode == "while":
            self.loop(i, times)
        elif i.opcode == "call":
            self.computation(i.names("to_apply", "calls")[0], times)
        elif i.opcode == "conditional":
            branches = i.names("branch_computations")
            branches += [b for key in ("true_computation", "false_computation") for b in i.names(key)]
            self.computation(max(branches, key=self.cycles), times)
        elif i.opcode in STARTS:
            self.elsewhere(i, times)
        elif kind in collectives.KINDS:
            self.collective(i, kind, i.opcode != kind, times)
        elif i.opcode in ("send", "recv") and self.slices > 1:
            self.between(i, times)
        elif i.opcode in PREFETCHES:
            self.prefetch(i, times)
        elif i.opcode == "custom-call" and i.target == "tpu_custom_call":
            self.kernel(i, times)
        elif i.opcode != "custom-call" or i.cycles is not None:
            self.work(i, times)

    def loop(self, i: Instruction, times: float) -> None:
        found = loops.trips(self.module, i)
        if found is None:
            found = self.rates.assumed.default_trips
            self.costs.unread.append(i.name)
        self.costs.loops.append((i.name, found))
        self.computation(i.names("body")[0], times * found)

    def cycles(self, name: str) -> int:
        return sum(i.cycles or 0 for i in self.module.computations[name])

    def elsewhere(self, start: Instruction, times: float) -> None:
        """Work on another of the chip's processors, a collective on the SparseCore mostly."""
        for name in start.names("calls", "to_apply", "called_computations"):
            for i in self.module.within(name):
                if i.opcode in collectives.KINDS:
                    self.collective(i, i.opcode, True, times)
                elif i.target == "tpu_custom_call":
                    self.kernel(i, times)
                elif i.names("called_computations"):  # after code generation a collective stands one call deeper
                    self.elsewhere(i, times)

    def collective(self, i: Instruction, kind: str, asynchronous: bool, times: float, scattered: bool = False) -> None:
        found = collectives.cost(i, kind, asynchronous, self.rates, self.mesh, self.slices, scattered)
        if found is not None:
            self.costs.collectives.append((found, times))

    def between(self, i: Instruction, times: float) -> None:
        found = collectives.between_slices(i, self.rates, self.mesh, self.slices) if i.opcode == "send" else None
        if found is not None:
            self.costs.collectives.append((found, times))

    def prefetch(self, i: Instruction, times: float) -> None:
        """A copy that the compiler's schedule hides: to and from the host its bytes count, those of what arrives."""
        if "S(5)" in i.shape:
            moved = size(i.shape) / 2 if i.opcode == "copy-start" else size(i.shape.rsplit("),", 1)[-1])
            self.costs.host += moved * times

    def kernel(self, i: Instruction, times: float) -> None:
        call = kernels.attention(i, self.rates)
        if call is not None:
            self.costs.attention.append((call, times))
            self.add(f"attention {call.direction}", call.seconds, call.flops, i, times)
            return
        done, seconds = kernels.other(i, self.rates)
        self.add("other kernels", seconds, done, i, times)

    def work(self, i: Instruction, times: float) -> None:
        matmuls = flops.of(i)
        if i.opcode == "fusion":
            inner = i.names("calls")[0]
            matmuls = flops.within(self.module, inner, self.known)
            if self.joined(inner, times) and not matmuls:
                return  # a collective and nothing beside it
            for kernel in self.module.within(inner):
                if kernel.target == "tpu_custom_call":
                    self.kernel(kernel, times)
        self.costs.matmul_flops += matmuls * times
        self.add(_kind(i, matmuls), self.seconds(i, matmuls), matmuls, i, times)

    def seconds(self, i: Instruction, matmuls: float) -> float:
        """At the compiler's word, else the time that its bytes take."""
        moving = (size(i.shape) + sum(map(size, i.operand_shapes))) / self.rates.hbm
        seconds = moving if size(i.shape) > SCALARS else 0.0
        if (cycles := i.cycles) is not None:
            seconds = cycles / self.rates.clock
        cap = self.rates.assumed.cap_memory_bound
        return min(seconds, cap * moving) if cap and not matmuls else seconds

    def joined(self, inner: str, times: float) -> bool:
        """Count the collectives inside a fusion; True if there are any.

        An asynchronous one shows up three times: where it starts, in fusions that compute meanwhile and carry it along,
        and where it is waited for. The start alone counts.
        """
        inside = list(self.module.within(inner))
        calls = [i for i in inside if i.opcode in collectives.KINDS]
        markers = {i.target for i in inside if i.opcode == "custom-call"}
        for call in calls:
            if "AsyncCollectiveStart" in markers:
                self.collective(call, call.opcode, True, times)
            elif "AsyncCollectiveDone" not in markers and "async_collective_fusion_config" not in call.rest:
                cut = any(i.opcode == "dynamic-slice" and call.name in i.operands for i in call.home)
                scattered = call.opcode == "all-reduce" and (cut or "all-reduce-scatter" in inner)
                self.collective(call, call.opcode, False, times, scattered)
        return bool(calls)

    def add(self, kind: str, seconds: float, done: float, i: Instruction, times: float) -> None:
        total = self.costs.kinds[kind]
        total.seconds += seconds * times
        total.times += times
        total.flops += done * times
        if seconds:
            self.costs.phases[_phase(i.op_name)] += seconds * times
            self.costs.dearest.append((seconds * times, times, i))


def _kind(i: Instruction, matmuls: float) -> str:
    if matmuls:
        return "matmul"
    if i.opcode == "copy" or (i.opcode == "fusion" and i.name.startswith("copy")):
        return "copies"
    return "other fusions" if i.opcode == "fusion" else "other instructions"


def _phase(op_name: str) -> str:
    if "rematted_computation" in op_name:
        return "recomputation"
    if "transpose(jvp" in op_name:
        return "backward"
    return "forward" if "jvp(" in op_name else "other"
