"""Runs of a sweep: named folders, one process each, at most so many at a time, those that are finished left alone.

A run is whatever command is handed over; this file knows its arguments and its status.json, not what it does.
"""

import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from t_elaine import paths
from t_elaine.errors import UserError
from t_elaine.studies.grid import Grid, short

LAST_LINES = 12
SECONDS_TO_SAVE = 120.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a sweep.

    Args:
        name: folder name, the values readable, with a hash of all settings.
        folder: its run folder.
        values: setting → value, from the grid.
        log: local file that takes what the process prints.
    """

    name: str
    folder: str
    values: dict[str, Any]
    log: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run stands.

    Args:
        run: which.
        state: "finished", "failed", "stopped" (it saved and can go on) or "waiting".
        code: exit code of its process; None if none was started.
        last_lines: the end of what it printed, where it failed.
    """

    run: Run
    state: str
    code: int | None = None
    last_lines: str = ""


def plan(grid: Grid, folder: str, base: str) -> list[Run]:
    """The runs of a grid. A name holds a hash of the values and of `base`, so that no run is taken for another's.

    Args:
        grid: setting → value by run.
        folder: the sweep's folder.
        base: text of the settings that all runs share.
    """
    repeated = [values for i, values in enumerate(grid) if values in grid[:i]]
    if repeated:
        raise UserError(f"the sweep makes the same run twice: {repeated[0]}", "sweep.grid", "leave one out")
    logs = tempfile.mkdtemp(prefix="sweep-") if paths.is_remote(folder) else paths.join(folder, "logs")
    labels = _labels([name for values in grid for name in values])
    runs = []
    for values in grid:
        told = json.dumps([values, base], sort_keys=True, ensure_ascii=False)
        code = hashlib.sha256(told.encode()).hexdigest()[:8]
        readable = ",".join(f"{labels[name]}={short(value)}" for name, value in values.items())[:80]
        name = f"{readable}-{code}"
        runs.append(Run(name=name, folder=paths.join(folder, name), values=values, log=paths.join(logs, f"{name}.log")))
    return runs


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Setting → its shortest name that no other setting of the sweep has too."""
    found = {name: name.replace("/", ".") for name in names}
    ends = {name: whole.rsplit(".", 1)[-1] for name, whole in found.items()}
    return {name: end if list(ends.values()).count(end) == 1 else found[name] for name, end in ends.items()}


def is_finished(run: Run) -> bool:
    """True if the run's own status says so."""
    path = paths.join(run.folder, "status.json")
    return paths.exists(path) and json.loads(paths.read_text(path)).get("state") == "finished"


def run_all(
    runs: Sequence[Run],
    command: Callable[[Run], Sequence[str]],
    parallel: int,
    say: Callable[[str], None] = print,
    environment: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Run what is not finished yet. A failed run does not stop the others.

    Args:
        runs: from `plan`.
        command: the program and arguments of a run.
        parallel: processes at a time.
        say: takes a line whenever a run starts or ends.
        environment: variables that the runs get beside this process's own.

    Returns:
        an outcome for each run, in their order.
    """
    if parallel < 1:
        raise UserError(f"parallel is {parallel}", "sweep.parallel", "give at least 1")
    _wait_for_earlier(runs, say)
    outcomes = {run.name: Outcome(run=run, state="finished") for run in runs if is_finished(run)}
    waiting = [run for run in runs if run.name not in outcomes]
    if outcomes:
        say(f"{len(outcomes)} of {len(runs)} runs were finished before")
    going: dict[str, tuple[Run, subprocess.Popen[bytes], IO[bytes]]] = {}
    with _stopping_together(going):
        while waiting or going:
            while waiting and len(going) < parallel:
                run = waiting.pop(0)
                going[run.name] = _start(run, command(run), environment or {})
                say(f"[{len(outcomes) + len(going)}/{len(runs)}] {run.name}: started, log in {run.log}")
            for name in [name for name, (_, process, _) in going.items() if process.poll() is not None]:
                run, process, log = going.pop(name)
                log.close()
                outcomes[name] = _ended(run, process.returncode)
                say(f"[{len(outcomes)}/{len(runs)}] {name}: {outcomes[name].state}")
            time.sleep(0.1)
    return [outcomes[run.name] for run in runs]


def _wait_for_earlier(runs: Sequence[Run], say: Callable[[str], None]) -> None:
    """Wait for runs whose sweep was killed: they save and end by themselves, and their folders are in use till then."""
    deadline = time.monotonic() + SECONDS_TO_SAVE
    for run in runs:
        told = False
        while not paths.is_remote(run.folder) and paths.is_held(run.folder) and time.monotonic() < deadline:
            if not told:
                say(f"{run.name}: waiting for a process that is still in its folder")
            told = True
            time.sleep(0.1)


def _start(
    run: Run, command: Sequence[str], environment: Mapping[str, str]
) -> tuple[Run, subprocess.Popen[bytes], IO[bytes]]:
    Path(run.log).parent.mkdir(parents=True, exist_ok=True)
    log = open(run.log, "ab")  # noqa: SIM115  closed when the run has ended
    log.write(f"$ {' '.join(command)}\n".encode())
    log.flush()
    # A session of its own: Ctrl-C reaches this process alone, which then lets the runs save.
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **environment}
    )
    return run, process, log


def _ended(run: Run, code: int) -> Outcome:
    if code == 0:
        return Outcome(run=run, state="finished" if is_finished(run) else "stopped", code=code)
    lines = Path(run.log).read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
    if code < 0:  # its own log says nothing of that, and its status.json still says "running"
        lines.append(f"killed by signal {-code} ({signal.strsignal(-code)}), without a word")
    return Outcome(run=run, state="failed", code=code, last_lines="\n".join(lines))


@contextmanager
def _stopping_together(going: dict[str, tuple[Run, subprocess.Popen[bytes], IO[bytes]]]) -> Iterator[None]:
    """Whatever ends the sweep ends its runs: SIGTERM, on which they save, and SIGKILL for one that does not end."""
    try:
        yield
    finally:
        for _, process, _ in going.values():
            process.terminate()
        deadline = time.monotonic() + SECONDS_TO_SAVE
        for _, process, log in going.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()
