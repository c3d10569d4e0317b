"""SIGTERM, a job scheduler's way: one line, exit code 143, no process and no hidden folder left, old results whole."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t_elaine import export, import_hf
from t_elaine.checkpoints import layout
from t_elaine.data.store import verify_store
from tests.data import small_tasks as small
from tests.faults import test_moments
from tests.hf.models import contents

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = """
import os, time
from t_elaine.data.sources import Source
from t_elaine.data.tasks import add_task

def slow(fields):
    if os.path.exists("slowly"):
        time.sleep(0.03)
    return fields

source = Source(name="a", files=("a.jsonl",), language="en", category="textbook", licence="CC0-1.0", url="https://a.org")
add_task("slow", [source], preprocessors=[slow])
"""


def start(
    command: str, *arguments: str, at: str = "", cwd: Path = REPOSITORY, path: Path | None = None
) -> "subprocess.Popen[str]":
    """A command in a process of its own, which sends itself SIGTERM at a fault point if one is named."""
    environment = {**os.environ, "T_ELAINE_KILL_AT": at, "T_ELAINE_KILL_WITH": "SIGTERM", "XLA_FLAGS": ""}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-m", f"t_elaine.{command}", *arguments], cwd=cwd, env=environment, text=True, **pipes
    )


def assert_stopped(process: "subprocess.Popen[str]", kept: str, seconds: float = 60) -> None:
    """It ends with 143 and one line, on standard error, that says what is kept."""
    _, told = process.communicate(timeout=seconds)
    lines = [line for line in told.splitlines() if "stopped by" in line]
    assert process.returncode == 143, told
    assert len(lines) == 1 and lines[0].startswith(f"stopped by SIGTERM; {kept}"), told
    assert "Traceback" not in told and "error:" not in told


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    to = tmp_path_factory.mktemp("imported") / "run"
    assert import_hf.main([f"--hf={model}", f"--to={to}"]) == 0
    return to


@pytest.mark.parametrize(
    "point",
    [
        "export.mid_write:7",
        "export.between_renames",
        *(
            pytest.param(f"export.{p}", marks=pytest.mark.full)
            for p in ("before_write", "before_rename", "after_rename")
        ),
    ],
)
def test_export_leaves_nothing_and_the_older_one_whole(run: Path, tmp_path: Path, point: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "older").write_text("an older export")
    arguments = (f"--checkpoint={run}", f"--to={out}", "--overwrite")
    assert_stopped(start("export", *arguments, at=point), "nothing was left behind, an older export is as it was")
    assert list(tmp_path.iterdir()) == [out]
    assert (out / "proof.json").exists() == (out / "model.safetensors").exists() == ("after" in point)
    assert (out / "older").exists() == ("after" not in point)
    assert export.main(list(arguments)) == 0 and list(tmp_path.iterdir()) == [out]
    assert json.loads((out / "proof.json").read_text())["passed"]


@pytest.mark.parametrize(
    "point",
    [
        "checkpoint.mid_save",
        pytest.param("import_hf.before_save", marks=pytest.mark.full),
        pytest.param("import_hf.before_rename", marks=pytest.mark.full),
        pytest.param("import_hf.between_renames", marks=pytest.mark.full),
    ],
)
def test_import_leaves_nothing_and_the_older_one_whole(run: Path, model: Path, tmp_path: Path, point: str) -> None:
    to = tmp_path / "target"
    shutil.copytree(run, to)
    (to / "older").write_text("an older import")
    before = contents(to)
    arguments = (f"--hf={model}", f"--to={to}", "--overwrite")
    assert_stopped(start("import_hf", *arguments, at=point), "files fetched so far are kept, nothing else was left")
    assert list(tmp_path.iterdir()) == [to] and contents(to) == before
    assert import_hf.main(list(arguments)) == 0 and list(tmp_path.iterdir()) == [to]
    assert layout.complete_steps(str(to)) == [0] and not (to / "older").exists()


@pytest.mark.full
@pytest.mark.parametrize("command", ["export", "import_hf"])
def test_at_twelve_seeded_moments(command: str, run: Path, model: Path, tmp_path: Path) -> None:
    """By the clock, from where the command begins: it ends in one line or had ended; nothing is half there."""
    to, chance, stopped = tmp_path / "target", random.Random(3), 0
    arguments = [f"--checkpoint={run}" if command == "export" else f"--hf={model}", f"--to={to}"]
    took = test_moments.seconds_of(command, arguments)
    whole = [name for name in contents(to) if "checkpoints/" not in name]
    shutil.rmtree(to)
    for _ in range(12):
        process = test_moments.start(command, arguments, stderr=subprocess.PIPE)
        time.sleep(chance.uniform(0, took))
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
        # The system's own way is left for the blink before the command listens and the one after its work.
        assert process.returncode in (0, 143, -signal.SIGTERM) and "Traceback" not in told, told
        assert told.count("stopped by SIGTERM; ") == (process.returncode == 143), told
        stopped += process.returncode == 143
        assert list(tmp_path.iterdir()) in ([], [to]) and to.exists() >= (process.returncode == 0)
        assert not to.exists() or all((to / name).exists() for name in whole)
        if to.exists():
            shutil.rmtree(to)
    assert stopped >= 3, stopped  # beside other work a command may take longer or less than what was timed


def descendants(pid: int) -> set[int]:
    """Process ids below one."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    own = [int(child) for child in listed.read_text().split()] if listed.exists() else []
    return {found for child in own for found in {child, *descendants(child)}}


