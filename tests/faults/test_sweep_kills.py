"""A sweep that is killed by SIGKILL: its runs do not outlive it, and the next start ends as if nothing had happened."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t_elaine import paths
from t_elaine.checkpoints import layout
from tests.studies.tiny_sweep import GRID, TINY, start, sweep, write
from tests.tiny_runs import lines, parameters

STEPS = 600
LONG = (
    TINY.replace("steps = 3\n", f"steps = {STEPS}\n")
    .replace("evaluate_every = 3", "evaluate_every = 200")
    .replace("Checkpointing.every = 3", "Checkpointing.every = 20")
    .replace("compilation_cache = None", "compilation_cache = 'compiled'")
)
PEAKS = GRID.replace("Mixture.batch_tokens", "Schedule.peak").replace("[100, 128]", "[1e-3, 1e-2]")


def table(folder: Path) -> list[dict[str, Any]]:
    """What sweep.json says of each run; the exit code is that of the last process, if one was needed."""
    return [{**row, "code": None} for row in json.loads((folder / "sweep.json").read_text())["runs"]]


def runs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/status.json"))


def ended(folder: Path, seconds: float = 60) -> bool:
    """Whether no process holds a run of the sweep any more, within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(paths.is_held(path) for path in folder.iterdir() if path.is_dir()):
            return True
        time.sleep(0.05)
    return False


def moving(folder: Path) -> int:
    """A number that changes whenever a run writes a line of metrics."""
    return sum(path.stat().st_size for path in folder.glob("*/metrics.jsonl"))


def wait_for_a_line(process: Any, folder: Path) -> None:
    before, limit = moving(folder), time.monotonic() + 100
    while moving(folder) == before and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.slow
def test_the_runs_of_a_killed_sweep_end_and_the_next_start_waits_for_them(tmp_path: Path) -> None:
    """They save; nothing trains on without anybody who knows of it, and nothing is refused as in use."""
    write(tmp_path, LONG.replace(f"steps = {STEPS}", "steps = 20000"), PEAKS)
    process = start(tmp_path, "--gin.RUN_DIR='sizes'")
    wait_for_a_line(process, tmp_path / "sizes")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    again = start(tmp_path, "--gin.RUN_DIR='sizes'")
    (run,) = runs(tmp_path / "sizes")
    limit = time.monotonic() + 100
    while (status := json.loads((run / "status.json").read_text()))["state"] != "preempted":
        assert time.monotonic() < limit and again.poll() is None, again.communicate()
        time.sleep(0.02)
    assert layout.complete_steps(run)[-1] == status["step"] > 0
    wait_for_a_line(again, tmp_path / "sizes")
    other = sweep(tmp_path, "--gin.RUN_DIR='sizes'")
    assert other.returncode == 2 and "the run folder is in use by process" in other.stderr
    again.send_signal(signal.SIGTERM)
    told, errors = again.communicate(timeout=100)
    assert again.returncode == 143 and "Traceback" not in errors, errors
    assert "stopped by SIGTERM; finished runs are kept, the others were told to save" in errors
    assert "failed" not in told and ended(tmp_path / "sizes", 0.2)


@pytest.mark.full
def test_a_sweep_killed_at_twenty_seeded_moments(tmp_path: Path) -> None:
    """From its first second on, and while its runs train; two at a time."""
    write(tmp_path, LONG, PEAKS)
    done = sweep(tmp_path, "--gin.RUN_DIR='whole'")
    assert done.returncode == 0, done.stderr
    chance, killed, trained, hit = random.Random(5), 0, 0, tmp_path / "hit"
    for moment in range(20):
        before = moving(hit)
        process = start(tmp_path, "--gin.RUN_DIR='hit'", "--parallel=2")
        if moment % 2:
            wait_for_a_line(process, hit)
            time.sleep(chance.uniform(0, 0.5))
        else:
            time.sleep(chance.uniform(0, 6))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        killed += process.returncode == -signal.SIGKILL
        trained += process.returncode == -signal.SIGKILL and moving(hit) != before
    assert killed >= 15 and trained >= 5, (killed, trained)
    done = sweep(tmp_path, "--gin.RUN_DIR='hit'", "--parallel=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(hit, tmp_path / "whole")


def assert_same(hit: Path, whole: Path) -> None:
    """The table, and of each run every metric line, parameter, moment and counter; nothing half-written is left."""
    assert table(hit) == table(whole)
    for row in table(whole):
        found, wanted = hit / row["name"], whole / row["name"]
        assert lines(found) == lines(wanted)
        theirs = parameters(wanted, STEPS)
        ours = parameters(found, STEPS)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    left = [path for path in hit.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
    assert not left and not [path for path in hit.rglob("*orbax-checkpoint-tmp*")]
