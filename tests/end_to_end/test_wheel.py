"""A built wheel, installed away from the checkout, carries everything that the road needs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def build(folder: Path) -> Path:
    """Build the wheel from a copy of what git tracks, so that no build folder is left in the checkout."""
    source = folder / "source"
    source.mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_every_tracked_file_that_it_needs(tmp_path: Path) -> None:
    names = set(zipfile.ZipFile(build(tmp_path)).namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    wanted = set()
    for name in tracked.splitlines():
        if name.startswith("t_elaine/"):
            wanted.add(name)
        elif name.startswith(("gin_configs/", "data_tasks/")):
            wanted.add(f"t_elaine/_shipped/{name}")
    assert wanted - names == set()
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/"))]


@pytest.mark.full
def test_wheel_runs_the_road_in_an_empty_environment(tmp_path: Path) -> None:
    wheel = build(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "-c", str(REPOSITORY / "constraints.txt"), f"{wheel}[data]"]
    subprocess.run(install, check=True, capture_output=True)
    work = tmp_path / "work"
    work.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "XLA_FLAGS"))}

    def run(command: str, *flags: str) -> None:
        done = subprocess.run(
            [str(python), "-m", f"t_elaine.{command}", *flags],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    run("prepare", "--gin_file=quickstart_data.gin")
    run("train", "--gin_file=cpt.gin", "--gin_file=quickstart.gin", "--gin.Loop.steps=4", "--gin.Checkpointing.every=2")
    run("export", "--checkpoint=runs/quickstart", "--to=out")
    assert (work / "out" / "model.safetensors").is_file()
    assert (work / "out" / "proof.json").is_file()
