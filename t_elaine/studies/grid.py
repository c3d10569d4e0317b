"""Sweeps as expressions: an axis names one setting and its values; product, zip and chain combine axes into runs.

A grid is a plain list of runs, a run a plain dictionary setting → value. Nothing here starts a run (`runner` does).
"""

import math
from collections.abc import Sequence
from typing import Any

from t_elaine.errors import UserError

Grid = list[dict[str, Any]]


def axis(*, name: str, values: Sequence[Any]) -> Grid:
    """One run for each value of one setting.

    Args:
        name: the setting as a gin file names it, with its scope if it has one: "Schedule.peak", "MODEL_SEED".
        values: what it is set to, one run each; plain numbers, strings, booleans, lists, mappings.
    """
    if not values:
        raise UserError(f"the axis {name} has no values", "axis.values", f"{name} = [1, 2]")
    repeated = [value for i, value in enumerate(values) if value in list(values)[:i]]
    if repeated:
        raise UserError(f"the axis {name} has {repeated[0]!r} twice", "axis.values", "name each value once")
    return [{name: value} for value in values]


def product(*, parts: Sequence[Grid]) -> Grid:
    """Every run of each part with every run of the others; the last part changes fastest.

    Args:
        parts: grids over different settings.
    """
    runs: Grid = [{}]
    for part in parts:
        runs = [_joined(run, other) for run in runs for other in part]
    return _checked(runs, "product")


def zipped(*, parts: Sequence[Grid]) -> Grid:
    """The first runs of all parts together, then the second ones, and so on.

    Args:
        parts: grids of the same length, over different settings.
    """
    lengths = [len(part) for part in parts]
    if len(set(lengths)) > 1:
        raise UserError(f"zip of parts of {lengths} runs", "zip.parts", "give each part the same number of values")
    runs: Grid = []
    for together in zip(*parts, strict=True):
        run: dict[str, Any] = {}
        for other in together:
            run = _joined(run, other)
        runs.append(run)
    return _checked(runs, "zip")


def chain(*, parts: Sequence[Grid]) -> Grid:
    """The runs of the first part, then those of the next; a run that comes twice is made once.

    Args:
        parts: grids, over whatever settings.
    """
    runs: Grid = []
    for run in (run for part in parts for run in part):
        if run not in runs:
            runs.append(run)
    return _checked(runs, "chain")


def _joined(run: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = run.keys() & other.keys()
    if both:
        raise UserError(f"{', '.join(sorted(both))} is set by two parts", "product or zip", "keep one axis of it")
    return run | other


def _checked(runs: Grid, name: str) -> Grid:
    if not runs or not runs[0]:
        raise UserError("there are no parts", f"{name}.parts", f"{name}.parts = [@a/axis(), @b/axis()]")
    return runs


def short(value: Any) -> str:
    """A value as part of a folder's name: numbers as they are read, anything else letters and digits only."""
    if isinstance(value, float) and value and not 0.01 <= abs(value) < 10000 and math.isfinite(value):
        mantissa, exponent = f"{value:e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    text = value.rstrip("/").rsplit("/", 1)[-1] if isinstance(value, str) else str(value)
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in text).strip("_.")[:24] or "empty"
