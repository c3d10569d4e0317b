"""The commands in a person's own folder, whatever stands in it: in processes of their own, as a person calls them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDERS = ("models", "recipes", "hardware", "sweeps", "mixtures", "data_tasks")
RECIPE = ("--gin_file=cpt.gin", "--gin_file=quickstart.gin", "--gin_file=hardware/cpu.gin")
GRID = "sweep.run_dir = %RUN_DIR\nsweep.grid = @axis()\naxis.name = 'Schedule.peak'\naxis.values = [1e-5]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with folders that bear the names of shipped ones."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    (tmp_path / "grid.gin").write_text(GRID)
    return tmp_path


def call(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("start", [("t_elaine.train",), ("t_elaine", "train")])
def test_shipped_recipes_are_read_beside_folders_of_their_names(folder: Path, start: tuple[str, ...]) -> None:
    """Far enough to see that all settings were made: the stores are missing."""
    done = call(folder, *start, *RECIPE)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "where: stores/" in done.stderr


def test_a_sweep_reads_them_too(folder: Path) -> None:
    done = call(folder, "t_elaine.sweep", *RECIPE, "--sweep=grid.gin", "--gin.RUN_DIR='rates'")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "1 of 1 runs failed" in done.stderr and "where: stores/" in done.stderr


@pytest.mark.parametrize("beside", [True, False])
def test_shipped_tasks_are_found_from_anywhere(folder: Path, beside: bool) -> None:
    """Far enough to see that the module defined its tasks: the one that is asked for does not exist."""
    if not beside:
        (folder / "data_tasks").rmdir()
    flags = ("--tasks=nothing_like_it", "--vocabulary={samples}", "--stores=stores")
    done = call(folder, "t_elaine.prepare", "--module=data_tasks.public_corpora", *flags)
    assert done.returncode == 2 and "error: no task or mixture 'nothing_like_it'" in done.stderr, done.stderr
    assert "pubmed" in done.stderr
