"""What a run left behind, read into one object: settings, versions, data, metrics, status, evaluations, proofs.

Reads files only and computes nothing but sums and means. Files that a run may lack are None or empty here; a file that
is there but damaged is an error.
"""

import datetime
import itertools
import json
import math
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from t_elaine import parentage, paths
from t_elaine.changes import Change, changes
from t_elaine.errors import UserError
from t_elaine.reporting.parent import Parent, read_parent

Line = dict[str, Any]
BEATS = 9  # missed heartbeats of a lease after which nobody is thought to hold it
SILENT = 14400.0  # seconds; by its defaults a run's own watchdog has ended one that wrote nothing for longer


@dataclass(frozen=True, kw_only=True)
class Record:
    """A run, as its files tell it.

    Attributes:
        name: the run folder's name.
        config, command: texts, "" where absent.
        versions, data, mixture: contents of the JSON files of those names, {} where absent.
        status: likewise; a run that was killed is "stopped" here (see `true_status`).
        steps: lines of training steps, ascending.
        validation: lines of held-out evaluations during training, ascending.
        resumes: steps after which the run was resumed.
        changes: settings that a resume changed, by step.
        parent: the model that it started from.
        evaluations: file name → result of `evaluate`, the one of the last step last.
        stores: store name → its manifest, for those stores that still lie where the run read them.
        proofs: folder → proof of an export.
    """

    name: str
    config: str
    command: str
    versions: dict[str, Any]
    status: dict[str, Any]
    data: dict[str, Any]
    mixture: dict[str, Any]
    steps: list[Line]
    validation: list[Line]
    resumes: list[int]
    changes: list[Change]
    parent: Parent | None
    evaluations: dict[str, dict[str, Any]]
    stores: dict[str, dict[str, Any]]
    proofs: dict[str, dict[str, Any]]


def read_record(run_dir: str, exports: Sequence[str] = ()) -> Record:
    """Read a run folder.

    Args:
        run_dir: the run folder.
        exports: exported folders whose proof.json belongs on the page; those inside the run folder are found anyway.

    Raises:
        UserError: no such folder, nothing of a run in it, a damaged file, an export without a proof.
    """
    run_dir = run_dir.rstrip("/") or "/"
    names = paths.listing(run_dir)
    if not paths.exists(run_dir):
        raise UserError("there is no such run folder", run_dir, "give the RUN_DIR of a run")
    known = {"config.gin", "status.json", "metrics.jsonl", "checkpoints", "evaluation"}
    if not known & set(names) and not any(name.startswith("metrics") for name in names):
        raise UserError("this folder holds nothing of a run", run_dir, "give the RUN_DIR that train wrote")
    lines = metric_lines(run_dir, names)
    data = _json(run_dir, "data.json")
    steps = _last_of_each(line for line in lines if line["kind"] == "train")
    return Record(
        name=run_dir.rpartition("/")[2] or run_dir,
        config=_text(run_dir, "config.gin"),
        command=_text(run_dir, "command.txt").strip(),
        versions=_json(run_dir, "versions.json"),
        status=true_status(run_dir, _json(run_dir, "status.json"), steps[-1]["step"] if steps else 0),
        data=data,
        mixture=_json(run_dir, "mixture.json"),
        steps=steps,
        validation=_last_of_each(line for line in lines if line["kind"] == "validation"),
        resumes=sorted({int(line["step"]) for line in lines if line["kind"] == "resume"}),
        changes=changes(run_dir),
        parent=read_parent(run_dir, _json(parentage.folder(run_dir), parentage.ORIGIN)),
        evaluations=evaluations(run_dir),
        stores=_manifests(data),
        proofs=_proofs(run_dir, exports),
    )


def true_status(run_dir: str, status: dict[str, Any], last: int) -> dict[str, Any]:
    """The status as it stands; a run that was killed has left "running", but the lock of its folder is free.

    Args:
        run_dir: the run folder. Object stores have no locks: there the lease's last heartbeat tells. The lock of a run
            on another machine may not be seen either: there it is when the run last wrote.
        status: contents of status.json.
        last: step of the last line of its metrics.
    """
    if status.get("state") != "running":
        return status
    if paths.is_remote(run_dir):
        return status | _unheard(_json(run_dir, "lease.json"))
    if paths.is_held(run_dir):
        return status
    seen = _last_sign(run_dir)
    when = seen.isoformat(timespec="seconds")
    silent = (datetime.datetime.now(datetime.UTC) - seen).total_seconds()
    if status.get("host", socket.gethostname()) != socket.gethostname() and silent < SILENT:  # its lock may not be seen
        return status | {"reason": f"on {status['host']}, which gave its last sign of life at {when}"}
    told = f"without a word at step {max(last, status.get('step', 0))}; no sign of life since {when}"
    return status | {"state": "stopped", "reason": told}


