"""A plan in plain words: at most 100 columns, one screen or two. Every number comes from the record of `answer`."""

import math
from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]
WIDTH = 100
CAUSES = {
    "model": "the model's own FLOPs at peak",
    "recomputed": "recomputed matmuls",
    "matmuls_below_peak": "matmuls below peak",
    "attention_extra": "attention: masked-out and repeated work",
    "attention_below_peak": "attention: kernels below peak",
    "elementwise": "elementwise work, copies",
    "asynchronous": "collectives that may hide behind compute",
    "synchronous": "collectives that nothing hides",
}


def text(record: Record) -> str:
    """The whole answer."""
    parts = [heading(record)]
    parts += [memory(record) if "memory" in record else arithmetic(record)]
    if "step_seconds" in record:
        parts += [speed(record), causes(record), collectives(record), run(record)]
    parts += [change(record)]
    return "\n\n".join(part for part in parts if part)


def fits(record: Record) -> bool:
    """Whether it fits, as far as this plan can say."""
    if "memory" in record:
        return bool(record["memory"]["fits"])
    return bool(record["arithmetic"]["total"] <= record["arithmetic"]["limit"])


def heading(record: Record) -> str:
    """What was asked, and that nothing was measured."""
    batch, topology = record["batch"], record["topology"]
    mesh = ", ".join(f"{axis}={size}" for axis, size in record["mesh"].items())
    return "\n".join(
        [
            "Everything below is estimated, not measured.",
            f"{count(record['model']['parameters'])} parameters on {topology['text']} ({mesh})",
            f"batch of {batch['tokens']:,} tokens: {batch['accumulation']} x {batch['rows']} rows of {batch['length']:,}; "
            f"{record['groups_assumed']} groups of text assumed",
            *(
                [
                    f"by {record['by']}"
                    + (f" in {record['compile_seconds']:.0f} s" if "compile_seconds" in record else "")
                ]
            ),
        ]
    )


def memory(record: Record) -> str:
    """Fits or not, by how much, and what takes the room."""
    told = record["memory"]
    spare = told["limit"] - told["peak"]
    verdict = f"FITS: {size(spare)} are left" if spare >= 0 else f"DOES NOT FIT: {size(-spare)} too much"
    lines = [f"{verdict} ({size(told['peak'])} of {size(told['limit'])} on each device)"]
    named = ("parameters", "optimizer", "batch_and_padding", "activations")
    lines += [f"  {name.replace('_', ' '):20} {size(told[name]):>10}" for name in named]
    if told["largest"]:
        rows = [(size(row["bytes"]), row["shape"], row["operation"], row["source"]) for row in told["largest"]]
        lines += ["", "largest buffers at the worst moment", *table(rows, (10, 30, 28, 28))]
    return "\n".join(lines)


def arithmetic(record: Record) -> str:
    """The answer from shapes alone."""
    told = record["arithmetic"]
    spare = told["limit"] - told["total"]
    verdict = "DOES NOT FIT" if told["decided"] else "would fit" if spare >= 0 else "probably does not fit"
    lines = [f"{verdict}, by arithmetic alone: about {size(told['total'])} of {size(told['limit'])} on each device"]
    if told["decided"]:
        lines.append(
            f"  at least {size(told['least'])} are needed at once: {size(told['least'] - told['limit'])} too much"
        )
    named = ("parameters", "moments", "gradients", "activations")
    return "\n".join([*lines, *(f"  {name:20} {size(told[name]):>10}" for name in named)])


