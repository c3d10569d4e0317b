"""A search tries what may fit, the most promising first; it keeps what it learns and goes on after a kill."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from t_elaine import interrupts, plan, searched
from t_elaine.config import gin_files, lint
from t_elaine.planning import search as searching
from t_elaine.planning.search import Search, Trial

GIB = 2**30
# Stands for a plan of its own: its rate is the rows, its memory too; it writes down that it ran.
STAND_IN = """
import json, sys, time
rows, folder, wait = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
open(f"{folder}/ran", "a").write(f"{rows}\\n")
time.sleep(wait)
if rows == 9:
    sys.exit("error: the compiler gives up")
told = {"memory": {"peak": rows * 2**30, "limit": 5 * 2**30}}
if rows <= 5:
    rate = {"sync exposed": 100.0 * rows}
    told |= {"step_seconds": {"sync exposed": 1.0}, "tokens_per_second_per_chip": rate, "mfu": {"sync exposed": 0.5}}
print(json.dumps(told))
"""


def trials(*rows: int) -> list[Trial]:
    fixed = {"ComputeConfig.attention": "splash", "ComputeConfig.attention_block": 512}
    fixed |= {"ComputeConfig.remat": "names", "ComputeConfig.saved": ("q",), "MeshConfig.fsdp": -1}
    return [Trial(settings={"train.rows_per_device": n, **fixed}) for n in rows]


def run(
    folder: Path, given: list[Trial], budget: float = 60.0, wait: float = 0.0, base: str = ""
) -> list[dict[str, Any]]:
    def command(values: Mapping[str, Any]) -> list[str]:
        return [sys.executable, "-c", STAND_IN, str(values["train.rows_per_device"]), str(folder), str(wait)]

    search = Search(folder=str(folder / "cache"), budget=budget)
    return searching.run(given, search, base, {"jax": "1"}, command, lambda line: None)


def ran(folder: Path) -> list[int]:
    path = folder / "ran"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_the_fastest_that_fits_comes_first_and_faults_are_told(tmp_path: Path) -> None:
    records = run(tmp_path, trials(2, 4, 7, 9))
    assert [r["settings"]["train.rows_per_device"] for r in records[:2]] == [4, 2]
    reasons = {r["settings"]["train.rows_per_device"]: r["reason"] for r in records}
    assert reasons[7] == "does not fit: 7.00 GiB" and reasons[9] == "the compiler gives up"
    table = searching.told(records, "python -m t_elaine.train")
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100 and "estimated, not measured" in lines[0]
    assert "400" in lines[3] and "best: python -m t_elaine.train" in table


def test_what_fits_without_a_time_is_not_said_not_to_fit() -> None:
    """For simulated devices nothing tells a time."""
    [settings] = [trial.settings for trial in trials(1)]
    table = searching.told([{"settings": settings, "peak": 1, "reason": searching.NO_TIME}], "")
    assert "cannot be ranked" in table and "nothing that was tried fits" not in table


def test_what_is_known_is_not_compiled_again_until_something_changes(tmp_path: Path) -> None:
    run(tmp_path, trials(1, 2))
    again = run(tmp_path, trials(1, 2, 3))
    assert ran(tmp_path) == [1, 2, 3] and [r["cached"] for r in again] == [False, True, True]
    run(tmp_path, trials(1), base="another recipe")
    assert ran(tmp_path) == [1, 2, 3, 1]


def test_a_spent_budget_stops_the_trial_and_leaves_the_rest(tmp_path: Path) -> None:
    begun = time.monotonic()
    records = run(tmp_path, trials(1, 2), budget=1.0, wait=30.0)
    assert time.monotonic() - begun < 15
    assert ran(tmp_path) == [1] and {r["reason"] for r in records} == {
        "stopped: budget spent",
        "not tried: budget spent",
    }
    assert not list((tmp_path / "cache").glob("*.json"))


def test_it_goes_on_after_a_kill(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {os.getcwd()!r})
from pathlib import Path
from tests.planning.test_search import run, trials
run(Path({str(tmp_path)!r}), trials(1, 2, 3), wait=0.5)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    cache = tmp_path / "cache"
    for _ in range(300):
        if list(cache.glob("*.json")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    known = len(list(cache.glob("*.json")))
    assert 1 <= known < 3
    records = run(tmp_path, trials(1, 2, 3))
    assert sum(r["cached"] for r in records) == known and len([r for r in records if "mfu" in r]) == 3


TINY = [
    *("--gin_file=cpt.gin", "--topology=v5e:2x2", "--gin.LlamaConfig.layers=2", "--gin.Mixture.sequence_length=1024"),
    *("--gin.Mixture.batch_tokens=8192", "--gin.ComputeConfig.attention='splash'", "--gin.LlamaConfig.embed=512"),
    *("--gin.LlamaConfig.mlp=1024", "--gin.LlamaConfig.vocab_size=2048"),
]


def test_the_command_that_comes_out_sets_all_that_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the flags of a person to the flags of `train`, through trials that a stand-in answers."""
    seen: list[list[str]] = []

    def stand_in(command: list[str], limit: float, environment: Mapping[str, str]) -> dict[str, Any]:
        seen.append(command)
        assert environment == {interrupts.ENDS_WITH: str(os.getpid())}
        rate = {"sync exposed": float(sum(map(ord, "".join(command))) % 997 + 1)}
        told = {"step_seconds": {"sync exposed": 1.0}, "mfu": {"sync exposed": 0.5}}
        return told | {"memory": {"peak": GIB, "limit": 2 * GIB}, "tokens_per_second_per_chip": rate}

    monkeypatch.setattr(searching, "_compiled", stand_in)
    choices = [f"--gin.Search.folder='{tmp_path}'", "--gin.Search.rows=(1, 2, 3)", "--gin.Search.blocks=(512,)"]
    assert plan.main([*TINY, "--search", "--json", *choices]) == 0
    told = json.loads(capsys.readouterr().out)
    reasons = [t["reason"] for t in told["trials"]]
    assert sum("does not divide" in reason for reason in reasons) == len(searching.REMAT)  # 3 rows
    assert len(seen) == 2 * len(searching.REMAT)
    assert all("--json" in command and "--search" not in " ".join(command) for command in seen)
    words = shlex.split(told["best"].replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "t_elaine.train"] and "plan." not in told["best"]
    files = [w.partition("=")[2] for w in words if w.startswith("--gin_file=")]
    bound = [w.removeprefix("--gin.").replace("=", " = ", 1) for w in words if w.startswith("--gin.")]
    lint.check("train", gin_files.statements(files, bound))
    best = max(told["trials"], key=lambda t: t.get("tokens_per_second_per_chip", 0))["settings"]
    assert f"train.rows_per_device = {best['train.rows_per_device']}" in bound


def test_settings_that_cannot_fit_are_not_compiled() -> None:
    from t_elaine.data.mixture import Mixture
    from t_elaine.planning.assumptions import Assumptions
    from t_elaine.training.loop import Loop
    from tests.planning.test_plan_memory import LLAMA_8B, USUAL

    data = Mixture(stores=("none",), sequence_length=8192, batch_tokens=8192 * 1024)
    training = {"model": LLAMA_8B, "compute": USUAL, "data": data, "loop": Loop(steps=10)}
    question = searched.with_settings(training, "v5e:16x16", 1, Assumptions())
    search = Search(rows=(1, 2, 4), blocks=(1024,))
    found = searching.ordered(searching.combinations(search, 1, "splash", {"fsdp": -1}), question)
    tried = [(t.settings["train.rows_per_device"], t.settings["ComputeConfig.saved"]) for t in found if not t.reason]
    assert (1, ("q", "k", "v", "attention")) in tried and (4, ("q", "k", "v", "attention")) not in tried
    assert all("by arithmetic" in t.reason for t in found if t.reason)
    assert [t.seconds for t in found if not t.reason] == sorted(t.seconds for t in found if not t.reason)
