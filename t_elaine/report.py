"""The command `report`: a run folder as one HTML page; results of evaluate as a page and Markdown, and compared."""

import sys
from collections.abc import Sequence

from rich.console import Console

from t_elaine import cli, paths, reported
from t_elaine.errors import UserError
from t_elaine.reporting import page
from t_elaine.reporting.record import read_record

FLAGS = ("exports", "results", "compare", "suites_dir", "to")


def report(
    *,
    run_dir: str = "",
    exports: tuple[str, ...] = (),
    results: tuple[str, ...] = (),
    compare: tuple[str, ...] = (),
    suites_dir: str = "",
    to: str = "",
) -> int:
    """Write RUN_DIR/report.html (what was seen, curves, scores, proof), or a page of evaluations with its Markdown.

    Args:
        run_dir: the run folder
        exports: folders that export wrote from this run; their proofs belong on the page
        results: results of evaluate, or run folders: one page of all their models, beside the published tables
        compare: two of those, compared item by item; or one, whose model is compared with its parent
        suites_dir: folder of the published exams, where the page is to show questions
        to: file to write, .html; "" takes RUN_DIR/report.html, or a name beside the first result
    """
    if compare:
        # `--compare A B`: the second stands there as a bare argument.
        written = reported.compare((*compare, *filter(None, [run_dir])), suites_dir, to, Console())
    elif results or run_dir.endswith(".json"):
        written = reported.write_page((*results, *filter(None, [run_dir])), suites_dir, to)
    elif run_dir:
        written = [to or paths.join(run_dir, "report.html")]
        paths.write_text(written[0], page.render(read_record(run_dir, exports)))
    else:
        raise UserError("there is nothing to report on", "report", "give RUN_DIR, --results=FILE,… or --compare=A,B")
    print("\n".join(written))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`t-elaine report RUN_DIR`."""
    return cli.run("report", argv, flags=FLAGS, positional="run_dir")


if __name__ == "__main__":
    sys.exit(main())
