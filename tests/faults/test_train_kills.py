"""Training that is killed by SIGKILL, at named points and at any moment, ends bit for bit as if it had not been."""

import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_runs

from t_elaine.checkpoints import layout, verify

# A save visits mid_save twice: once for the parameters, once for the optimizer's state.
FEW = [
    ("checkpoint.before_digests:2", "checkpoint.mid_save:1"),
    ("checkpoint.before_save:3", "checkpoint.after_digests:1"),
]
ALL = [
    (f"checkpoint.{first}", f"checkpoint.{second}")
    for first in ("before_save:1", "mid_save:1", "mid_save:4", "before_digests:1", "after_digests:2")
    for second in ("before_save:1", "mid_save:2", "before_digests:1", "after_digests:1")
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [tiny_runs.make_store(tmp_path_factory.mktemp("stores") / "alpha")]


@pytest.fixture(scope="module")
def whole(stores: list[Path], cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    code, output = tiny_runs.train_process(run_dir, stores, compilation_cache=cache)
    assert code == 0, output
    return run_dir


def assert_same(run_dir: Path, whole: Path, step: int) -> None:
    """Metric lines, parameters, moments and counters are equal, bit for bit."""
    assert tiny_runs.lines(run_dir) == tiny_runs.lines(whole)
    found, wanted = tiny_runs.parameters(run_dir, step), tiny_runs.parameters(whole, step)
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    assert json.loads((run_dir / "status.json").read_text())["state"] == "finished"
    folder = run_dir / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == sorted(map(str, layout.complete_steps(run_dir)))


def killed_and_resumed(run_dir: Path, stores: list[Path], cache: str, points: tuple[str, ...]) -> None:
    for point in points:
        sound = layout.complete_steps(run_dir) if run_dir.exists() else []
        code, output = tiny_runs.train_process(run_dir, stores, kill_at=point, compilation_cache=cache)
        assert code == -signal.SIGKILL, f"{point} was not reached:\n{output}"
        now = layout.complete_steps(run_dir)
        assert max(now, default=0) >= max(sound, default=0) and len(now) >= min(len(sound), 2)
        for step in now:
            assert verify.faults(str(run_dir / "checkpoints" / str(step))) == []
    code, output = tiny_runs.train_process(run_dir, stores, compilation_cache=cache)
    assert code == 0, output


@pytest.mark.parametrize(
    "points",
    [
        FEW[0],
        *(pytest.param(points, marks=pytest.mark.slow) for points in FEW[1:]),
        *(pytest.param(points, marks=pytest.mark.full) for points in ALL),
    ],
    ids=lambda points: "+".join(points).replace("checkpoint.", ""),
)
def test_killed_twice_at_named_points(
    whole: Path, stores: list[Path], cache: str, tmp_path: Path, points: tuple[str, ...]
) -> None:
    killed_and_resumed(tmp_path / "run", stores, cache, points)
    assert_same(tmp_path / "run", whole, 12)


@pytest.mark.full
def test_killed_at_twenty_seeded_moments(stores: list[Path], cache: str, tmp_path: Path) -> None:
    """One run killed twenty times over, from before its first step on, each time a seeded while after it began."""
    settings = {"steps": 300, "every": 5, "evaluate_every": 50, "compilation_cache": cache}
    code, output = tiny_runs.train_process(tmp_path / "whole", stores, **settings)
    assert code == 0, output
    chance, run_dir, killed = random.Random(7), tmp_path / "run", 0
    for _ in range(20):
        process = tiny_runs.start_process(run_dir, stores, **settings)
        if killed:
            before, limit = (run_dir / "metrics.jsonl").stat().st_mtime_ns, time.monotonic() + 120
            while (run_dir / "metrics.jsonl").stat().st_mtime_ns == before and process.poll() is None:
                assert time.monotonic() < limit
                time.sleep(0.01)
        else:
            while not (run_dir / "metrics.jsonl").exists() and process.poll() is None:
                time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.0))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate(timeout=60)
    code, output = tiny_runs.train_process(run_dir, stores, **settings)
    assert code == 0 and killed >= 5, (killed, output)
    assert_same(run_dir, tmp_path / "whole", 300)


def test_a_full_disk_ends_with_one_message_and_the_run_goes_on_later(
    whole: Path, stores: list[Path], cache: str, tmp_path: Path
) -> None:
    """Files may not grow past 20 kB from the second checkpoint on; lifted, the run ends as the whole one."""
    run_dir = tmp_path / "run"
    code, output = tiny_runs.train_process(run_dir, stores, compilation_cache=cache, asynchronous=False, full_disk_at=4)
    assert code == 2 and "Traceback" not in output, output
    assert "error: no space left while saving checkpoint 6; checkpoint 3 is intact" in output
    assert layout.complete_steps(run_dir) == [3]
    assert json.loads((run_dir / "status.json").read_text())["state"] == "stopped"
    code, output = tiny_runs.train_process(run_dir, stores, compilation_cache=cache)
    assert code == 0, output
    assert_same(run_dir, whole, 12)
