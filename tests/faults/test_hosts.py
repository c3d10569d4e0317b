"""Jobs of several processes that go wrong: whoever is missing, unlike, dead or stuck is named, and all end in time."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny_runs

from t_elaine.checkpoints import layout, verify

LONG: dict[str, Any] = {"steps": 100_000, "every": 2, "evaluate_tokens": 0, "rows_per_device": 4}
OTHER_FLAX = """
import importlib.metadata, sys
version = importlib.metadata.version
importlib.metadata.version = lambda name: "0.0.1" if name == "flax" else version(name)
from t_elaine.train import main
sys.exit(main())
"""
STUCK = """
import sys, time
from t_elaine.data.loader import Loader
batch = Loader.batch
Loader.batch = lambda self, step: time.sleep(1000) if step == 6 else batch(self, step)
from t_elaine.train import main
sys.exit(main())
"""
FAILING = """
import sys
from t_elaine import feeding
from t_elaine.errors import UserError
def verify(folders, share):
    raise UserError("shard 3 is damaged", folders[0], "copy it again")
feeding.verify_stores = verify
from t_elaine.train import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [tiny_runs.make_store(tmp_path_factory.mktemp("stores") / "alpha")]


@pytest.fixture
def started() -> Iterator[list[jobs.Job]]:
    """Jobs that a test starts; what is left of them is ended."""
    found: list[jobs.Job] = []
    yield found
    for job in found:
        job.kill()


def hosts(**settings: Any) -> str:
    lines = [f"Hosts.{name} = {value!r}" for name, value in settings.items()]
    return "\n".join(["train.hosts = @Hosts()", *lines, ""])


def test_who_never_came_is_named(stores: list[Path], tmp_path: Path, started: list[jobs.Job]) -> None:
    gin = jobs.gin_text(tmp_path / "run", stores) + hosts(seconds=20.0, names=("first", "second", "third"))
    job = jobs.start(tmp_path, gin, processes=3, only=(0, 1))
    started.append(job)
    assert job.wait(90) == [2, 2], job.told()
    for process in (0, 1):
        assert "1 of 3 processes did not come within 20 s: missing process 2 (third)" in job.output(process)
    assert not (tmp_path / "run").exists()


def test_another_count_than_expected_is_refused_at_once(
    stores: list[Path], tmp_path: Path, started: list[jobs.Job]
) -> None:
    job = jobs.start(tmp_path, jobs.gin_text(tmp_path / "run", stores) + hosts(expected=4), only=(0,))
    started.append(job)
    assert job.wait(60) == [2], job.told()
    assert "4 processes are expected, but there are 2" in job.output(0)


def test_a_host_with_another_version_or_other_settings_is_named(
    stores: list[Path], tmp_path: Path, started: list[jobs.Job]
) -> None:
    gin = jobs.gin_text(tmp_path / "run", stores)
    other = gin.replace("Schedule.peak = 0.01", "Schedule.peak = 0.02")
    job = jobs.start(tmp_path, [gin, other], programs={1: ("-c", OTHER_FLAX)})
    started.append(job)
    assert job.wait(90) == [2, 2], job.told()
    for process in (0, 1):
        assert "has flax 0.0.1, process 0 on " in job.output(process), job.told()
        assert "-Schedule.peak = 0.01 | +Schedule.peak = 0.02" in job.output(process)


@pytest.mark.slow
def test_a_run_folder_that_is_not_shared_is_refused(
    stores: list[Path], cache: str, tmp_path: Path, started: list[jobs.Job]
) -> None:
    gin = jobs.gin_text(Path("run"), stores, compilation_cache=cache)
    (tmp_path / "elsewhere").mkdir()
    job = jobs.start(tmp_path, gin, folders={0: tmp_path, 1: tmp_path / "elsewhere"})
    started.append(job)
    assert job.wait(120) == [2, 2], job.told()
    assert "process(es) 1 do not see the run folder of process 0" in job.output(0)


@pytest.mark.slow
def test_a_host_that_fails_ends_the_others(
    stores: list[Path], cache: str, tmp_path: Path, started: list[jobs.Job]
) -> None:
    gin = jobs.gin_text(tmp_path / "run", stores, compilation_cache=cache)
    job = jobs.start(tmp_path, gin, programs={1: ("-c", FAILING)})
    started.append(job)
    assert job.wait(120) == [2, 2], job.told()
    assert "error: shard 3 is damaged" in job.output(1) and "Traceback" not in job.told()
    assert "failed: shard 3 is damaged" in job.output(0)


