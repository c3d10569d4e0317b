"""The command `plan`: will it fit, how long will it take, what will it cost, on chips that are not there."""

import json as jsons
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from t_elaine import cli
from t_elaine.planned import answered
from t_elaine.planning import words
from t_elaine.planning.assumptions import Assumptions
from t_elaine.planning.search import Search
from t_elaine.searched import searched

FLAGS = ("topology", "slices", "search", "json", "hlo_out")


def plan(
    *,
    topology: str = "v5e:16x16",
    slices: int = 1,
    groups: int = 18,
    token_budget: int | None = None,
    assumptions: Assumptions | None = None,
    compile: bool = True,
    search: bool = False,
    choices: Search | None = None,
    json: bool = False,
    hlo_out: str = "",
    training: Mapping[str, Any],
    argv: Sequence[str] = (),
    config_text: str = "",
) -> int:
    """Say what would happen if `train` ran with these gin files on a topology: memory, time, money.

    The exit code is 0 where it fits and 3 where it does not.

    Args:
        topology: "v5e:16x16", "v5e-256", "cpu:8" (simulated), "h100:8" (arithmetic alone).
        slices: TPU slices, joined by the data centre's network (mesh axis `replica`).
        groups: groups (language x category) of the loss; the stores, which would tell, need not be there.
        token_budget: tokens of the run; None: Loop.steps x Mixture.batch_tokens.
        assumptions: what estimates rest on beside the compiler's word.
        compile: compile the step; otherwise arithmetic alone answers, in seconds.
        search: try rows, recomputation, blocks and meshes, and print what is fastest.
        choices: what the search tries.
        json: print the record as JSON.
        hlo_out: file for the optimised program.
        training: the arguments of `train` that the gin files give.
        argv: the command's arguments.
        config_text: settings in force.
    """
    assumed = assumptions or Assumptions()
    if search:
        return searched(training, topology, slices, assumed, choices or Search(), FLAGS, argv, config_text, json)
    record = answered(training, topology, slices, groups, token_budget, assumed, compile, hlo_out)
    print(jsons.dumps(record, indent=1) if json else words.text(record))
    return 0 if words.fits(record) else words.DOES_NOT_FIT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return cli.run("plan", argv, FLAGS)


if __name__ == "__main__":
    sys.exit(main())
