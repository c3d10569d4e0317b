"""`train --rehearse` on the shipped samples: every stage for real, what it tells, and what it refuses."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPE = {"layers": 2, "embed": 32, "mlp": 48, "head_dim": 8}
RECIPE = [
    *("--gin_file=cpt.gin", "--gin_file=quickstart.gin", "--gin.Loop.price_per_chip_hour=2.0"),
    *("--gin.train.rows_per_device=4", *(f"--gin.LlamaConfig.{name}={value}" for name, value in SHAPE.items())),
]


def run(folder: Path, command: str, *flags: str) -> tuple[int, str, str]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    done = subprocess.run(
        [sys.executable, "-m", f"t_elaine.{command}", *flags],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_rehearsal_goes_the_whole_road(tmp_path: Path) -> None:
    code, _, errors = run(tmp_path, "prepare", "--gin_file=quickstart_data.gin")
    assert code == 0, errors
    flags = [*RECIPE, "--rehearse", "--run_dir=runs/one", "--gin.Loop.max_chip_hours=0.00001"]
    code, printed, errors = run(tmp_path, "train", *flags, "--keep_rehearsal")
    assert code == 0, errors + printed
    stages = [line for line in printed.splitlines() if line.startswith("== ")]
    assert stages == ["== training until the kill", "== going on", "== export with proof", "== plan"]
    assert "SIGKILL: checkpoint 10 is whole" in printed and "going on from checkpoint 10" in printed
    assert "stopped as asked at step 20 of 100" in printed and not (tmp_path / "runs" / "one").exists()

    folder = tmp_path / "runs" / "one-rehearsal"
    found = json.loads((folder / "rehearsal.json").read_text())
    assert (folder / "export" / "proof.json").is_file() and (folder / "checkpoints" / "20").is_dir()
    assert found["again"]["from"] == 11 and found["again"]["steps"] >= 2
    assert found["again"]["equal"] == found["again"]["steps"]
    assert found["plan"]["topology"]["devices"] == 2 and found["devices"]["count"] == 2
    assert found["plan"]["memory"]["peak"] == pytest.approx(found["measured"]["step_bytes"], rel=0.05)
    told, measured = found["projected"], found["measured"]
    assert told["steps_left"] == 100
    assert told["seconds"]["steps"] == pytest.approx(100 * measured["step_seconds"], abs=0.1)
    assert told["chip_hours"] == pytest.approx(2 * told["hours"])
    assert told["cost"] == pytest.approx(2 * told["chip_hours"])
    assert told["seconds"]["checkpoints"] > 0 and told["seconds"]["evaluations"] > 0
    assert len(measured["compile_seconds"]) == 2
    assert "all the same, bit for bit" in printed and "WARNING: Loop.max_chip_hours" in printed
    assert "plan tells no time for these devices" in printed and "100 steps left" in printed


def test_what_cannot_be_rehearsed_is_refused(tmp_path: Path) -> None:
    """A run at work, somebody's folder of that name, a run too short: told before anything starts."""
    (tmp_path / "one").mkdir()
    with open(tmp_path / "one" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, errors = run(tmp_path, "train", *RECIPE, "--rehearse", "--run_dir=one")
    assert code == 2 and "error: a run is at work there\nwhere: one\n" in errors
    (tmp_path / "two-rehearsal").mkdir()
    (tmp_path / "two-rehearsal" / "notes").write_text("mine")
    code, _, errors = run(tmp_path, "train", *RECIPE, "--rehearse", "--run_dir=two")
    assert code == 2 and "is no rehearsal's" in errors and (tmp_path / "two-rehearsal" / "notes").exists()
    code, _, errors = run(tmp_path, "train", *RECIPE, "--rehearse", "--run_dir=three", "--gin.Loop.steps=5")
    assert code == 2 and "a rehearsal needs at least 8" in errors and "Traceback" not in errors


def test_a_stage_that_fails_ends_it_with_its_own_message(tmp_path: Path) -> None:
    code, printed, errors = run(tmp_path, "train", *RECIPE, "--rehearse", "--run_dir=one")
    assert code == 2 and "Traceback" not in errors and "== going on" not in printed
    assert errors.count("error: ") == 1 and "stores/quickstart/samples_en" in errors
    assert "rehearsal: training ended with code 2" in errors
    assert not list(tmp_path.glob("one*"))
