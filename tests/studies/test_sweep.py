"""The command itself, on real miniature training runs: each in its process, one fails, a second call does the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_runs import make_store

TINY = """
include 'cpt.gin'
STORES = ('store',)
LlamaConfig:
  vocab_size = 64
  embed = 16
  mlp = 24
  layers = 2
  q_heads = 2
  kv_heads = 1
  head_dim = 8
  max_position = 64
Start.checkpoint = None
Mixture:
  sequence_length = 16
  batch_tokens = 128
  alpha = None
  max_epochs = None
  planned_tokens = None
  replay = None
Loop:
  steps = 3
  evaluate_every = 3
  evaluate_tokens = 200
ComputeConfig.dtype = 'float32'
Checkpointing.every = 3
train.compilation_cache = None
"""
GRID = """
sweep.run_dir = %RUN_DIR
sweep.grid = @axis()
axis.name = 'Mixture.batch_tokens'
axis.values = [100, 128]
"""


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "t_elaine.sweep", "--gin_file=tiny.gin", "--sweep=grid.gin", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_store(tmp_path / "store")
    (tmp_path / "tiny.gin").write_text(TINY)
    (tmp_path / "grid.gin").write_text(GRID)
    return tmp_path


@pytest.mark.slow
def test_a_sweep_of_real_runs_goes_on_where_it_was(folder: Path) -> None:
    """Batches of 128 tokens are 8 rows; batches of 100 are refused by the run itself."""
    done = sweep(folder, "--gin.RUN_DIR='sizes'", "--parallel=2")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: 1 of 2 runs failed" in done.stderr and "a batch of 100 tokens" in done.stderr
    good, bad = json.loads((folder / "sizes" / "sweep.json").read_text())["runs"]
    assert [good["state"], good["step"], bad["state"]] == ["finished", 3, "failed"] and 2 < good["metric"] < 8
    assert "batch_tokens = 128\n" in (folder / "sizes" / good["name"] / "config.gin").read_text()
    assert (folder / "sizes" / "sweep.html").exists()

    again = sweep(folder, "--gin.RUN_DIR='sizes'")
    assert "1 of 2 runs were finished before" in again.stdout and again.stdout.count(": started") == 1
    assert json.loads((folder / "sizes" / "sweep.json").read_text())["runs"][0] == {**good, "code": None}


def test_a_wrong_axis_is_refused_before_a_run_starts(folder: Path) -> None:
    (folder / "grid.gin").write_text(GRID.replace("batch_tokens", "batch_token"))
    done = sweep(folder, "--gin.RUN_DIR='rates'")
    assert done.returncode == 2 and "did you mean batch_tokens?" in done.stderr and "grid.gin:4" in done.stderr
    assert not (folder / "rates").exists()
