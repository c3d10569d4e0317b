"""The command `sweep`: a grid of settings → one training run for each, a table and a page of what came out."""

import os
import sys
from collections.abc import Sequence

from t_elaine import cli, interrupts
from t_elaine.config import gin_files, reach, settings
from t_elaine.errors import UserError
from t_elaine.reporting.sweep_page import write_sweep_page
from t_elaine.studies import results, runner
from t_elaine.studies.grid import Grid
from t_elaine.studies.results import Best
from t_elaine.studies.runner import Outcome, Run
from t_elaine.training import run_folder

FLAGS = ("sweep", "parallel", "metric", "best")
PROGRAM = (sys.executable, "-m", "t_elaine.train")


def sweep(
    *,
    grid: Grid,
    run_dir: str,
    sweep: str = "",
    parallel: int = 1,
    metric: str = "validation/bits_per_byte",
    best: Best = "lowest",
    run_dir_setting: str = "RUN_DIR",
    argv: Sequence[str] = (),
) -> int:
    """Train once for each point of a grid of settings; started again, it goes on where it was.

    Args:
        grid: the runs: @product(), @zip(), @chain() or @axis().
        run_dir: the sweep's folder; each run has its own inside it.
        sweep: gin file with the grid, read after the others.
        parallel: runs at a time. More than one needs a device for each: on a single TPU or GPU leave it at 1.
        metric: what the table is sorted by: a record's kind and the path of a number in it, as in "train/loss".
        best: which end of the metric comes first.
        run_dir_setting: the macro or setting that says where a run lies.
    """
    root = settings.resolve(settings.ROOTS["sweep"])
    files, bindings, modules = cli.split_arguments("sweep", argv, FLAGS, "", root, ("sweep",))
    own = [binding for binding in bindings if not binding.startswith("sweep.")]
    base = reach.text_in_force("train", gin_files.statements(files, own))
    kept = [line for line in base.splitlines() if not line.startswith(f"{run_dir_setting} = ")]
    runs = runner.plan(grid, run_dir, "\n".join(kept))

    def command(run: Run) -> list[str]:
        shared = [f"--gin_file={file}" for file in files] + [f"--module={name}" for name in modules]
        given = [*own, *(f"{name} = {value!r}" for name, value in run.values.items())]
        given.append(f"{run_dir_setting} = {run.folder!r}")
        return [*PROGRAM, *shared, *(f"--gin.{text.replace(' = ', '=', 1)}" for text in given)]

    with run_folder.in_use(run_dir):
        outcomes = runner.run_all(runs, command, parallel, environment={interrupts.ENDS_WITH: str(os.getpid())})
        return told(outcomes, run_dir, metric, best)


def told(outcomes: Sequence[Outcome], run_dir: str, metric: str, best: Best) -> int:
    """Write and print the table and the page; refuse what failed."""
    found = results.rows(outcomes, metric, best)
    results.write(run_dir, found, metric, best)
    print(results.table(found, metric), f"page: {write_sweep_page(run_dir)}", sep="\n\n")
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        told = "\n\n".join(f"{o.run.name} (exit code {o.code}), last lines:\n{o.last_lines}" for o in failed)
        mend = f"mend the cause, then give the same command again: finished runs stay\n\n{told}"
        raise UserError(f"{len(failed)} of {len(outcomes)} runs failed", run_dir, mend)
    if all(row["metric"] is None for row in found):
        mend = f"sweep.metric is one of: {', '.join(results.known_metrics(outcomes)) or '(the runs wrote no metrics)'}"
        raise UserError(f"no run has the metric {metric}", "sweep.metric", mend)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Flags and gin files → settings → `sweep` → exit code."""
    return cli.run("sweep", argv, FLAGS, file_flags=("sweep",))


if __name__ == "__main__":
    sys.exit(main())
