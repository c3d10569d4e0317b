"""Runs of a sweep, with a stand-in for the training command: kept apart, resumed, failed, stopped, tabled."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from t_elaine.errors import UserError
from t_elaine.reporting.sweep_page import write_sweep_page
from t_elaine.studies import results, runner
from t_elaine.studies.grid import Grid, axis, product
from t_elaine.studies.runner import Run
from t_elaine.training import run_folder

# Writes what `train` writes. Counts its starts; breaks, waits or stops as it is told.
STAND_IN = """
import json, os, signal, sys, time
folder, peak, manner = sys.argv[1], float(sys.argv[2]), sys.argv[3]
os.makedirs(folder, exist_ok=True)
def status(state): open(folder + "/status.json", "w").write(json.dumps({"state": state}))
def saved(*_):
    status("preempted")
    sys.exit(0)
signal.signal(signal.SIGTERM, saved)
open(folder + "/starts", "a").write("x")
status("running")
open(os.path.dirname(folder) + "/going", "a").write("+")
with open(folder + "/metrics.jsonl", "w") as file:
    for step in (1, 2, 3):
        record = {"kind": "train", "step": step, "loss": peak * 10 / step, "language": {"ja": {"loss": peak}}}
        file.write(json.dumps(record) + "\\n")
    file.write(json.dumps({"kind": "validation", "step": 3, "bits_per_byte": abs(peak - 0.2)}) + "\\n")
    file.write('{"kind": "train", "st')
if manner == "break":
    print("one line\\nthe last line")
    sys.exit(1)
