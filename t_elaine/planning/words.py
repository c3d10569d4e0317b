"""A plan in plain words, at most 100 columns wide. Every number comes from the record of `answer`."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]
WIDTH = 100
DOES_NOT_FIT = 3  # exit code
CAUSES = {
    "model": "the model's own FLOPs, at peak",
    "recomputed": "matmuls run again for the backward pass",
    "matmuls_below_peak": "matmuls below peak",
    "attention_extra": "attention: masked-out and repeated work",
    "attention_below_peak": "attention: kernels below peak",
    "elementwise": "elementwise work, copies",
    "asynchronous": "collectives beside which compute goes on",
    "synchronous": "collectives that all wait for",
}
HELD = {
    "parameters": "parameters",
    "optimizer": "optimizer state",
    "batch_and_padding": "batch, padding",
    "activations": "activations, gradients",
}
BY_SHAPES = {
    "parameters": "parameters",
    "moments": "optimizer state",
    "gradients": "gradients",
    "activations": "activations",
}
STEPS = {
    "hidden": "all collectives hidden",
    "sync exposed": "synchronous ones exposed",
    "exposed": "all of them exposed",
}


def text(record: Record) -> str:
    """The whole answer."""
    compiled = "memory" in record
    parts = [heading(record), memory(record) if compiled else arithmetic(record)]
    parts += [buffers(record) if compiled else "", speed(record), causes(record), collectives(record), run(record)]
    return "\n\n".join(part for part in [*parts, machines(record), change(record)] if part)


def fits(record: Record) -> bool:
    """Whether it fits, as far as this plan can say."""
    if "memory" in record:
        return bool(record["memory"]["fits"])
    return bool(record["arithmetic"]["total"] <= record["arithmetic"]["limit"])


def heading(record: Record) -> str:
    """What was asked, and that nothing was measured."""
    batch, topology = record["batch"], record["topology"]
    axes = [f"{axis}={size}" for axis, size in record["mesh"].items() if size > 1]
    mesh = ", ".join(axes) or "of one device"
    rows = f"{batch['accumulation']} x {batch['rows']} rows of {batch['length']:,}"
    seconds = f", {record['compile_seconds']:.0f} s" if "compile_seconds" in record else ""
    return wrapped(
        "PLAN: everything below is estimated, not measured.",
        f"{count(record['model']['parameters'])} parameters on {topology['text']} (mesh {mesh})",
        f"a step: {batch['tokens']:,} tokens, {rows}; {record['groups_assumed']} groups of text assumed",
        f"told by {record['by']}{seconds}",
    )


def memory(record: Record) -> str:
    """Fits or not, by how much, and what takes the room, by the compiler's word."""
    told = record["memory"]
    return "\n".join([verdict("", told["peak"], told["limit"]), *column(HELD, told)])


def arithmetic(record: Record) -> str:
    """The same from shapes alone."""
    told = record["arithmetic"]
    lines = [verdict("by arithmetic ", told["total"], told["limit"]), *column(BY_SHAPES, told)]
    if told["decided"]:
        lines.append(f"  the state and what is kept for the backward pass alone take {size(told['least'])}")
    return "\n".join(lines)


def verdict(how: str, used: float, limit: float) -> str:
    """One line: whether it fits, and by how much."""
    spare = limit - used
    judged = f"FITS {how}with {size(spare)} to spare" if spare >= 0 else f"DOES NOT FIT {how}by {size(-spare)}"
    return f"{judged}: {size(used)} of {size(limit)} on each device"


def column(names: dict[str, str], told: Record) -> list[str]:
    """Bytes by kind."""
    return [f"  {label:24} {size(told[name]):>11}" for name, label in names.items()]


def buffers(record: Record) -> str:
    """The largest buffers at the worst moment, equal ones in one line."""
    rows: dict[tuple[str, str, str], list[float]] = {}
    for row in record["memory"]["largest"]:
        rows.setdefault((row["shape"], row["source"], row["operation"] or row["name"]), []).append(row["bytes"])
    lines = [
        f"{size(sum(sizes)):>11} {f'{len(sizes)} x' if len(sizes) > 1 else '':>4} "
        f"{cut(shape, 28):28} {cut(source, 30):30} {cut(operation, 22)}".rstrip()
        for (shape, source, operation), sizes in rows.items()
        if sum(sizes) > 0
    ]
    return "\n".join(["largest buffers at the worst moment (shape, source line, operation)", *lines]) if lines else ""


def speed(record: Record) -> str:
    """Step time, rate, MFU, FLOPs."""
    if "flops" not in record:
        return ""
    lines = []
    if "step_seconds" in record:
        rates, mfu = record["tokens_per_second_per_chip"], record["mfu"]
        lines.append(f"{'step':26} {'seconds':>9} {'tokens/s/chip':>14} {'MFU':>8}")
        lines += [
            f"  {label:24} {record['step_seconds'][key]:>9.3f} {rates[key]:>14,.0f} {100 * mfu[key]:>6.1f} %"
            for key, label in STEPS.items()
        ]
        lines.append("  (MFU without attention's masked half and without recomputation)")
    flops = record["flops"]
    lines.append(
        f"matmul FLOPs a device and step: {flops['executed']:.3g} executed, {flops['model']:.3g} of the model's "
        f"({flops['ratio']:.2f} x)"
    )
    if "roofline_seconds" in record:
        told = ", ".join(f"{name} {seconds:.3f}" for name, seconds in record["roofline_seconds"].items())
        lines.append(f"an arithmetic roofline, coarser than a compiled estimate; seconds: {told}")
    if record.get("host_bytes"):
        seconds = record["host_seconds_not_counted"]
        lines.append(f"to and from the host: {record['host_bytes'] / 1e9:.1f} GB, {seconds:.2f} s NOT in the step")
    if record.get("loops_not_read"):
        lines.append(f"WARNING: loops whose trips are not known count once: {', '.join(record['loops_not_read'])}")
    return wrapped(*lines)


