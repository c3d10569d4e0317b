"""Profiles of single steps, the names of the step's parts in the compiled program, and what a start tells of itself."""

import dataclasses
import gzip
import json
import re
from pathlib import Path

import jax
import pytest

from t_elaine.errors import UserError
from t_elaine.parallel.mesh import MeshConfig
from t_elaine.training import step as steps
from t_elaine.training import tracing
from tests import programs, tiny_runs

SCOPES = ("embed", "attn", "mlp", "loss", "accumulation", "optimizer")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [tiny_runs.make_store(tmp_path_factory.mktemp("stores") / "alpha")]


def steps_traced(folder: Path) -> tuple[set[int], set[str]]:
    """Numbers of the steps in a trace, and the names of all its events."""
    (found,) = folder.glob("*.trace.json.gz")
    events = json.loads(gzip.decompress(found.read_bytes()))["traceEvents"]
    numbers = {
        int(e["args"]["step_num"])
        for e in events
        if e.get("name", "").startswith("train") and "step_num" in e.get("args", {})
    }
    return numbers, {event.get("name", "") for event in events}


def test_a_trace_holds_the_steps_that_were_asked_for_and_no_others(
    stores: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, settings = tmp_path / "run", {"steps": 8, "every": 4}
    assert tiny_runs.train_here(run_dir, stores, profile="2:3", stop_at=4, **settings) == 0
    root = run_dir / "profile" / "plugins" / "profile"
    assert [folder.name for folder in root.iterdir()] == ["steps-2-3"]
    numbers, names = steps_traced(root / "steps-2-3")
    assert numbers == {2, 3} and {"data", "waiting"} <= names
    (plane,) = (root / "steps-2-3").glob("*.xplane.pb")
    planes = {part.name: part for part in jax.profiler.ProfileData.from_file(str(plane)).planes}
    assert any(list(line.events) for part in planes.values() for line in part.lines)
    printed = capsys.readouterr().out
    assert f"trace of steps 2-3: {run_dir / 'profile'}" in printed
    assert re.search(r"step compiled in [\d.]+ s", printed)
    assert re.search(r"first step [\d.]+ s; a device holds [\d.]+ MiB in a step", printed)
    lines = [line for line in tiny_runs.lines(run_dir, timings=True) if line["kind"] == "train"]
    assert [line["step"] for line in lines if "compile_seconds" in line] == [1]
    assert all(line["device_memory"]["step"] > 1000 for line in lines)
    assert json.loads((run_dir / "status.json").read_text())["reason"] == "stopped as asked"

    # Of the steps asked for, only those that are still to be done are traced.
    assert tiny_runs.train_here(run_dir, stores, profile="3:5", **settings) == 0
    assert sorted(folder.name for folder in root.iterdir()) == ["steps-2-3", "steps-5-5"]
    assert steps_traced(root / "steps-5-5")[0] == {5}


def test_steps_done_already_are_not_traced(tmp_path: Path) -> None:
    told: list[str] = []
    traced = tracing.Traced(lambda state, batch: (state, batch), 8, range(5, 9), str(tmp_path), told.append)
    assert traced(1, 2) == (1, 2)
    traced.close()
    assert told == ["warning: steps up to 8 are done already: nothing is traced"] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["0", "5:3", "3:13", "three", "3:", "-1", "1:2:3"])
def test_steps_that_there_are_not_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--profile={text}")):
        tracing.steps_of(text, 12)


def test_steps_are_read_both_ends_included() -> None:
    assert list(tracing.steps_of("3", 12)) == [3] and list(tracing.steps_of("5:8", 12)) == [5, 6, 7, 8]
    assert not tracing.steps_of("", 12)


@pytest.mark.parametrize("remat", ["full", "none"])
def test_the_steps_parts_are_named_in_the_compiled_program(remat: str) -> None:
    """Forward and backward; and no scope has a name that estimates take for an attention kernel's."""
    step = programs.tiny_step(MeshConfig(fsdp=4, tensor=2), dataclasses.replace(programs.COMPUTE, remat=remat))
    lowered = step.run.lower(step.state_shapes, steps.batch_shapes(2, 8, programs.LENGTH, step.batch_sharding))
    names = set(re.findall(r'op_name="([^"]*)"', lowered.compile().as_text()))
    for scope in SCOPES:
        within = {name for name in names if re.search(rf"[/(]{scope}[)/]", name)}
        assert within, scope
        if scope in ("embed", "attn", "mlp"):
            assert any("transpose(" in name for name in within), scope
            assert any("transpose(" not in name for name in within), scope
    assert not any(re.search("splash|flash|attention|mha", name, re.IGNORECASE) for name in names if "(" in name)
