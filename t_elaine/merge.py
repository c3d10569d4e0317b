"""The command `merge`: several models of one family into one, as a run folder like an imported one."""

import sys
from pathlib import Path

from t_elaine import cli, columns, merged, paths
from t_elaine.errors import UserError
from t_elaine.hf import merging
from t_elaine.hf.merge_methods import Merging, settled
from t_elaine.hf.run_import import refuse_existing
from t_elaine.training.run_folder import source_version

FLAGS = ("to", "base", "models", "method", "weights", "t", "density", "carrier", "overwrite")


def merge(
    *,
    to: str,
    models: tuple[str, ...],
    base: str = "",
    method: str = "linear",
    weights: tuple[float | tuple[float, ...], ...] = (),
    t: float | tuple[float, ...] = 0.5,
    density: tuple[float, ...] = (1.0,),
    normalize: bool | None = None,
    scale: float = 1.0,
    rescale: str | None = None,
    seed: int = 0,
    carrier: str = "",
    overwrite: bool = False,
    untrained: bool = False,
) -> None:
    """Merge models, a tensor at a time, into a run folder that evaluate, generate, train and export take.

    A model is RUN_DIR, RUN_DIR/checkpoints/STEP, a Hugging Face folder, or owner/name on the hub.

    Args:
        to: the run folder to make
        models: the models to merge, in the order of their weights
        base: the model that differences are taken from, their parent; of slerp the end at t = 0
        method: linear, slerp, task_arithmetic (a chat vector), ties, dare_ties or dare_linear
        weights: one for each model, each a number or numbers spread over the layers; () takes 1 for all
        t: of slerp, 0 is the base or first model; a number or numbers spread over the layers
        density: share of each difference that ties and dare keep; one for all models, or one each
        normalize: divide by the sum of the weights; None: linear and ties do
        scale: times the merged difference from the base
        rescale: what makes up for dropped values: l1, density or none; None: dare l1, ties none
        seed: of what dare drops
        carrier: the model whose tokenizer, chat template and generation config are kept; "" takes the base, or the
            first model
        overwrite: replace `to` if it is there
        untrained: accept a result whose loss guessing would beat
    """
    if paths.is_remote(to):
        raise UserError("a merge is made in a local folder", f"--to={to}", "merge here, then copy the folder")
    refuse_existing(to, overwrite)
    merging.check_roles(method, base, models)
    how = Merging(
        method=method,
        weights=weights,
        t=t,
        density=density,
        normalize=normalize,
        scale=scale,
        rescale=rescale,
        seed=seed,
    )
    what = merged.open_models(models, base, carrier, settled(how, len(models)))
    commit = source_version(Path(__file__).resolve().parents[1])["commit"]
    merging.merge_models(what, to, merged.one_vocabulary(what), commit, overwrite, untrained)
    if names := merged.learnt_templates(what):
        told = f"the models have learnt conversations by {', '.join(names)}; the merge has its carrier's template:"
        print(columns.wrapped(f"{told} ask it with --template={names[0]}"))


def main(argv: list[str] | None = None) -> int:
    """The command; see `--help`."""
    return cli.run("merge", argv, flags=FLAGS)


if __name__ == "__main__":
    sys.exit(main())
