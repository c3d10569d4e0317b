"""The root of evaluate's work once all is settled: models judged, contamination looked for, one result kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console

from t_elaine import elsewhere, examined
from t_elaine.data.overlap import Overlap
from t_elaine.elsewhere import Used
from t_elaine.evaluation import compared, generated, kept, runner, summary, table, unseen
from t_elaine.evaluation import contamination as contaminated
from t_elaine.evaluation.contamination import Trained
from t_elaine.evaluation.engines import Model
from t_elaine.evaluation.items import Exam
from t_elaine.evaluation.runner import Material
from t_elaine.evaluation.suites import Suite
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.training import run_folder


@dataclass(frozen=True, kw_only=True)
class How:
    """How models are computed.

    Attributes:
        path: of the result.
        mesh, compute: of our own engine; None lets each kind of work choose its mesh.
        rows: at a time.
        length: tokens a row where likelihoods are scored.
        used: the engine.
    """

    path: str
    mesh: MeshConfig | None
    compute: ComputeConfig
    rows: int
    length: int
    used: Used


def judge(
    models: Sequence[Model],
    material: Material,
    scored: Mapping[str, Any],
    identity: dict[str, Any],
    trained: Trained,
    overlap: Overlap,
    how: How,
    console: Console,
) -> dict[str, Any]:
    """Judge the models on everything, and keep the result at `how.path`.

    Args:
        models: opened; the child, and the parent if there is one.
        material: what they are judged on.
        scored: what scores depend on besides.
        identity: the result's.
        trained, overlap: what the child was trained on, and when a question counts as seen.
        how: see there.
        console: takes messages and progress.
    """
    path, used = how.path, how.used
    with runner.writable(path):
        other = elsewhere.scorer(used, how.compute.dtype, how.rows, how.length)
        own: dict[str, Any] = {
            "mesh": make_mesh(how.mesh or MeshConfig()),
            "compute": how.compute,
            "batch_rows": how.rows,
        }
        one = partial(runner.judge, **own, length=how.length, console=console, other=other)
        judged = kept.all_judged(path, models, material, dict(scored), one, console)
        asked: list[Suite | Exam] = [*material.suites, *(sitting.exam for sitting in material.sittings)]
        seen = contaminated.look(trained, asked, overlap, path.rpartition("/")[0], say=console.print)
        result = summary.result(judged, material, identity, seen[: len(material.suites)])
        texts = (how.mesh, how.compute.dtype, how.rows, path, identity, console, used)
        result |= examined.sit_all(models, material, *texts)
        unseen.put(result, material.sittings, seen[len(material.suites) :])
        result["exam_files"] = {sitting.exam.name: sitting.exam.path for sitting in material.sittings}
        result["versions"] = run_folder.versions()
        runner.save(path, result)
        kept.clear(path)
    return result


def show(result: dict[str, Any], path: str, console: Console) -> None:
    """Print a result, and where it stands."""
    table.show(result, console)
    generated.show(result.get("generated", {}), console)
    compared.show_sides(result, console)
    console.print(f"result: {path}", soft_wrap=True, highlight=False)
