"""scripts/gpu against stand-ins for ssh and SLURM: processes are told what `Hosts` reads; requeues; failures."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from t_elaine.parallel.clusters import place
from t_elaine.parallel.hosts import Hosts
from tests.scripts.cloud import HOST_PYTHON, is_running

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "gpu"

# A machine is a folder that serves as its home; one without a folder is not reached.
SSH = """#!/bin/bash
echo "$*" >> "$CLOUD/ssh.log"
machine=${5#*@}
cd "$CLOUD/$machine" 2>/dev/null || { echo "ssh: connect to host $machine: timed out" >&2; exit 255; }
HOME=$CLOUD/$machine exec bash -c "$6"
"""

PYTHON = HOST_PYTHON.replace('for word in "$@"', 'env | grep T_ELAINE > "$HOME/told"; for word in "$@"')

# srun runs the command as the only task and leaves status.json as the scenario says.
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$CLOUD/srun.arguments"
printenv T_ELAINE_EXPECTED >> "$CLOUD/srun.arguments"
if [ -s "$CLOUD/leaves" ]; then mkdir -p "$RUN_DIR"; cp "$CLOUD/leaves" "$RUN_DIR/status.json"; fi
if [ -e "$CLOUD/waits" ]; then trap 'rm "$CLOUD/waits"' TERM; kill -TERM "$PPID"; while [ -e "$CLOUD/waits" ]; do
  sleep 0.1; kill -TERM $$; done; fi
exit "$(cat "$CLOUD/code")"
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Path]:
    program(tmp_path / "bin" / "ssh", SSH)
    for name in ("gpu1", "gpu2"):
        program(tmp_path / name / "t-elaine-pod" / "venv" / "bin" / "python", PYTHON)
    (tmp_path / "hosts").write_text("# two machines\nme@gpu1\n\ngpu2\n")
    yield tmp_path
    for pid in tmp_path.glob("gpu*/t-elaine-pod/run/pid"):
        subprocess.run(["bash", "-c", f"kill -KILL -{pid.read_text().strip()}"], stderr=subprocess.DEVNULL, check=False)


def ssh(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CLOUD": str(folder)}
    command = ["bash", str(SCRIPTS / "ssh.sh"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


START = ["start", "--hosts=hosts", "--", "--gin_file=cpt.gin", "--gin.RUN_DIR='/shared/run one'"]


def test_each_machine_is_told_its_place(machines: Path) -> None:
    done = ssh(machines, *START)
    assert done.returncode == 0, done.stderr
    while not all((machines / name / "train.arguments").exists() for name in ("gpu1", "gpu2")):
        assert all(is_running(machines / name) for name in ("gpu1", "gpu2"))
    for number, name in enumerate(("gpu1", "gpu2")):
        words = (machines / name / "train.arguments").read_text().splitlines()
        assert words[-2:] == ["--gin_file=cpt.gin", "--gin.RUN_DIR='/shared/run one'"]
        told = dict(line.split("=", 1) for line in (machines / name / "told").read_text().splitlines())
        found = place(Hosts(), told)
        assert found is not None
        assert (found.address, found.processes, found.process) == (("gpu1", 61440), 2, number)
        assert found.names == ("gpu1", "gpu2") and told["T_ELAINE_EXPECTED"] == "2"
    assert ssh(machines, "status", "--hosts=hosts").returncode == 0
    assert "training begins" in ssh(machines, "logs", "--hosts=hosts").stdout
    again = ssh(machines, *START)
    assert again.returncode == 1 and "at work here already" in again.stderr
    assert is_running(machines / "gpu1") and is_running(machines / "gpu2")
    stopped = ssh(machines, "stop", "--hosts=hosts")
    assert stopped.returncode == 0 and "ended with 0" in stopped.stdout
    assert not is_running(machines / "gpu1")
    late = ssh(machines, "status", "--hosts=hosts")
    assert late.returncode == 1 and "gpu2: " in late.stderr and "train ended with 0" in late.stderr


def test_a_machine_that_is_not_reached_is_named_and_the_others_are_stopped(machines: Path) -> None:
    (machines / "hosts").write_text("gpu1\ngpu2\ngpu9\n")
    done = ssh(machines, *START)
    assert done.returncode == 1 and "gpu9 gave no answer" in done.stderr and "gpu1" not in done.stderr
    assert "connect to host gpu9: timed out" in done.stdout
    assert not is_running(machines / "gpu1") and not is_running(machines / "gpu2")


@pytest.mark.parametrize(
    ("hosts", "arguments", "said"),
    [
        ("gpu1\ngpu1\n", START, "a machine stands there twice"),
        ("# none\n", START, "no machine stands there"),
        ("gpu1\n", ["start", "--hosts=hosts"], "train is given no gin file"),
        ("gpu1\n", ["begin", "--hosts=hosts"], "unknown command begin"),
        ("gpu1\n", ["start", "--hosts=elsewhere", "--", "x"], "there is no such file"),
        ("gpu1\n", ["start", "--", "x"], "no machines are given"),
        ("gpu1\n", ["status", "--hosts=hosts", "--port=ssh"], "--port=ssh is no number"),
    ],
)
def test_ssh_refuses(machines: Path, hosts: str, arguments: list[str], said: str) -> None:
    (machines / "hosts").write_text(hosts)
    done = ssh(machines, *arguments)
    assert done.returncode == 2 and said in done.stderr and not (machines / "ssh.log").exists()


def test_a_dry_run_calls_nobody(machines: Path) -> None:
    done = ssh(machines, "start", "--hosts=hosts", "--dry_run", "--venv=/opt/t", "--", "--gin_file=cpt.gin")
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert len(lines) == 2 and all(line.startswith("ssh -o BatchMode=yes") for line in lines)
    assert "T_ELAINE_VENV=/opt/t" in lines[0] and not (machines / "ssh.log").exists()


def slurm(
    folder: Path, code: int, leaves: str, restarts: int = 0, **changed: str
) -> "subprocess.CompletedProcess[str]":
    program(folder / "bin" / "srun", SRUN)
    program(folder / "bin" / "scontrol", '#!/bin/sh\necho "$*" >> "$CLOUD/scontrol.log"\n')
    program(folder / "venv" / "bin" / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "code").write_text(str(code))
    (folder / "leaves").write_text(json.dumps({"state": leaves}) if leaves else "")
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CLOUD": str(folder), "VENV": str(folder / "venv"),
        "RUN_DIR": str(folder / "run"), "SLURM_JOB_ID": "77", "SLURM_NTASKS": "2", "SLURM_RESTART_COUNT": str(restarts),
        "PYTHONPATH": str(SCRIPTS.parents[1]),
    }  # fmt: skip
    command = ["bash", str(SCRIPTS / "slurm.sbatch"), "--gin_file=cpt.gin"]
    return subprocess.run(
        command, env=environment | changed, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "leaves", "restarts", "ends", "requeued"),
    [
        (0, "finished", 0, 0, False),
        (0, "preempted", 0, 0, True),
        (1, "running", 3, 0, True),  # a node died
        (0, "preempted", 20, 1, False),
        (0, "stopped", 0, 1, False),
        (2, "", 0, 2, False),  # settings refused, no run yet
        (0, "", 0, 1, False),
    ],
)
def test_slurm_requeues_by_what_is_left_to_do(
    tmp_path: Path, code: int, leaves: str, restarts: int, ends: int, requeued: bool
) -> None:
    done = slurm(tmp_path, code, leaves, restarts)
    assert done.returncode == ends, done.stderr
    assert (tmp_path / "scontrol.log").exists() == requeued
    words = (tmp_path / "srun.arguments").read_text().splitlines()
    run_dir = f"--gin.RUN_DIR='{tmp_path / 'run'}'"
    assert words[-5:] == ["-m", "t_elaine.train", "--gin_file=cpt.gin", run_dir, "2"]


def test_slurm_waits_for_train_to_save_when_its_shell_is_told_to_end(tmp_path: Path) -> None:
    (tmp_path / "waits").touch()
    done = slurm(tmp_path, 0, "preempted")
    assert done.returncode == 0 and "waiting for train to save" in done.stdout
    assert (tmp_path / "scontrol.log").read_text() == "requeue 77\n"


@pytest.mark.parametrize("lacking", ["RUN_DIR", "SLURM_JOB_ID", "VENV"])
def test_slurm_refuses(tmp_path: Path, lacking: str) -> None:
    done = slurm(tmp_path, 0, "finished", **{lacking: "" if lacking != "VENV" else "/nowhere"})
    assert done.returncode == 2 and "mend: " in done.stderr and not (tmp_path / "srun.arguments").exists()
