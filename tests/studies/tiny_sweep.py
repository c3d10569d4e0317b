"""A sweep of two miniature training runs: its files, and the command in a process of its own. No tests."""

import os
import subprocess
import sys
from pathlib import Path

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


def write(folder: Path, tiny: str = TINY, grid: str = GRID) -> Path:
    """The store and the two gin files."""
    make_store(folder / "store")
    (folder / "tiny.gin").write_text(tiny)
    (folder / "grid.gin").write_text(grid)
    return folder


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """The command, its working folder being `folder`."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "t_elaine.sweep", "--gin_file=tiny.gin", "--sweep=grid.gin", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def sweep(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command, waited for."""
    process = start(folder, *arguments)
    told, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, told, errors)
