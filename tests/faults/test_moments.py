"""export and import_hf killed by SIGKILL at twenty seeded moments each: the older folder or the new one is whole.

The next start clears what the killed one left and ends, bit for bit, with what an undisturbed one makes.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from t_elaine import export, import_hf
from t_elaine.checkpoints import reading
from tests.hf.models import contents, whole_model

REPOSITORY = Path(__file__).resolve().parents[2]
MOMENTS = 20
# Says when it begins, so that the moments fall into the work and not into the seconds of loading libraries.
SCRIPT = """
import sys
from t_elaine import {command}
from t_elaine.hf import reference
reference.transformers_lack = lambda parameters: "not tried"
print("begun", flush=True)
code = {command}.main(sys.argv[1:])
print("done", flush=True)
sys.exit(code)
"""
Main = Callable[[list[str]], int]
Picture = dict[str, object]


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Path:
    to = tmp_path / "imported" / "run"
    assert import_hf.main([f"--hf={model}", f"--to={to}"]) == 0
    return to


def start(command: str, arguments: list[str], kill_at: str = "", stderr: int | None = None) -> "subprocess.Popen[str]":
    """The command, begun: its libraries are loaded."""
    environment = {**os.environ, "T_ELAINE_KILL_AT": kill_at, "XLA_FLAGS": ""}
    script = [sys.executable, "-c", SCRIPT.format(command=command), *arguments]
    process = subprocess.Popen(
        script, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def seconds_of(command: str, arguments: list[str]) -> float:
    """How long an undisturbed command works in a process of its own."""
    process, began = start(command, arguments), time.monotonic()
    assert process.stdout is not None
    while process.stdout.readline() not in ("done\n", ""):
        pass
    took = time.monotonic() - began
    assert process.wait(60) == 0
    return took


def kill_again_and_again(
    command: str,
    main: Main,
    arguments: list[str],
    to: Path,
    older: Path,
    picture: Callable[[Path], Picture],
    points: Sequence[str],
) -> None:
    """Half of the moments over an older folder, half over nothing; most by the clock, some at a fault point."""
    chance, killed, hidden = random.Random(11), 0, 0
    took = seconds_of(command, [*arguments, f"--to={to}"])
    old, new = picture(older), picture(to)
    assert old != new
    shutil.rmtree(to)
    for moment in range(MOMENTS):
        over = moment % 2 == 0
        if over:
            shutil.copytree(older, to)
        clock = chance.random() < 0.6
        point = "" if clock else chance.choice(points)
        process = start(command, [*arguments, f"--to={to}", "--overwrite"], point)
        if clock:
            time.sleep(chance.uniform(0, took))
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=100)
        killed += process.returncode == -signal.SIGKILL
        left = sorted(path.name for path in to.parent.iterdir())
        hidden += f".{to.name}.building" in left
        kept = to if to.exists() else to.parent / f".{to.name}.replaced"
        if over or kept.exists():
            assert picture(kept) in ([old, new] if over else [new]), f"moment {moment}: neither is whole"
        assert main([*arguments, f"--to={to}", "--overwrite"]) == 0
        assert picture(to) == new and list(to.parent.iterdir()) == [to], f"moment {moment} left {left}"
        shutil.rmtree(to)
    assert killed >= MOMENTS // 2 and hidden >= 3, (killed, hidden, took)


def exported(folder: Path) -> Picture:
    """Every file, but for the seconds that an export took."""
    found: Picture = dict(contents(folder))
    found["proof.json"] = json.loads((folder / "proof.json").read_text()) | {"seconds": None}
    return found


def imported(folder: Path) -> Picture:
    """Every small file and the bytes of every parameter; a checkpoint's own records hold times."""
    found: Picture = {name: data for name, data in contents(folder).items() if not name.startswith("checkpoints/")}
    for name in reading.tensors(str(folder), 0):
        found[f"params/{name}"] = np.ascontiguousarray(reading.read_tensor(str(folder), 0, name)).tobytes()
    return found


@pytest.mark.full
def test_export_killed_at_twenty_seeded_moments(run: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    assert export.main([f"--checkpoint={run}", f"--to={older}", "--dtype=bfloat16"]) == 0
    to, arguments = tmp_path / "exports" / "out", [f"--checkpoint={run}"]
    points = [f"export.mid_write:{visit}" for visit in range(1, 31)]
    kill_again_and_again("export", export.main, arguments, to, older, exported, points)


@pytest.mark.full
def test_import_killed_at_twenty_seeded_moments(model: Path, tmp_path: Path) -> None:
    another = whole_model(tmp_path / "another", "llama32_tied")
    older = tmp_path / "older"
    assert import_hf.main([f"--hf={another}", f"--to={older}"]) == 0
    to, arguments = tmp_path / "imports" / "run", [f"--hf={model}"]
    points = ["checkpoint.mid_save", "checkpoint.before_digests", "checkpoint.after_digests", "import_hf.before_rename"]
    kill_again_and_again("import_hf", import_hf.main, arguments, to, older, imported, points)


def test_a_start_clears_the_hidden_folder_of_a_killed_one(run: Path, tmp_path: Path) -> None:
    """Also where it is another command's time, another dtype, or a target that was not there."""
    to = tmp_path / "exports" / "out"
    process = start("export", [f"--checkpoint={run}", f"--to={to}"], "export.mid_write:9")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    hidden = to.parent / ".out.building"
    assert [path.name for path in to.parent.iterdir()] == [hidden.name] and list(hidden.iterdir())
    (hidden / "model-00009-of-00009.safetensors").write_bytes(b"of other times")
    assert export.main([f"--checkpoint={run}", f"--to={to}", "--dtype=bfloat16"]) == 0
    assert list(to.parent.iterdir()) == [to]
    assert [p.name for p in to.glob("*.safetensors")] == ["model.safetensors"]
