"""`python -m t_elaine.train`: train a model on prepared stores; started again on the same folder, it goes on."""

import sys
from collections.abc import Sequence

from t_elaine import cli
from t_elaine.assembly import train

__all__ = ["main", "train"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return cli.run("train", argv, flags=("run_dir", "take_over", "profile", "rehearse", "keep_rehearsal"))


if __name__ == "__main__":
    sys.exit(main())
