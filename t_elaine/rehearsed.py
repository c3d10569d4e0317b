"""What a rehearsal measured, beside `plan`'s answer, and what the whole run will take: figures and words.

Reads the rehearsal's files; starts nothing (`rehearsal` does).
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from t_elaine import paths
from t_elaine.checkpoints.layout import complete_steps
from t_elaine.checkpoints.writing import Checkpointing
from t_elaine.planning import words
from t_elaine.planning.chips import CHIPS, family_of
from t_elaine.planning.topology import CORES
from t_elaine.reporting.record import metric_lines

Record = dict[str, Any]
COMPUTED = ("loss", "grad_norm", "learning_rate", "tokens")


def lines(folder: str) -> list[Record]:
    """The lines of training steps so far."""
    return [line for line in metric_lines(folder, paths.listing(folder)) if line["kind"] == "train"]


def devices(folder: str) -> Record:
    """Kind, count, processes and slices, as the run wrote them down."""
    return dict(json.loads(paths.read_text(paths.join(folder, "versions.json")))["devices"])


def topology(folder: str) -> tuple[str, int]:
    """What `plan` calls the devices, and how many slices they are."""
    there = devices(folder)
    slices = int(there.get("slices", 1))
    family, count = family_of(there["kind"]), there["count"] // slices
    if family in CORES:
        count = count // CHIPS[family].devices_per_chip * 2
    return f"{family}-{count}", slices


def groups(folder: str) -> int:
    """(language, category) groups of the run's stores."""
    stores = json.loads(paths.read_text(paths.join(folder, "data.json")))
    return len({tuple(group) for store in stores.values() for group in store.get("groups", ())}) or 1


def record(given: Mapping[str, Any], folder: str, figures: Mapping[str, Any]) -> Record:
    """Everything that a rehearsal found."""
    after = lines(folder)
    plan = json.loads(paths.read_text(paths.join(folder, "plan.json")))
    measured = measures(figures["before"], after)
    stepping = sum(line["seconds"]["step"] for line in resumed(after))
    measured["start_seconds"] = round(figures["second_seconds"] - stepping, 3)
    return {
        "of": given["run_dir"],
        "devices": devices(folder),
        "steps": figures["steps"],
        "again": again(figures["before"], after),
        "measured": measured | {"export_seconds": figures["export_seconds"]},
        "plan": plan,
        "projected": projected(given, measured, devices(folder)["count"]),
    }


def measures(before: Sequence[Record], after: Sequence[Record]) -> Record:
    """Seconds of an even step, of a checkpoint, of an evaluation; bytes on a device."""
    both = [*before, *resumed(after)]
    uneven = {id(line) for line in both if "compile_seconds" in line}
    uneven |= {id(later) for line, later in pairwise(both) if id(line) in uneven}
    even = [line for line in both if id(line) not in uneven] or both
    memory = [line["device_memory"] for line in both]
    return {
        "step_seconds": statistics.median(line["seconds"]["data"] + line["seconds"]["compute"] for line in even),
        "checkpoint_seconds": max(line["seconds"]["checkpoint"] for line in both),
        "evaluation_seconds": max(line["seconds"]["evaluation"] for line in both),
        "first_step_seconds": both[0]["seconds"]["step"],
        "compile_seconds": [line["compile_seconds"] for line in both if "compile_seconds" in line],
        "step_bytes": max(found["step"] for found in memory),
        "peak_bytes": max((found["peak"] for found in memory if "peak" in found), default=None),
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in even),
    }


def resumed(after: Sequence[Record]) -> list[Record]:
    """The lines of the last start."""
    return list(after[max(i for i, line in enumerate(after) if "compile_seconds" in line) :])


def again(before: Sequence[Record], after: Sequence[Record]) -> Record:
    """Steps that were done before the kill and once more after it, and whether they were the same."""
    new, old = resumed(after), {line["step"]: line for line in before}
    both = [(old[line["step"]], line) for line in new if line["step"] in old]
    equal = [all(a[name] == b[name] for name in COMPUTED) for a, b in both]
    return {"from": new[0]["step"], "steps": len(both), "equal": sum(equal)}