def _last_sign(run_dir: str) -> datetime.datetime:
    """When a run last wrote to its local folder: a line of metrics is a heartbeat too."""
    there = [path for name in ("status.json", "metrics.jsonl") if paths.exists(path := paths.join(run_dir, name))]
    return datetime.datetime.fromtimestamp(max(map(os.path.getmtime, there)), datetime.UTC)


def _unheard(lease: dict[str, Any]) -> dict[str, str]:
    """What a lease without a fresh heartbeat says of a run that calls itself running; empty where it is fresh."""
    beat = lease.get("beat")
    if beat is None:
        return {"state": "stopped", "reason": "without a word: nobody holds its folder"}
    age = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(beat)).total_seconds()
    if age < BEATS * float(lease.get("every", 0)):
        return {}
    return {"state": "stopped", "reason": f"without a word: no heartbeat of {lease.get('host')} since {beat}"}


def metric_lines(run_dir: str, names: Iterable[str]) -> list[Line]:
    """All lines of metrics*.jsonl in order of file name; a last line that a kill cut off is left out.

    Raises:
        UserError: another line is not JSON.
    """
    lines: list[Line] = []
    for name in sorted(name for name in names if name.startswith("metrics") and name.endswith(".jsonl")):
        path = paths.join(run_dir, name)
        text = paths.read_text(path).split("\n")
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                if number == len(text):
                    continue
                mend = "take that line out; resuming the run writes it again if it lies behind a checkpoint"
                raise UserError("a line of the metrics is damaged", f"{path}:{number}", mend) from error
    return lines


def _last_of_each(lines: Iterable[Line]) -> list[Line]:
    """Of lines with the same step the last one, by step."""
    return [line for _, line in sorted({int(line["step"]): line for line in lines}.items())]


def _text(run_dir: str, name: str) -> str:
    path = paths.join(run_dir, name)
    return paths.read_text(path) if paths.exists(path) else ""


def _json(run_dir: str, name: str) -> dict[str, Any]:
    text = _text(run_dir, name)
    return parsed(text, paths.join(run_dir, name)) if text else {}


def parsed(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises UserError where it is none."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"the file is damaged: {error}", where, "restore it, or remove it and report again") from error
    if not isinstance(found, dict):
        raise UserError("the file holds no JSON object", where, "restore it, or remove it and report again")
    return found


def evaluations(run_dir: str) -> dict[str, dict[str, Any]]:
    """A run's results of `evaluate` by name, by step; at one step the result that was given no name comes last."""
    folder = paths.join(run_dir, "evaluation")
    names = [name for name in paths.listing(folder) if name.endswith(".json") and not name.startswith(".")]
    found = {name.removesuffix(".json"): _json(folder, name) for name in names}
    results = {name: result for name, result in found.items() if "models" in result}

    def order(name: str) -> tuple[int, bool, str]:
        step = results[name]["models"]["child"]["step"]
        return step, name == f"step-{step}", name

    return {name: results[name] for name in sorted(results, key=order)}


def _manifests(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, entry in data.items():
        where = str(entry.get("folder", "")) if isinstance(entry, dict) else ""
        if where and paths.exists(paths.join(where, "manifest.json")):
            found[name] = _json(where, "manifest.json")
    return found


def _proofs(run_dir: str, exports: Sequence[str]) -> dict[str, dict[str, Any]]:
    for folder in exports:
        if not paths.exists(paths.join(folder, "proof.json")):
            raise UserError("this export has no proof.json", folder, "give a folder that `t-elaine export` wrote")
    own = [run_dir, *(paths.join(run_dir, name) for name in paths.listing(run_dir))]
    folders = [*exports, *(f for f in own if not f.endswith(".json") and paths.exists(paths.join(f, "proof.json")))]
    return {folder.rstrip("/").rpartition("/")[2]: _json(folder, "proof.json") for folder in dict.fromkeys(folders)}


Series = tuple[list[float], list[float]]


def series(lines: Sequence[Line], *keys: str) -> Series:
    """(steps, values) of a number in the lines, by nested keys; lines without it are left out."""
    found: tuple[list[float], list[float]] = ([], [])
    for line in lines:
        value: Any = line
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, (int, float)) and math.isfinite(value):
            found[0].append(float(line["step"]))
            found[1].append(float(value))
    return found


def names_in(lines: Sequence[Line], part: str) -> list[str]:
    """Names that appear under `part` ("language" or "category"), in order of first appearance."""
    return list(dict.fromkeys(name for line in lines for name in line.get(part, {})))


def thinned(pair: Series, points: int) -> Series:
    """At most `points` points: means over runs of neighbours, so that noise shrinks and no peak is picked."""
    steps, values = pair
    if len(steps) <= points:
        return pair
    edges = [i * len(steps) // points for i in range(points + 1)]
    means = [(sum(steps[a:b]) / (b - a), sum(values[a:b]) / (b - a)) for a, b in itertools.pairwise(edges)]
    return [step for step, _ in means], [value for _, value in means]


def smoothed(pair: Series, window: int) -> Series:
    """A running mean over the last `window` values; the first values have shorter windows."""
    steps, values = pair
    total, means = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return steps, means
