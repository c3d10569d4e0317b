"""What holds a planned step back, and what to change, by the settings' names. Rules of thumb over a plan's figures."""

from typing import Any

from t_elaine.model.config import SAVEABLE, ComputeConfig

Record = dict[str, Any]
NOTEWORTHY = 0.04  # share of the step


def judged(compute: ComputeConfig, shape: tuple[int, int, int], record: Record) -> tuple[Record, list[str]]:
    """(which limit binds, with its share of the step; what to change first).

    Args:
        compute: how the step is computed.
        shape: (A, B, T).
        record: the plan so far, with memory and speed.
    """
    if not record["memory"]["fits"]:
        return {"name": "memory", "share": 1.0}, too_large(compute, shape, record["mesh"])
    step = record["step_seconds"]["sync exposed"]
    sync, compute_seconds = record["synchronous_seconds"], record["compute_seconds"]
    hidden = max(0.0, record["collective_seconds"] - sync - compute_seconds)
    shares = {
        "collectives": (sync + hidden) / step,
        "matmuls and attention": (compute_seconds - record["parts"]["elementwise"]) / step,
        "elementwise work (HBM bandwidth)": record["parts"]["elementwise"] / step,
    }
    name = max(shares, key=lambda key: shares[key])
    return {"name": name, "share": shares[name]}, faster(compute, shape, record, shares)


def faster(compute: ComputeConfig, shape: tuple[int, int, int], record: Record, shares: Record) -> list[str]:
    """Changes that the figures suggest, the largest gain first."""
    step, parts, spare = record["step_seconds"]["sync exposed"], record["parts"], record["memory"]["spare"]
    found: list[tuple[float, str]] = []
    gib = f"{spare / 2**30:.1f} GiB are free"
    if parts["recomputed"] / step > NOTEWORTHY and spare > 2**30:
        more = [name for name in SAVEABLE if name not in compute.saved]
        if compute.remat in ("full", "names") and more:
            keep = (*compute.saved, more[0]) if compute.remat == "names" else ("q", "k", "v", "attention")
            found.append(
                (
                    parts["recomputed"],
                    f"recompute less: ComputeConfig.remat = 'names', ComputeConfig.saved = {keep!r}; {gib}",
                )
            )
    if shares["collectives"] > NOTEWORTHY:
        told = "let collectives run beside compute: train.compiler_options of the shipped file for this chip"
        found.append((shares["collectives"] * step, told))
        if spare > record["memory"]["activations"]:
            found.append((shares["collectives"] * step / 2, f"more rows a device: train.rows_per_device; {gib}"))
    if parts["attention_below_peak"] / step > 2 * NOTEWORTHY:
        told = (
            f"other attention kernels or blocks than {compute.attention} with {compute.attention_block}: plan --search"
        )
        found.append((parts["attention_below_peak"] / 2, told))
    if parts["matmuls_below_peak"] / step > NOTEWORTHY:
        told = "matmuls run below their peak: train.compiler_options = {'xla_tpu_scoped_vmem_limit_kib': '65536'}"
        found.append((parts["matmuls_below_peak"], told))
    return [told for _, told in sorted(found, reverse=True)]


def too_large(compute: ComputeConfig, shape: tuple[int, int, int], mesh: Record) -> list[str]:
    """What makes a step smaller, in the order of how little it costs."""
    ways = []
    rows = shape[1] // (mesh["replica"] * mesh["fsdp"])
    if compute.remat in ("none", "minimal"):
        ways.append("ComputeConfig.remat = 'names' with ComputeConfig.saved = ('q', 'k', 'v', 'attention'), or 'full'")
    elif compute.remat == "names" and compute.saved:
        ways.append(
            f"save fewer tensors: ComputeConfig.saved = {compute.saved[:-1]!r}, or ComputeConfig.remat = 'full'"
        )
    if compute.attention == "reference":
        ways.append(
            "an attention that keeps no scores of whole rows: ComputeConfig.attention = 'splash' (TPU), 'blocked'"
        )
    if rows > 1:
        ways.append(f"train.rows_per_device = {rows // 2} (accumulation makes up for it)")
    if compute.loss_chunk > 512:
        ways.append(f"ComputeConfig.loss_chunk = {compute.loss_chunk // 2}")
    ways.append("rows in pieces: MeshConfig.context = 2")
    ways.append("more chips along MeshConfig.fsdp: a larger plan.topology")
    return ways