def projected(given: Mapping[str, Any], measured: Mapping[str, Any], count: int) -> Record:
    """Hours, device hours and money from here to the run's end."""
    loop = given["loop"]
    done = max([0, *complete_steps(given["run_dir"])])
    steps = max(0, loop.steps - done)
    saves = math.ceil(steps / (given["checkpoints"] or Checkpointing()).every)
    evaluations = (steps // loop.evaluate_every if loop.evaluate_every else 0) + 1
    seconds = {
        "steps": steps * measured["step_seconds"],
        "checkpoints": saves * measured["checkpoint_seconds"],
        "evaluations": evaluations * measured["evaluation_seconds"],
        "start and end": measured["start_seconds"],
    }
    hours = sum(seconds.values()) / 3600
    price = loop.price_per_chip_hour
    return {
        "steps_left": steps,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "hours": hours,
        "chip_hours": hours * count,
        "cost": None if price is None else hours * count * price,
        "price_per_chip_hour": price,
        "max_chip_hours": loop.max_chip_hours,
    }


def text(found: Record) -> str:
    """For people."""
    measured, plan = found["measured"], found["plan"]
    there = found["devices"]
    lines = [
        f"rehearsed on {there['count']} x {there['kind']}: {found['steps']} steps, a kill, going on, export, proof",
        f"  compiled in {', then '.join(f'{s:.1f} s' for s in measured['compile_seconds'])}; "
        f"first step {measured['first_step_seconds']:.2f} s",
        redone(found["again"]),
        *beside_plan(measured, plan),
        *cost(found["projected"]),
    ]
    return "\n".join(lines)


def redone(again: Record) -> str:
    """Of the steps after the checkpoint."""
    if not again["steps"]:
        return f"  went on at step {again['from']}; the kill came before it was done once, so nothing is compared"
    same = "all the same, bit for bit" if again["equal"] == again["steps"] else f"{again['equal']} of them the same"
    return f"  went on at step {again['from']}; steps done once more after the kill: {again['steps']}, {same}"


def beside_plan(measured: Record, plan: Record) -> list[str]:
    """Memory and step time, each beside plan's."""
    if "none" in plan:
        return [f"  plan has no answer for {plan['topology_asked']}: {plan['none']}", *alone(measured)]
    told = plan["memory"]["peak"] if "memory" in plan else plan["arithmetic"]["total"]
    held, how = measured["peak_bytes"], "at most on a device"
    if held is None:
        held, how = measured["step_bytes"], "by the step as compiled here (these devices do not tell what they hold)"
    lines = [
        f"plan for {plan['topology_asked']} ({plan['by']}), estimated, not measured:",
        f"  memory  measured {words.size(held)} {how}; plan {words.size(told)} ({apart(held, told)})",
    ]
    seconds = plan.get("step_seconds", {}).get("sync exposed")
    if seconds is None:
        return [*lines, f"  step    measured {measured['step_seconds']:.3f} s; plan tells no time for these devices"]
    return [
        *lines,
        f"  step    measured {measured['step_seconds']:.3f} s; plan {seconds:.3f} s "
        f"({apart(measured['step_seconds'], seconds)})",
    ]


def alone(measured: Record) -> list[str]:
    """The same without a plan."""
    return [
        f"  memory {words.size(measured['peak_bytes'] or measured['step_bytes'])} on a device",
        f"  step {measured['step_seconds']:.3f} s",
    ]


def apart(measured: float, planned: float) -> str:
    """How far the measured figure lies from the planned one."""
    return f"measured {100 * (measured / planned - 1):+.1f} %" if planned else "plan says nothing"


def cost(told: Record) -> list[str]:
    """Finish, device hours, money."""
    money = "no price given (Loop.price_per_chip_hour)"
    if told["cost"] is not None:
        money = f"{told['cost']:,.2f} in money at {told['price_per_chip_hour']:g} a chip-hour"
    spent = ", ".join(f"{name} {value / 3600:.3g} h" for name, value in told["seconds"].items())
    lines = [
        f"the run: {told['steps_left']:,} steps left, {told['hours']:.4g} hours without stops ({spent})",
        f"  {told['chip_hours']:.4g} chip-hours; {money}",
    ]
    limit = told["max_chip_hours"]
    if limit is not None and told["chip_hours"] > limit:
        lines.append(f"  WARNING: Loop.max_chip_hours = {limit:g} ends it before its last step")
    return lines
