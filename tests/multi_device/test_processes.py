"""One process with two devices and two processes with one: the same losses, and each goes on from the other's files."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest
import tiny_runs

from t_elaine.checkpoints import layout, verify

SETTINGS: dict[str, Any] = {"steps": 8, "every": 2, "evaluate_every": 4, "rows_per_device": 4}
KILL = {0: {"T_ELAINE_KILL_AT": "checkpoint.after_digests:2"}}  # checkpoint 4 is complete, step 5 or 6 is under way


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [tiny_runs.make_store(tmp_path_factory.mktemp("stores") / "alpha")]


class Runs:
    """Starts jobs of one module, and ends what is left of them."""

    def __init__(self, folder: Path, stores: list[Path], cache: str) -> None:
        self.folder, self._stores, self._cache = folder, stores, cache
        self.jobs: list[jobs.Job] = []

    def start(self, name: str, processes: int, more: str = "", **changes: Any) -> jobs.Job:
        """A job on the run folder of this name, always with two devices in all."""
        given = {key: changes.pop(key) for key in ("variables", "programs", "only") if key in changes}
        changes = {**SETTINGS, "compilation_cache": self._cache, **changes}
        text = jobs.gin_text(self.folder / name, self._stores, **changes) + more
        job = jobs.start(self.folder, text, processes=processes, devices=2 // processes, **given)
        self.jobs.append(job)
        return job


@pytest.fixture(scope="module")
def runs(stores: list[Path], cache: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("jobs"), stores, cache)
    yield made
    for job in made.jobs:
        job.kill()


@pytest.fixture(scope="module")
def alone(runs: Runs) -> Path:
    """The run of one process with two devices, never interrupted."""
    job = runs.start("alone", 1)
    assert job.wait() == [0], job.told()
    return runs.folder / "alone"


def assert_alike(run_dir: Path, whole: Path) -> None:
    """The same lines for the same rows: counts equal, figures within 1e-5 of each other; the same parameters."""
    found, wanted = tiny_runs.lines(run_dir), tiny_runs.lines(whole)
    found = [line for line in found if line["kind"] != "resume"]
    assert [(line["kind"], line["step"]) for line in found] == [(line["kind"], line["step"]) for line in wanted]
    for line, other in zip(found, wanted, strict=True):
        assert line.get("tokens") == other.get("tokens")
        for key in ("loss", "bits_per_byte", "grad_norm"):
            if other.get(key) is not None:
                assert line[key] == pytest.approx(other[key], rel=1e-5), (key, line["step"])
        for language, figures in other["language"].items():
            assert line["language"][language]["tokens"] == figures["tokens"]
    here, there = tiny_runs.parameters(run_dir, 8), tiny_runs.parameters(whole, 8)
    assert here.keys() == there.keys()
    for name, value in there.items():
        np.testing.assert_allclose(here[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    for step in layout.complete_steps(run_dir):
        assert verify.faults(str(run_dir / "checkpoints" / str(step))) == []


def test_two_processes_then_one(runs: Runs, alone: Path) -> None:
    """Process 0 of two is killed behind a checkpoint; the other ends, and one process finishes the run."""
    run_dir = runs.folder / "two-one"
    job = runs.start("two-one", 2, variables=KILL)
    assert job.wait() == [-signal.SIGKILL, 2], job.told()
    assert "error: process 0 on" in job.output(1) and "is gone (killed, or crashed)" in job.output(1)
    assert layout.complete_steps(run_dir)[-1] == 4
    assert (run_dir / "checkpoints" / "4" / "digests.1.json").exists()
    job = runs.start("two-one", 1)
    assert job.wait() == [0] and "going on from checkpoint 4" in job.output(0), job.told()
    assert_alike(run_dir, alone)


@pytest.mark.slow
def test_one_process_then_two(runs: Runs, alone: Path) -> None:
    job = runs.start("one-two", 1, variables=KILL)
    assert job.wait() == [-signal.SIGKILL], job.told()
    job = runs.start("one-two", 2)
    assert job.wait() == [0, 0] and "going on from checkpoint 4" in job.output(0), job.told()
    assert "step 8/8" not in job.output(1), "only the main process tells the steps"
    assert_alike(runs.folder / "one-two", alone)
    told = job.output(0)
    assert "process 0 on" in told and "process 1 on" in told and "fsdp=2 (one host)" in told
    versions = json.loads((runs.folder / "one-two" / "versions.json").read_text())
    assert versions["devices"] == {"kind": "cpu", "count": 2, "processes": 2, "slices": 1}


def test_sigterm_to_one_of_two_saves_the_same_step_on_both(runs: Runs) -> None:
    run_dir = runs.folder / "terminated"
    job = runs.start("terminated", 2, steps=100_000, every=100_000, evaluate_every=0)
    job.until("step 3/")
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.wait(60) == [0, 0], job.told()
    status = json.loads((run_dir / "status.json").read_text())
    assert status["state"] == "preempted" and layout.complete_steps(run_dir) == [status["step"]]
    assert tiny_runs.lines(run_dir)[-1]["step"] == status["step"]
    assert verify.faults(str(run_dir / "checkpoints" / str(status["step"]))) == []


@pytest.mark.slow
def test_what_one_of_two_finds_damaged_neither_takes(runs: Runs) -> None:
    """The hosts share the reading of digests: process 1 alone sees this fault."""
    job = runs.start("damaged", 2, steps=4)
    assert job.wait() == [0, 0], job.told()
    folder = runs.folder / "damaged" / "checkpoints" / "4"
    files = sorted(name for name in verify.recorded(str(folder)) if name.startswith(("params", "optimizer", "meta")))
    name = next(name for name in reversed(files[1::2]) if (folder / name).stat().st_size)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    job = runs.start("damaged", 2, steps=4)
    assert job.wait() == [0, 0], job.told()
    assert "checkpoint 4 is damaged, going one back: process(es) 1 found a fault" in job.output(0)
    assert "going on from checkpoint 2" in job.output(0)
    assert verify.faults(str(folder)) == [], "written anew"


@pytest.mark.slow
def test_chip_hours_end_both_at_the_same_step(runs: Runs) -> None:
    job = runs.start("hours", 2, steps=100_000, every=100_000, evaluate_every=0, max_chip_hours=1e-9)
    assert job.wait() == [0, 0] and "chip hours at step 10 of" in job.output(0), job.told()
    status = json.loads((runs.folder / "hours" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("stopped", 10)
    assert layout.complete_steps(runs.folder / "hours") == [10]