@pytest.mark.slow
def test_other_stores_under_the_same_names_are_refused(cache: str, tmp_path: Path, started: list[jobs.Job]) -> None:
    for seed, name in enumerate(("here", "there")):
        tiny_runs.make_store(tmp_path / name / "alpha", seed=seed)
    gin = jobs.gin_text(tmp_path / "run", [Path("alpha")], compilation_cache=cache)
    job = jobs.start(tmp_path, gin, folders={0: tmp_path / "here", 1: tmp_path / "there"})
    started.append(job)
    assert job.wait(120) == [2, 2], job.told()
    assert all("the stores of process(es) 1 are not those of process 0" in job.output(i) for i in (0, 1))


def test_a_dead_host_is_named_the_others_end_and_the_run_goes_on(
    stores: list[Path], cache: str, tmp_path: Path, started: list[jobs.Job]
) -> None:
    """SIGKILL while the others compute; they end within seconds, far below any time limit of JAX's own."""
    run_dir = tmp_path / "run"
    job = jobs.start(tmp_path, jobs.gin_text(run_dir, stores, compilation_cache=cache, **LONG))
    started.append(job)
    job.until("step 5/")
    start = time.monotonic()
    job.processes[1].send_signal(signal.SIGKILL)
    assert job.wait(60) == [2, -signal.SIGKILL], job.told()
    assert time.monotonic() - start < 20
    told = job.output(0)
    assert "error: process 1 on" in told and "is gone (killed, or crashed)" in told and "Traceback" not in told
    status = json.loads((run_dir / "status.json").read_text())
    assert status["state"] == "stopped" and "is gone (killed, or crashed)" in status["reason"]
    last = layout.complete_steps(run_dir)[-1]
    assert last >= 2 and verify.faults(str(run_dir / "checkpoints" / str(last))) == []
    more = {**LONG, "steps": last + 2}
    job = jobs.start(tmp_path, jobs.gin_text(run_dir, stores, compilation_cache=cache, **more))
    started.append(job)
    assert job.wait() == [0, 0] and f"going on from checkpoint {last}" in job.output(0), job.told()
    assert layout.complete_steps(run_dir)[-1] == last + 2


@pytest.mark.slow
def test_a_silent_host_counts_as_dead(stores: list[Path], cache: str, tmp_path: Path, started: list[jobs.Job]) -> None:
    """SIGSTOP: the connection stays open, as with a machine that has lost its network; silence is all there is."""
    gin = jobs.gin_text(tmp_path / "run", stores, compilation_cache=cache, **LONG) + hosts(heartbeat_seconds=8.0)
    job = jobs.start(tmp_path, gin)
    started.append(job)
    job.until("step 3/")
    job.processes[1].send_signal(signal.SIGSTOP)
    start = time.monotonic()
    assert job.processes[0].wait(60) == 2, job.told()
    assert 4 < time.monotonic() - start < 40
    assert "was silent for 8 s" in job.output(0)
    job.processes[1].send_signal(signal.SIGCONT)
    assert job.processes[1].wait(60) not in (0, None), job.told()


@pytest.mark.slow
def test_a_stuck_host_is_ended_by_the_watchdog(
    stores: list[Path], cache: str, tmp_path: Path, started: list[jobs.Job]
) -> None:
    """Process 1's loader hangs at step 6: process 0 waits in a collective for ever, unless somebody watches."""
    watch = "train.watchdog = @Watchdog()\nWatchdog.seconds = 10.0\nWatchdog.factor = 2.0\n"
    gin = jobs.gin_text(tmp_path / "run", stores, compilation_cache=cache, **LONG) + watch
    job = jobs.start(tmp_path, gin, programs={1: ("-c", STUCK)})
    started.append(job)
    codes = job.wait(180)
    assert 1 in codes and set(codes) <= {1, 2}, job.told()
    assert "watchdog: no end of" in job.told()
    for process in (0, 1):  # whoever noticed first, the stacks of both are there
        assert "the stacks of all threads:" in job.output(process), job.told()
    assert "in prefetch" in job.output(1), "where process 1 is stuck"
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "stopped" and "no end of" in status["reason"]
    assert layout.complete_steps(tmp_path / "run")[-1] >= 2
