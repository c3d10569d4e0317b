"""`plan --search`: joins the search (planning) to the command line that it varies and to the command that comes out."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from t_elaine import cli, interrupts
from t_elaine.config import settings
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import AXES, MeshConfig
from t_elaine.planned import asked
from t_elaine.planning import search as searching
from t_elaine.planning.assumptions import Assumptions
from t_elaine.planning.compile import versions
from t_elaine.planning.question import Question
from t_elaine.planning.search import Search
from t_elaine.planning.words import DOES_NOT_FIT

# What a search sets itself, and what belongs to plan alone.
OF_PLAN = ("plan.", "Assumptions.", "Search.")
OWN_FLAGS = ("plan.search", "plan.json", "plan.hlo_out")


def searched(
    training: Mapping[str, Any],
    name: str,
    slices: int,
    assumed: Assumptions,
    search: Search,
    flags: Sequence[str],
    argv: Sequence[str],
    config_text: str,
    as_json: bool,
) -> int:
    """Try, tell, and return 0 if anything fits, else 3.

    Args:
        training: the arguments of `train`.
        name: the topology's.
        slices: of it.
        assumed: what estimates rest on.
        search: what to try.
        flags: of the command `plan`.
        argv: its arguments.
        config_text: settings in force.
        as_json: print JSON.
    """
    question = with_settings(training, name, slices, assumed)
    mesh, compute = training.get("mesh") or MeshConfig(), training.get("compute") or ComputeConfig()
    axes = {axis: getattr(mesh, axis) for axis in AXES}
    own = (training.get("rows_per_device", 1), compute.attention, axes)
    trials = searching.ordered(searching.combinations(search, *own), question)
    trial, final = commands(flags, argv)
    base = f"{config_text}\n{name} {slices} {assumed}"
    options = training.get("compiler_options") or {}
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    ours = {interrupts.ENDS_WITH: str(os.getpid())}
    records = searching.run(trials, search, base, versions(options), trial, say, environment=ours)
    best = next((record for record in records if "tokens_per_second_per_chip" in record), None)
    command = final(best["settings"]) if best else ""
    if as_json:
        print(json.dumps({"estimated": "estimated, not measured", "trials": records, "best": command}, indent=1))
    else:
        print(searching.told(records, command))
    return 0 if best or any(record["reason"] == searching.NO_TIME for record in records) else DOES_NOT_FIT


def with_settings(
    training: Mapping[str, Any], name: str, slices: int, assumed: Assumptions
) -> Callable[[dict[str, Any]], Question]:
    """Function from a trial's settings to the question that they put."""

    def question(values: dict[str, Any]) -> Question:
        parts: dict[str, dict[str, Any]] = {"train": {}, "MeshConfig": {}, "ComputeConfig": {}}
        for key, value in values.items():
            group, _, field = key.partition(".")
            parts[group][field] = value
        mesh = replace(training.get("mesh") or MeshConfig(), **parts["MeshConfig"])
        compute = replace(training.get("compute") or ComputeConfig(), **parts["ComputeConfig"])
        changed = {**training, **parts["train"], "mesh": mesh, "compute": compute}
        return asked(changed, name, slices, 18, None, assumed)

    return question


def commands(
    flags: Sequence[str], argv: Sequence[str]
) -> tuple[Callable[[Mapping[str, Any]], list[str]], Callable[[Mapping[str, Any]], str]]:
    """(settings → a trial's command, settings → the command line that trains so)."""
    root = settings.resolve(settings.ROOTS["plan"])
    files, bindings, modules = cli.split_arguments("plan", argv, flags, "", root)
    shared = [f"--gin_file={file}" for file in files] + [f"--module={module}" for module in modules]

    def given(values: Mapping[str, Any], left_out: Sequence[str]) -> list[str]:
        own = [binding for binding in bindings if not binding.startswith(tuple(left_out))]
        kept = [binding for binding in own if binding.partition(" = ")[0] not in values]
        return [*kept, *(f"{name} = {value!r}" for name, value in values.items())]

    def trial(values: Mapping[str, Any]) -> list[str]:
        bound = [f"--gin.{text.replace(' = ', '=', 1)}" for text in given(values, OWN_FLAGS)]
        return [sys.executable, "-m", "t_elaine.plan", *shared, *bound, "--json"]

    def final(values: Mapping[str, Any]) -> str:
        bound = [f"--gin.{text.replace(' = ', '=', 1)}" for text in given(values, OF_PLAN)]
        quoted = [f'"{text}"' if set(text) & set("' (),") else text for text in bound]
        return " \\\n  ".join(["python -m t_elaine.train", *shared, *quoted])

    return trial, final
