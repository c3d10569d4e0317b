"""The command `evaluate`: a checkpoint on held-out text and exams, beside its parent if one is given."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import Console

from t_elaine import cli, examined
from t_elaine.data.overlap import Overlap
from t_elaine.evaluation import contamination as contaminated
from t_elaine.evaluation import engines, generated, kept, runner, summary, table, unseen
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh

FLAGS = ("checkpoint", "parent", "stores", "exams", "suites_dir", "protocols", "limit", "batch_rows")
WHERE = ("trained_on", "name", "to", "overwrite")
COMPUTE = ComputeConfig(dtype="float32", remat="none", attention="blocked", loss_chunk=128)
LENGTH = 2048
EXAMS = ("samples/en", "samples/ja", "samples/zh")


def evaluate(
    *,
    checkpoint: str,
    parent: str = "",
    stores: tuple[str, ...] = (),
    exams: tuple[str, ...] = EXAMS,
    suites_dir: str = "",
    protocols: tuple[str, ...] = (runner.LIKELIHOOD,),
    split: str = "validation",
    limit: int = 0,
    batch_rows: int = 8,
    sequence_length: int = 0,
    mesh: MeshConfig | None = None,
    compute: ComputeConfig | None = None,
    resamples: int = 2000,
    seed: int = 0,
    contamination: bool = True,
    trained_on: tuple[str, ...] = (),
    overlap: Overlap | None = None,
    name: str = "",
    to: str = "",
    overwrite: bool = False,
) -> int:
    """Judge a model on held-out text and exams, with intervals, beside its parent.

    The scores of a model that is finished are kept: if the command is killed, the same one goes on with the next model.

    Args:
        checkpoint: the model: RUN_DIR, RUN_DIR/checkpoints/STEP, or a folder in Hugging Face format
        parent: a second model to compare with, item by item
        stores: token stores whose held-out documents give bits-per-byte
        exams: samples/en, samples/ja, samples/zh, published ones such as en/MedQA, or .jsonl files in ELAINE's layout
            (ja:FILE where no folder says ja)
        suites_dir: folder of the published exams, as their repository has it
        protocols: how exams are asked: likelihood, official, repaired; answers in text are kept one by one
        split: "validation" or "train"
        limit: documents of each store and questions of each exam; 0 takes all
        batch_rows: rows at a time on all devices together; changes speed only
        sequence_length: tokens a row, where long documents are cut; 0 takes 2048 or the model's context if shorter
        mesh: how devices are arranged
        compute: how the model is computed; float32 by default
        resamples: bootstrap draws of an interval
        seed: of the bootstrap
        contamination: look for the exams' questions in the stores that the model was trained on
        trained_on: stores or .jsonl files of text that it was trained on; () takes those of its run's record
        overlap: when a question counts as seen
        name: of the result file; "" takes step-<STEP>
        to: folder of the result; "" takes RUN_DIR/evaluation
        overwrite: replace a result of another evaluation
    """
    models = [engines.open_model(path) for path in (checkpoint, parent) if path]
    length = sequence_length or min(LENGTH, *(model.config.max_position for model in models))
    compute = compute or COMPUTE
    material = runner.gather(stores, exams, split, limit, protocols, suites_dir)
    scored: dict[str, Any] = {"sequence_length": length, "dtype": compute.dtype}
    trained = contaminated.trained_on(models[0], trained_on, contamination)
    overlap = overlap or Overlap()
    identity = runner.identity(material, models, {**scored, "resamples": resamples, "seed": seed})
    identity["contamination"] = contaminated.identity(trained, overlap)
    path = runner.result_path(models[0], name, to)
    console = Console()
    result = runner.existing(path, identity, overwrite)
    if result is None:
        with runner.writable(path):
            how: dict[str, Any] = {"batch_rows": batch_rows, "length": length, "console": console}
            judge = partial(runner.judge, mesh=make_mesh(mesh or MeshConfig()), compute=compute, **how)
            judged = kept.all_judged(path, models, material, scored, judge, console)
            exams_asked = [*material.suites, *(sitting.exam for sitting in material.sittings)]
            seen = contaminated.look(trained, exams_asked, overlap, path.rpartition("/")[0], say=console.print)
            result = summary.result(judged, material, identity, seen[: len(material.suites)])
            result |= examined.sit_all(models, material, mesh, compute.dtype, batch_rows, path, identity, console)
            unseen.put(result, material.sittings, seen[len(material.suites) :])
            runner.save(path, result)
            kept.clear(path)
    table.show(result, console)
    generated.show(result.get("generated", {}), console)
    console.print(f"result: {path}", soft_wrap=True, highlight=False)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`t-elaine evaluate`."""
    return cli.run("evaluate", argv, flags=FLAGS + WHERE)


if __name__ == "__main__":
    sys.exit(main())
