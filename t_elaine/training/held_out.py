"""Figures on fixed rows without training on them: held-out text by group, and the probe that a start must pass.

Opens no store: rows come as arrays. The whole of them lies on every host; each device computes its share.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t_elaine import paths
from t_elaine.errors import UserError
from t_elaine.training.metrics import Record, by_group
from t_elaine.training.step import SUMS, Step

Rows = Mapping[str, np.ndarray]
LARGEST_GAP = 0.01  # nats a token between the reference model and the sharded one, before step 1


def join_rows(parts: Sequence[Rows]) -> dict[str, np.ndarray]:
    """Sets of rows [N,T] one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def pad_rows(rows: Rows, multiple: int) -> dict[str, np.ndarray]:
    """Rows [N,T] with empty rows (weight 0, segment 0) behind them, so that N is a multiple."""
    missing = -len(rows["tokens"]) % multiple
    return {name: np.pad(array, ((0, missing), (0, 0))) for name, array in rows.items()}


def group_sums(step: Step, params: Any, rows: Rows, rows_at_once: int, groups: int) -> np.ndarray:
    """Sums [4,G] over all rows, float64, in the order of `step.SUMS`.

    Args:
        step: its `evaluate` is used.
        params: on the devices.
        rows: arrays [N,T].
        rows_at_once: rows of one call, a multiple of what the mesh divides rows by.
        groups: G.
    """
    rows = pad_rows(rows, rows_at_once)
    where = jax.sharding.NamedSharding(
        step.batch_sharding.mesh, jax.sharding.PartitionSpec(*step.batch_sharding.spec[1:])
    )
    total = np.zeros((len(SUMS), groups), np.float64)
    for start in range(0, len(rows["tokens"]), rows_at_once):
        part = {name: globally(array[start : start + rows_at_once], where) for name, array in rows.items()}
        total += np.asarray(jax.device_get(step.evaluate(params, part)), np.float64)
    return total


def globally(array: np.ndarray, where: jax.sharding.NamedSharding) -> jax.Array:
    """A host array that every process has, laid out over all devices."""
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def held_out_figures(
    step: Step, rows: Rows, rows_at_once: int, groups: Sequence[tuple[str, str]], pairs: bool = False
) -> Callable[[Any], Record]:
    """Evaluator: parameters → loss and bits-per-byte by language and category on fixed rows.

    pairs: also under "group", by "language, category".
    """

    def figures(params: Any) -> Record:
        sums_4G = group_sums(step, params, rows, rows_at_once, len(groups))
        found = by_group(sums_4G, groups)
        if pairs:
            named = [(f"{language}, {category}", "") for language, category in groups]
            found["group"] = by_group(sums_4G, named)["language"]
        return found

    return figures


def read_probe(run_dir: str) -> tuple[list[list[int]], float] | None:
    """(token rows, reference loss) that the import recorded, or None if it recorded none.

    Raises:
        UserError: the file is there but is not a probe.
    """
    path = paths.join(run_dir, "probe.json")
    if not paths.exists(path):
        return None
    try:
        record = json.loads(paths.read_text(path))
        return [[int(i) for i in row] for row in record["rows"]], float(record["loss"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the probe cannot be read: {error!r}", path, "import the model again") from error


def probe_rows(token_rows: Sequence[Sequence[int]], multiple: int) -> dict[str, np.ndarray]:
    """Arrays [N,T] that predict each row's tokens after the first, all in group 0; T is a multiple (of the mesh)."""
    length = max(len(row) for row in token_rows) - 1
    length += -length % multiple
    shape = (len(token_rows), length)
    rows = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segments", "positions", "groups")}
    weights = np.zeros(shape, np.float32)
    for i, row in enumerate(token_rows):
        n = len(row) - 1
        rows["tokens"][i, :n], rows["targets"][i, :n] = row[:-1], row[1:]
        rows["positions"][i, :n], rows["segments"][i, :n] = np.arange(n), 1
        weights[i, :n] = 1.0
    return {**rows, "weights": weights}


def check_probe(
    step: Step,
    params: Any,
    probe: tuple[list[list[int]], float],
    rows_at_once: int,
    groups: int,
    where: str,
    largest: float = LARGEST_GAP,
) -> float:
    """The loss on the probe through the sharded model, compared with the reference model's.

    Returns:
        the sharded model's loss, nats a token.

    Raises:
        UserError: they differ by more than `largest`.
    """
    token_rows, wanted = probe
    rows = probe_rows(token_rows, step.batch_sharding.mesh.shape["context"])
    sums = group_sums(step, params, rows, rows_at_once, groups).sum(axis=1)
    loss = float(sums[0] / sums[1])
    if not abs(loss - wanted) <= largest:
        what = f"before step 1 the loss on the probe rows is {loss:.4f}; the reference model has {wanted:.4f}"
        mend = "the start's weights or the model settings are not the reference's: import the model again"
        raise UserError(what, where, mend)
    return loss
