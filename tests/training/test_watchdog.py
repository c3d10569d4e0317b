"""The watchdog ends a process in which nothing ends any more, with its stacks, and lets a slow one be."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from t_elaine.errors import UserError
from t_elaine.training.watchdog import FIRST, Watch, Watchdog

PROGRAM = """
import sys, time
from t_elaine.training.watchdog import Watch, Watchdog

def waiting_for_ever():
    time.sleep(1000)

def told(reason):
    print("told:", reason, flush=True)
    if sys.argv[1] == "disk":
        time.sleep(1000)

with Watch(Watchdog(seconds=0.4, factor=3.0, start_seconds=0.7), told) as watch:
    watch.on_end = lambda reason: print("then", flush=True)
    if sys.argv[1] == "start":
        waiting_for_ever()
    for _ in range(3):
        with watch.on("compute"):
            time.sleep(0.01)
    with watch.on("compute"):
        waiting_for_ever()
"""


def test_nothing_ends_any_more() -> None:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PROGRAM, ""], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and time.monotonic() - start < 30
    assert "watchdog: no end of compute in" in done.stderr and "it usually takes 0.0 s" in done.stderr
    assert "waiting_for_ever" in done.stderr, "the stack shows where"
    assert "error: no end of compute" in done.stderr and "goes on from the last checkpoint" in done.stderr
    assert done.stdout.startswith("told: no end of compute") and done.stdout.endswith("then\n")


def test_a_start_that_never_ends() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "start"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "error: no end of the start in 1 s" in done.stderr


@pytest.mark.slow
def test_a_status_that_cannot_be_written_does_not_hold_it_up() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "disk"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1


def test_limits_follow_what_the_part_usually_takes(tmp_path: Path) -> None:
    ended: list[str] = []
    watch = Watch(Watchdog(seconds=100.0, factor=10.0), ended.append)
    assert watch.limit("evaluation") == FIRST * 100.0, "never seen before"
    watch._known["evaluation"] = [20.0, 30.0, 400.0]  # type: ignore[assignment]
    assert watch.limit("evaluation") == 300.0, "ten times the median"
    watch._known["compute"] = [0.5, 0.5]  # type: ignore[assignment]
    assert watch.limit("compute") == FIRST * 100.0, "hardly seen"
    watch._known["compute"] = [0.5, 0.5, 0.5]  # type: ignore[assignment]
    assert watch.limit("compute") == 100.0, "not before the least"
    assert ended == []


@pytest.mark.parametrize("wrong", [{"factor": -1.0}, {"seconds": 0.0}, {"start_seconds": 0.0}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Watchdog(**wrong)


def test_a_run_that_moves_is_let_be() -> None:
    ended: list[str] = []
    with Watch(Watchdog(seconds=0.2, factor=2.0), ended.append) as watch:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            with watch.on("compute"):
                time.sleep(0.05)
    assert ended == []