def speed(record: Record) -> str:
    """Step time, rate, MFU, FLOPs."""
    steps, rates, mfu = record["step_seconds"], record["tokens_per_second_per_chip"], record["mfu"]
    titles = {
        "hidden": "all collectives hidden",
        "sync exposed": "synchronous ones added",
        "exposed": "all of them added",
    }
    rows = [(titles[k], f"{steps[k]:.3f} s", f"{rates[k]:,.0f}", f"{100 * mfu[k]:.1f} %") for k in titles if k in steps]
    flops = record["flops"]
    lines = [f"{'collectives':26} {'step':>10} {'tokens/s/chip':>14} {'MFU':>8}"]
    lines += [f"{a:26} {b:>10} {c:>14} {d:>8}" for a, b, c, d in rows]
    lines.append(
        f"matmul FLOPs a device: {flops['executed']:.3g} executed, {flops['model']:.3g} of the model "
        f"({flops['ratio']:.2f} times, recomputation and masked-out attention included)"
    )
    if record.get("host_bytes"):
        lines.append(
            f"to and from the host {record['host_bytes'] / 1e9:.1f} GB, "
            f"{record['host_seconds_not_counted']:.2f} s, NOT in the step"
        )
    if record.get("loops_not_read"):
        lines.append(f"WARNING: trips not read of {', '.join(record['loops_not_read'])}, counted once")
    return "\n".join(lines)


def causes(record: Record) -> str:
    """Where the step goes."""
    step = record["step_seconds"]["exposed"]
    rows = [(CAUSES[k], f"{v:.3f} s", f"{100 * v / step:.1f} %") for k, v in record.get("parts", {}).items()]
    return "\n".join(["where it goes (all collectives added)", *(f"  {a:44} {b:>9} {c:>7}" for a, b, c in rows)])


def collectives(record: Record) -> str:
    """By mesh axis."""
    rows = [
        (
            row["axes"] or "?",
            row["kind"],
            row["mode"],
            f"{row['calls']:.0f}",
            f"{row['bytes'] / 1e9:.2f} GB",
            f"{row['seconds']:.3f} s",
        )
        for row in record.get("collectives", [])
    ]
    if not rows:
        return "no collectives"
    lines = [f"  {a:16} {b:18} {c:13} {d:>6} {e:>11} {f:>9}" for a, b, c, d, e, f in rows]
    return "\n".join(["collectives, by mesh axis (bytes of the whole tensors, per device)", *lines])


def run(record: Record) -> str:
    """Hours and money of the whole run."""
    told = record["run"]
    money = "no price given (Loop.price_per_chip_hour)"
    if told["cost"] is not None:
        money = f"{told['cost']:,.0f} at {told['price_per_chip_hour']:g} a chip and hour"
    return (
        f"the run: {count(told['tokens'])} tokens in {told['steps']:,} steps: {told['hours']:,.1f} hours, "
        f"{told['chip_hours']:,.0f} chip-hours, {money}\n(steps alone: no start-up, evaluation, checkpoints or stops)"
    )


def change(record: Record) -> str:
    """What binds and what to change."""
    lines = []
    if "limit" in record:
        lines.append(f"what binds: {record['limit']['name']} ({100 * record['limit']['share']:.0f} % of the step)")
    ways = record.get("change", [])
    return "\n".join([*lines, *(["what to change:"] if ways else []), *(f"  - {way}" for way in ways)])


def table(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    """Rows cut to columns; the first is right-aligned."""
    lines = []
    for first, *rest in rows:
        cells = [f"{first:>{widths[0]}}", *(f"{cut(c, w):{w}}" for c, w in zip(rest, widths[1:], strict=True))]
        lines.append(" ".join(cells).rstrip())
    return lines


def cut(cell: str, width: int) -> str:
    """The cell, its middle left out where it is too long."""
    if len(cell) <= width:
        return cell
    return cell[: width // 2 - 1] + "…" + cell[-(width - width // 2) :]


def size(amount: float) -> str:
    """Bytes in GiB or MiB."""
    return f"{amount / 2**30:.2f} GiB" if abs(amount) >= 2**29 else f"{amount / 2**20:.1f} MiB"


def count(number: float) -> str:
    """8.03 billion, 135 million."""
    for name, unit in (("billion", 1e9), ("million", 1e6)):
        if number >= unit:
            return f"{number / unit:.{max(0, 2 - int(math.log10(number / unit)))}f} {name}"
    return f"{number:,.0f}"
