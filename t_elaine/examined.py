"""The root of evaluate's exams that are answered in text: joins a model, the engine and the protocols."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from rich.console import Console

from t_elaine import elsewhere, writing
from t_elaine.elsewhere import Used
from t_elaine.evaluation import exams, generating, submission, summary
from t_elaine.evaluation.answers import Write
from t_elaine.evaluation.engines import SERVED, Model
from t_elaine.evaluation.progress import progress
from t_elaine.evaluation.runner import Material
from t_elaine.evaluation.sitting import Sitting
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import MeshConfig
from t_elaine.peers.process import Worker


def folder(path: str) -> str:
    """Of the answers that belong to the result at `path`; they stay there."""
    return f"{path.removesuffix('.json')}-answers"


def sit_all(
    models: Sequence[Model],
    material: Material,
    mesh: MeshConfig | None,
    dtype: str,
    rows: int,
    path: str,
    identity: Mapping[str, Any],
    console: Console,
    used: Used,
) -> dict[str, Any]:
    """{"generated": scores of each model}, or nothing where no exam is answered in text; see `sit`.

    Args:
        path: of the result.
        identity: its; resamples and seed of the bootstrap are read from it.
        used: the engine.
    """
    if not material.sittings:
        return {}
    draws = {name: int(identity[name]) for name in ("resamples", "seed")}
    how: dict[str, Any] = {
        "mesh": mesh,
        "dtype": dtype,
        "rows": rows,
        "folder": folder(path),
        "draws": draws,
        "console": console,
        "used": used,
    }
    scores = {side: sit(model, material, **how) for side, model in zip(summary.SIDES, models, strict=False)}
    if made := submission.write(path, material.sittings, scores[summary.SIDES[0]]):
        console.print(f"for MMedBench's leaderboard: {made}", soft_wrap=True, highlight=False)
    return {"generated": scores}


def sit(
    model: Model,
    material: Material,
    *,
    mesh: MeshConfig | None,
    dtype: str,
    rows: int,
    folder: str,
    draws: dict[str, int],
    console: Console,
    used: Used,
) -> list[dict[str, Any]]:
    """Have a model answer all exams, and score it; what an earlier start wrote is not asked again.

    Args:
        model: opened, not loaded; it is loaded where an answer is missing.
        material: its `sittings` are asked.
        mesh: how devices are arranged; None lets generation choose.
        dtype: of the computation.
        rows: answers at a time.
        folder: of the answers.
        draws: resamples and seed of the bootstrap.
        console: for progress.
        used: the engine.
    """
    loaded: list[Any] = []
    open_now = ExitStack()

    def worker() -> Worker:
        if not loaded:
            loaded.append(open_now.enter_context(elsewhere.worker(used, model, dtype, rows)))
        return loaded[0]

    def engine(sitting: Sitting) -> Write:
        if not used.ours:
            return elsewhere.writer(used, model, sitting, worker)
        if not loaded:
            loaded.append(writing.open_writer(model, mesh, ComputeConfig(dtype=dtype, remat="none"), rows))
        (writer,) = loaded
        ends = generating.end_ids(sitting, writing.small_files(model), model.vocabulary, writer.manners.end_ids)
        return generating.in_process(writer.engine, model.vocabulary, writer.manners.before, ends)

    identity = {"model": model.identity, "dtype": "" if model.kind == SERVED else dtype, **used.about}
    total = sum(len(sitting.items) for sitting in material.sittings)
    with open_now, progress(console, f"asking {model.path}", total, "questions") as done:
        take = partial(exams.take, material.sittings, engine, folder, identity)
        return take(resamples=draws["resamples"], seed=draws["seed"], done=done)