if manner == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60 if manner == "wait" else 0.3)
open(os.path.dirname(folder) + "/going", "a").write("-")
status("finished")
"""
METRIC = "validation/bits_per_byte"


def stand_in(tmp_path: Path, manners: dict[float, str] | None = None):
    (tmp_path / "stand_in.py").write_text(STAND_IN)

    def command(run: Run) -> list[str]:
        peak = run.values["Schedule.peak"]
        return [sys.executable, str(tmp_path / "stand_in.py"), run.folder, str(peak), (manners or {}).get(peak, "go")]

    return command


def peaks(*values: float) -> Grid:
    return axis(name="Schedule.peak", values=values)


def starts(run: Run) -> int:
    path = Path(run.folder) / "starts"
    return len(path.read_text()) if path.exists() else 0


def test_folders_are_readable_and_differ_with_every_setting(tmp_path: Path) -> None:
    grid = product(parts=[peaks(1e-4, 3e-4), axis(name="slow/Schedule.peak", values=[1e-5])])
    runs = runner.plan(grid, str(tmp_path), "base")
    assert re.fullmatch(r"Schedule\.peak=1e-4,slow\.Schedule\.peak=1e-5-[0-9a-f]{8}", runs[0].name)
    assert runs == runner.plan(grid, str(tmp_path), "base")
    names = {run.name for base in ("base", "another") for run in runner.plan(grid, str(tmp_path), base)}
    assert len(names) == 4


def test_values_that_look_alike_have_folders_of_their_own(tmp_path: Path) -> None:
    grid = axis(name="Start.checkpoint", values=["a/model", "b/model", "1", 1])
    assert len({run.name for run in runner.plan(grid, str(tmp_path), "")}) == 4


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="same run twice"):
        runner.plan([{"a": 1}, {"a": 1}], str(tmp_path), "")


def test_finished_runs_are_not_run_again_and_half_ones_are(tmp_path: Path) -> None:
    runs = runner.plan(peaks(0.1, 0.2, 0.3), str(tmp_path), "")
    outcomes = runner.run_all(runs, stand_in(tmp_path, {0.2: "break"}), 3, lambda _: None)
    assert [o.state for o in outcomes] == ["finished", "failed", "finished"]
    outcomes = runner.run_all(runs, stand_in(tmp_path), 3, lambda _: None)
    assert [o.state for o in outcomes] == ["finished"] * 3
    assert [starts(run) for run in runs] == [1, 2, 1]


def test_a_run_that_was_killed_is_told_with_the_signal(tmp_path: Path) -> None:
    runs = runner.plan(peaks(0.1), str(tmp_path), "")
    (outcome,) = runner.run_all(runs, stand_in(tmp_path, {0.1: "kill"}), 1, lambda _: None)
    assert (outcome.state, outcome.code) == ("failed", -9)
    assert outcome.last_lines.endswith("\nkilled by signal 9 (Killed), without a word")


def test_a_run_that_still_ends_is_waited_for(tmp_path: Path) -> None:
    """The lock of its folder is held for a second; then it is found to be finished, and is not started."""
    said: list[str] = []
    (run,) = runner.plan(peaks(0.1), str(tmp_path), "")
    with run_folder.in_use(run.folder):
        holder = threading.Timer(1, lambda: (Path(run.folder) / "status.json").write_text('{"state": "finished"}'))
        holder.start()
        program = threading.Thread(
            target=lambda: said.append(runner.run_all([run], stand_in(tmp_path), 1, said.append)[0].state)
        )
        program.start()
        holder.join()
        assert program.is_alive()
    program.join(10)
    assert said == [
        f"{run.name}: waiting for a process that is still in its folder",
        "1 of 1 runs were finished before",
        "finished",
    ]
    assert starts(run) == 0


def test_a_failed_run_is_named_with_its_last_lines(tmp_path: Path) -> None:
    said: list[str] = []
    runs = runner.plan(peaks(0.1, 0.2), str(tmp_path), "")
    outcomes = runner.run_all(runs, stand_in(tmp_path, {0.1: "break"}), 1, said.append)
    assert outcomes[0].code == 1 and outcomes[0].last_lines.endswith("one line\nthe last line")
    assert outcomes[1].state == "finished"
    assert f"[1/2] {runs[0].name}: failed" in said


@pytest.mark.parametrize("parallel", [1, 2])
def test_no_more_run_at_a_time_than_allowed(tmp_path: Path, parallel: int) -> None:
    runner.run_all(
        runner.plan(peaks(0.1, 0.2, 0.3, 0.4), str(tmp_path), ""), stand_in(tmp_path), parallel, lambda _: None
    )
    together = [0]
    for sign in (tmp_path / "going").read_text():
        together.append(together[-1] + (1 if sign == "+" else -1))
    assert max(together) == parallel and together[-1] == 0


def test_parallel_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="parallel is 0"):
        runner.run_all([], stand_in(tmp_path), 0)


def test_stopping_the_sweep_lets_its_runs_save(tmp_path: Path) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    program = f"""
import sys
from t_elaine import cli
from t_elaine.studies import runner
runs = runner.plan([{{"peak": 0.1}}, {{"peak": 0.2}}], {str(tmp_path)!r}, "")
command = lambda run: [sys.executable, {str(tmp_path / "stand_in.py")!r}, run.folder, "0.1", "wait"]
sys.exit(cli.guarded(lambda: len(runner.run_all(runs, command, 1)), "sweep"))
"""
    sweep = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(sweep.pid, signal.SIGTERM)
    told = sweep.communicate(timeout=30)[1]
    assert sweep.returncode == 143 and told.startswith("stopped by SIGTERM; finished runs are kept"), told
    (status,) = tmp_path.glob("*/status.json")
    assert json.loads(status.read_text())["state"] == "preempted"


def test_the_table_has_the_best_first_and_the_page_says_the_same(tmp_path: Path) -> None:
    runs = runner.plan(peaks(0.1, 0.25, 0.9, 0.35), str(tmp_path), "")
    outcomes = runner.run_all(runs, stand_in(tmp_path, {0.25: "break"}), 2, lambda _: None)
    found = results.rows(outcomes, METRIC, "lowest")
    assert [row["values"]["Schedule.peak"] for row in found] == [0.1, 0.35, 0.9, 0.25]
    assert found[-1]["state"] == "failed" and found[0]["metric"] == pytest.approx(0.1)
    assert found[0]["step"] == 3 and found[2]["loss"] == pytest.approx(3.0)
    assert results.rows(outcomes, METRIC, "highest")[0]["metric"] == pytest.approx(0.7)
    text = results.table(found, METRIC).splitlines()
    assert text[0].split() == ["Schedule.peak", METRIC, "train/loss", "step", "state"] and len(text) == 5
    results.write(str(tmp_path), found, METRIC, "lowest")
    page = Path(write_sweep_page(str(tmp_path))).read_text(encoding="utf-8")
    places = [page.index(f'title="{row["name"]}"') for row in found]
    assert places == sorted(places) and "the last line" in page and page.count('class="best"') == 1


def test_the_loss_has_one_column_where_it_is_the_metric(tmp_path: Path) -> None:
    outcomes = runner.run_all(runner.plan(peaks(0.1), str(tmp_path), ""), stand_in(tmp_path), 1, lambda _: None)
    found = results.rows(outcomes, "train/loss", "lowest")
    head, row = (line.split() for line in results.table(found, "train/loss").splitlines())
    assert head == ["Schedule.peak", "train/loss", "step", "state"] and len(row) == len(head)
    results.write(str(tmp_path), found, "train/loss", "lowest")
    page = Path(write_sweep_page(str(tmp_path))).read_text(encoding="utf-8")
    assert page.count("<th>train/loss</th>") == 1


def test_a_run_without_the_metric_comes_last(tmp_path: Path) -> None:
    outcomes = runner.run_all(runner.plan(peaks(0.1), str(tmp_path), ""), stand_in(tmp_path), 1, lambda _: None)
    assert results.rows(outcomes, "train/nothing", "lowest")[0]["metric"] is None
    assert "train/language/ja/loss" in results.known_metrics(outcomes) and METRIC in results.known_metrics(outcomes)


def test_values_cannot_break_the_page(tmp_path: Path) -> None:
    record = {"metric": "m", "best": "lowest", "runs": []}
    run = {"name": "a", "values": {"x": "<script>"}, "state": "finished", "metric": 1.0, "loss": None, "step": None}
    (tmp_path / "sweep.json").write_text(json.dumps(record | {"runs": [run]}))
    assert "<script>" not in Path(write_sweep_page(str(tmp_path))).read_text()