def is_alive(pid: int) -> bool:
    """False for one that is only not yet waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_prepare_ends_its_workers_at_once_and_keeps_finished_shards(tmp_path: Path) -> None:
    """Two of four shards are done; a shard takes over five seconds, so waiting for the others would be seen."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("this system has no /proc")
    (tmp_path / "slow_tasks.py").write_text(TASKS)
    small.write_rows(tmp_path / "a.jsonl", small.rows(720))
    (tmp_path / "slowly").touch()
    arguments = ("--tasks=slow", "--vocabulary={samples}", "--stores=stores", "--shards=4", "--workers=2")
    modules = "--gin.prepare.modules=('slow_tasks',)"
    process = start("prepare", *arguments, modules, cwd=tmp_path, path=tmp_path)
    partial, limit = tmp_path / "stores" / ".slow.partial", time.monotonic() + 100
    while len(list(partial.glob("*.report.json"))) < 2:
        assert time.monotonic() < limit and process.poll() is None, process.communicate()
        time.sleep(0.02)
    below = descendants(process.pid)
    assert len(below) >= 2
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert_stopped(process, "finished shards are kept; the same command goes on")
    assert time.monotonic() - began < 4
    while time.monotonic() - began < 10 and any(map(is_alive, below)):
        time.sleep(0.05)
    assert not [pid for pid in below if is_alive(pid)]
    assert not (tmp_path / "stores" / "slow").exists()
    (tmp_path / "slowly").unlink()
    again = start("prepare", *arguments, modules, cwd=tmp_path, path=tmp_path)
    told, _ = again.communicate(timeout=200)
    assert again.returncode == 0 and "resumed: " in told
    verify_store(tmp_path / "stores" / "slow")
    assert [p.name for p in (tmp_path / "stores").iterdir()] == ["slow"]


EVALUATE = """
import os, signal, sys, time
from t_elaine import evaluate
from t_elaine.evaluation import runner

def judge(*given, **named):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

runner.judge = judge
sys.exit(evaluate.main(sys.argv[1:]))
"""


def test_evaluate_keeps_no_half_result(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", EVALUATE, f"--checkpoint={model}", "--exams=samples/en", f"--to={tmp_path}"]
    environment = {**os.environ, "XLA_FLAGS": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, text=True, **pipes)
    assert_stopped(process, "scores and answers so far are kept; the same command goes on")
    assert list(tmp_path.iterdir()) == []


TWICE = """
import os, signal, sys, time
from t_elaine import cli

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

def work():
    try:
        {begin}
        time.sleep(20)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        print("cleaned up")
    return 0

sys.exit(cli.guarded(work, "sweep"))
"""


@pytest.mark.parametrize("begin", ["os.kill(os.getpid(), signal.SIGTERM)", "Finalised()"])
def test_a_second_one_does_not_disturb_and_one_in_a_finaliser_is_not_lost(begin: str) -> None:
    done = subprocess.run([sys.executable, "-c", TWICE.format(begin=begin)], capture_output=True, text=True, timeout=15)
    assert (done.returncode, done.stdout) == (143, "cleaned up\n")
    assert done.stderr.startswith("stopped by SIGTERM; finished runs are kept") and done.stderr.count("\n") == 1