def causes(record: Record) -> str:
    """Where the step goes."""
    if "parts" not in record:
        return ""
    step = record["step_seconds"]["exposed"]
    rows = [f"  {CAUSES[k]:42} {v:>8.3f} s {100 * v / step:>6.1f} %" for k, v in record["parts"].items()]
    return "\n".join(["where it goes (all collectives exposed)", *rows])


def collectives(record: Record) -> str:
    """Bytes by mesh axis, and whether compute goes on beside them."""
    if "collectives" not in record:
        return ""
    timed = "step_seconds" in record
    rows = [
        f"  {row['axes'] or 'not told':18} {row['kind']:19} {row['mode']:13} {row['calls']:>6.0f} calls "
        f"{row['bytes'] / 1e9:>9.2f} GB" + (f" {row['seconds']:>8.3f} s" if timed else "")
        for row in record["collectives"]
    ]
    title = "collectives of a step by mesh axis (bytes of the whole tensors)"
    return "\n".join([title, *(rows or ["  none"])])


def run(record: Record) -> str:
    """Hours and money of the whole run."""
    if "run" not in record:
        return ""
    told = record["run"]
    money = "cost: no price given (Loop.price_per_chip_hour)"
    if told["cost"] is not None:
        money = f"cost: {told['cost']:,.0f} at {told['price_per_chip_hour']:g} a chip and hour"
    return wrapped(
        f"the run: {count(told['tokens'])} tokens, {told['steps']:,} steps, {told['hours']:,.1f} hours, "
        f"{told['chip_hours']:,.0f} chip-hours; {money}",
        "  (synchronous collectives exposed; no start-up, evaluation, checkpoints or stops)",
    )


def machines(record: Record) -> str:
    """RAM of a host, disk, stores."""
    if "machines" not in record:
        return ""
    told = record["machines"]
    hosts = f"each of {told['hosts']} hosts" if told["hosts"] > 1 else "the host"
    cache = (
        f", {size(told['cache_bytes'])} for what it reads of stores (Mixture.cache_gb)" if told["cache_bytes"] else ""
    )
    permanent = f" (permanent: {told['permanent']:,})" if told["permanent"] else ""
    stores = f"stores: {size(told['stores_bytes'] or 0)} on disk"
    if told["stores_bytes"] is None:
        stores = f"stores: not all on a disk here; the run's tokens, each read once, are {size(told['tokens_bytes'])}"
    return wrapped(
        f"{hosts} ({told['devices_per_host']} devices) needs RAM: {size(told['restore_bytes'])} while a checkpoint is "
        f"restored or written, {size(told['program_bytes'])} for the program{cache}",
        f"  a checkpoint: {size(told['checkpoint_bytes'])}; at most {told['checkpoints']:,} of them{permanent} at once "
        f"in RUN_DIR: {size(told['disk_bytes'])}",
        f"  {stores}",
    )


def change(record: Record) -> str:
    """What binds and what to change."""
    lines = []
    if "limit" in record:
        share = f", {100 * record['limit']['share']:.0f} % of the step" if fits(record) else ""
        lines.append(f"what binds: {record['limit']['name']}{share}")
    ways = record.get("change", [])
    return wrapped(*lines, *(["what to change:"] if ways else []), *(f"  - {way}" for way in ways))


def wrapped(*lines: str) -> str:
    """Lines, those that are too long broken between words."""
    return "\n".join(part for line in lines for part in fitted(line))


def fitted(line: str) -> Iterable[str]:
    """One line as one or several."""
    indent = len(line) - len(line.lstrip()) + 4
    keep: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "drop_whitespace": True}
    return textwrap.wrap(line, WIDTH, subsequent_indent=" " * indent, **keep) or [""]


def cut(cell: str, width: int) -> str:
    """The cell, its beginning or middle left out where it is too long."""
    if len(cell) <= width:
        return cell
    if "/" in cell:
        return "…" + cell[-(width - 1) :]
    return cell[: width // 2 - 1] + "…" + cell[-(width - width // 2) :]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they must be; the first is left-aligned, the others right."""
    widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
    return [
        "  ".join(
            f"{cell:{'<' if i == 0 else '>'}{width}}" for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [titles, *rows]
    ]


def size(amount: float) -> str:
    """Bytes in GiB or MiB."""
    return f"{amount / 2**30:.2f} GiB" if abs(amount) >= 2**29 else f"{amount / 2**20:.1f} MiB"


def count(number: float) -> str:
    """8.03 billion, 135 million, 512."""
    for name, unit in (("billion", 1e9), ("million", 1e6)):
        if number >= unit:
            return f"{number / unit:.3g} {name}" if number < 1000 * unit else f"{number / unit:,.0f} {name}"
    return f"{number:,.0f}"
