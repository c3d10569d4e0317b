"""The command `report`: a run folder as one HTML page."""

import sys
from collections.abc import Sequence

from t_elaine import cli, paths
from t_elaine.reporting import page
from t_elaine.reporting.record import read_record

FLAGS = ("exports", "to")


def report(*, run_dir: str, exports: tuple[str, ...] = (), to: str = "") -> int:
    """Write RUN_DIR/report.html: what was seen, curves, scores beside the parent's, proof, settings, licences.

    Args:
        run_dir: the run folder
        exports: folders that export wrote from this run; their proofs belong on the page
        to: file to write; "" takes RUN_DIR/report.html
    """
    path = to or paths.join(run_dir, "report.html")
    paths.write_text(path, page.render(read_record(run_dir, exports)))
    print(path)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`t-elaine report RUN_DIR`."""
    return cli.run("report", argv, flags=FLAGS, positional="run_dir")


if __name__ == "__main__":
    sys.exit(main())
