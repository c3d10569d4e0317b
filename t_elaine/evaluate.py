"""The command `evaluate`: a checkpoint on held-out text and exams, beside its parent if one is given."""

import sys
from collections.abc import Sequence

from rich.console import Console

from t_elaine import cli, elsewhere, judging
from t_elaine.data.overlap import Overlap
from t_elaine.evaluation import contamination as contaminated
from t_elaine.evaluation import forgotten, runner
from t_elaine.forgetting import Forgetting
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import MeshConfig
from t_elaine.peers.patience import Endpoint

FLAGS = ("checkpoint", "parent", "stores", "exams", "suites_dir", "protocols", "limit", "batch_rows")
ENGINE = ("engine", "engine_python", "vocabulary")
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
    engine: str = elsewhere.OURS,
    engine_python: str = "",
    vocabulary: str = "",
    endpoint: Endpoint | None = None,
    sequence_length: int = 0,
    mesh: MeshConfig | None = None,
    compute: ComputeConfig | None = None,
    resamples: int = 2000,
    seed: int = 0,
    contamination: bool = True,
    trained_on: tuple[str, ...] = (),
    overlap: Overlap | None = None,
    forgetting: Forgetting | None = None,
    name: str = "",
    to: str = "",
    overwrite: bool = False,
) -> int:
    """Judge a model on held-out text and exams, with intervals, beside its parent.

    Scores are kept as they are made: if the command is killed, the same one goes on from there.

    Args:
        checkpoint: the model: RUN_DIR, RUN_DIR/checkpoints/STEP, or a folder in Hugging Face format
        parent: a second model to compare with, item by item
        stores: token stores whose held-out documents give bits-per-byte
        exams: samples/en, samples/ja, samples/zh, published ones such as en/MedQA, mmedbench/LANGUAGE, or .jsonl files
            in ELAINE's layout (ja:FILE where no folder says ja)
        suites_dir: folder of the published exams, as their repository has it
        protocols: how exams are asked: likelihood, official, repaired, jmedllm, mmedbench; answers in text are kept one
            by one
        split: "validation" or "train"
        limit: documents of each store and questions of each exam; 0 takes all
        batch_rows: rows at a time on all devices together; changes speed only
        engine: what computes: t-elaine, transformers, vllm, or the address of an OpenAI-compatible server as
            http://127.0.0.1:8000/v1, where checkpoint is the model's name
        engine_python: the Python that has transformers or vllm; "" takes this one
        vocabulary: of the models that a server has, for likelihood and held-out text: a folder or file; "" where the
            engine is no address
        endpoint: how a server is asked
        sequence_length: tokens a row, where long documents are cut; 0 takes 2048 or the model's context if shorter
        mesh: how devices are arranged
        compute: how the model is computed; float32 by default
        resamples: bootstrap draws of an interval
        seed: of the bootstrap
        contamination: look for the exams' questions in the stores that the model was trained on
        trained_on: stores or .jsonl files of text that it was trained on; () takes those of its run's record
        overlap: when a question counts as seen
        forgetting: how much may be lost against the parent; past it the exit code is 3
        name: of the result file; "" takes step-<STEP>
        to: folder of the result; "" takes RUN_DIR/evaluation
        overwrite: replace a result of another evaluation
    """
    used = elsewhere.choose(engine, engine_python, endpoint, vocabulary)
    material = runner.gather(stores, exams, split, limit, protocols, suites_dir)
    elsewhere.refuse(used, material)
    models = [elsewhere.open_model(used, path) for path in (checkpoint, parent) if path]
    compute = compute or COMPUTE
    scored = elsewhere.scored_with(used, material, models, sequence_length, LENGTH, compute.dtype)
    forgotten.check(forgetting, material, len(models))
    trained = contaminated.trained_on(models[0], trained_on, contamination)
    overlap = overlap or Overlap()
    identity = runner.identity(material, models, {**scored, "resamples": resamples, "seed": seed})
    identity["contamination"] = contaminated.identity(trained, overlap)
    path = runner.result_path(models[0], name, to)
    console = Console()
    result = runner.existing(path, identity, overwrite)
    if result is None:
        length = int(scored["sequence_length"])
        how = judging.How(path=path, mesh=mesh, compute=compute, rows=batch_rows, length=length, used=used)
        result = judging.judge(models, material, scored, identity, trained, overlap, how, console)
    judging.show(result, path, console)
    return forgotten.judge(result, forgetting, path, console)


def main(argv: Sequence[str] | None = None) -> int:
    """`t-elaine evaluate`."""
    return cli.run("evaluate", argv, flags=FLAGS + ENGINE + WHERE)


if __name__ == "__main__":
    sys.exit(main())
