"""The command `prepare`: tasks of text → token stores. Its work stands in data/workers.py."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from t_elaine.data import tasks as registry
from t_elaine.data.identity import Making
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.data.workers import duplicates_between, prepare_stores, report, write_mixture
from t_elaine.errors import UserError
from t_elaine.paths import is_remote, shipped

FLAGS = ("tasks", "vocabulary", "stores", "data_root", "shards", "workers", "drop_duplicates", "overwrite")


def prepare(
    *,
    tasks: tuple[str, ...],
    vocabulary: str,
    stores: str,
    modules: tuple[str, ...] = ("data_tasks.samples",),
    before: tuple[str, ...] = ("bos",),
    after: tuple[str, ...] = ("eos",),
    validation_share: float = 0.01,
    shards: int = 0,
    workers: int = 0,
    max_rejected_share: float = 0.01,
    allowed_licences: tuple[str, ...] = (),
    drop_duplicates: bool = False,
    data_root: str = "",
    overwrite: bool = False,
) -> int:
    """Prepare token stores.

    Args:
        tasks: names of tasks and mixtures; of a mixture every task is prepared.
        vocabulary: a model's folder, or its tokenizer.json or tokenizer.model; `{samples}` is the shipped sample one.
        stores: folder in which each task's store is made.
        modules: Python modules that define the tasks.
        before: ids put before every document: "bos", "eos", "pad" or a special token's text.
        after: ids put after every document.
        validation_share: share of the texts, by hash, kept for validation.
        shards: how many shards a store has; 0: by size.
        workers: processes; 0: one for each core.
        max_rejected_share: share of malformed records past which the run stops.
        allowed_licences: refuse sources with another licence; empty: any.
        drop_duplicates: of equal texts within a task keep the first.
        data_root: folder that `{data_root}` in the sources' files stands for.
        overwrite: make stores anew even where one is there.
    """
    if is_remote(stores):
        raise UserError("prepare writes to a local folder", f"stores={stores}", "prepare locally, then copy the store")
    load_modules(modules)
    making = Making(
        before=before,
        after=after,
        validation_share=validation_share,
        shards=shards,
        drop_duplicates=drop_duplicates,
        max_rejected_share=max_rejected_share,
        allowed_licences=allowed_licences,
        data_root=data_root,
    )
    found = [registry.find(name) for name in tasks]
    wanted = {task.name: task for some, _ in found for task in some}
    if not wanted:
        raise UserError("prepare was given no task", "prepare.tasks", 'name tasks or mixtures: ("samples",)')
    console, folder = Console(), Path(stores)
    loaded = load_vocabulary(vocabulary.replace("{samples}", str(shipped("data_tasks") / "samples" / "vocabulary")))
    manifests = prepare_stores(
        list(wanted.values()), loaded, folder, making, workers=workers, overwrite=overwrite, console=console
    )
    for name, (_, weights) in zip(tasks, found, strict=True):
        if weights is not None:
            console.print(f"weights of {name}: {write_mixture(name, weights, folder)}", highlight=False, soft_wrap=True)
    report(manifests, console)
    repeated = duplicates_between([folder / name for name in wanted]) if len(wanted) > 1 else 0
    if repeated:
        console.print(f"{repeated} documents repeat the text of a document in another store", highlight=False)
    return 0


def load_modules(modules: Sequence[str]) -> None:
    """Import modules of tasks; the shipped `data_tasks` is found in a checkout and in an installed wheel."""
    if importlib.util.find_spec("data_tasks") is None:
        sys.path.append(str(shipped("data_tasks").parent))
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            mend = "give a dotted name that Python can import from here"
            raise UserError(f"there is no module {name!r}", "prepare.modules", mend) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Flags and gin files → settings → `prepare` → exit code."""
    from t_elaine import cli

    return cli.run("prepare", argv, FLAGS)


if __name__ == "__main__":
    sys.exit(main())
