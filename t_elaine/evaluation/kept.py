"""The scores of models, kept beside the result to come: a killed evaluation goes on from there.

A file for each finished model and one of the parts of each begun one (`parts.py`), named by all that scores
depend on; all of them go when the result stands. It scores nothing.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from t_elaine import paths
from t_elaine.evaluation import runner
from t_elaine.evaluation.bits_per_byte import Held
from t_elaine.evaluation.engines import Model
from t_elaine.evaluation.options import ExamScores
from t_elaine.evaluation.parts import kept_parts
from t_elaine.evaluation.runner import Judged, Material

MARK, PARTS = ".scores-", ".parts"


def all_judged(
    path: str,
    models: Sequence[Model],
    material: Material,
    settings: dict[str, Any],
    judge: Callable[..., Judged],
    console: Console,
) -> list[Judged]:
    """Each model judged, now or by an earlier start; see `kept_or_judged`."""
    return [
        kept_or_judged(path, model, material, settings, partial(judge, model, material), console) for model in models
    ]


def kept_or_judged(
    path: str,
    model: Model,
    material: Material,
    settings: dict[str, Any],
    judge: Callable[..., Judged],
    console: Console,
) -> Judged:
    """What an earlier start measured on this model, else what `judge` finds; that is kept.

    Args:
        path: of the result to come.
        model, material: what is judged on what.
        settings: what else scores depend on (length of rows, dtype), not what is computed from them.
        judge: measures; given `parts`, those of this model's scores that are there.
        console: told of scores that were kept.
    """
    file = _file(path, runner.digest(runner.identity(material, [model], settings)))
    if paths.exists(file):
        console.print(f"{model.path}: scored by an earlier start", highlight=False, soft_wrap=True)
        return _read(file, model)
    with kept_parts(file + PARTS) as parts:
        found = judge(parts=parts)
    scores = {"held": [asdict(held) for held in found.held], "exams": [asdict(exam) for exam in found.exams]}
    paths.write_text(file, json.dumps(scores, default=lambda array: array.tolist()))
    return found


def clear(path: str) -> None:
    """Remove what was kept for the result at `path`."""
    folder, _, name = path.rpartition("/")
    for found in paths.listing(folder or "."):
        if found.startswith(f".{name}{MARK}"):
            paths.remove(paths.join(folder or ".", found))


def _file(path: str, digest: str) -> str:
    folder, _, name = path.rpartition("/")
    return paths.join(folder or ".", f".{name}{MARK}{digest[:16]}")


def _read(file: str, model: Model) -> Judged:
    """JSON keeps every float64 as it is, so the result is the same whether scores were kept or not."""
    scores = json.loads(paths.read_text(file))
    return Judged(model=model, held=_held(scores["held"]), exams=[ExamScores(**exam) for exam in scores["exams"]])


def _held(entries: Sequence[dict[str, Any]]) -> list[Held]:
    arrays = {"nats": np.float64, "tokens": np.int64, "bytes": np.int64}
    return [
        Held(
            store=entry["store"],
            groups=[(language, category) for language, category in entry["groups"]],
            unpredicted=entry["unpredicted"],
            **{name: np.array(entry[name], dtype) for name, dtype in arrays.items()},
        )
        for entry in entries
    ]
