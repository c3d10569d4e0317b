"""The benchmark beside PEFT runs, and both sides' losses stay together; at two layers, so that it takes a minute."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.full
@pytest.mark.parametrize("more", [[], ["--dora"]], ids=["lora", "dora"])
def test_twenty_losses_are_pefts(more: list[str]) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed")
    sizes = ["--losses=20", "--layers=2", "--rows=2", "--length=64", "--rank=4"]
    command = [sys.executable, "-m", "benchmarks.finetune", *sizes, *more]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False)
    found = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and found["steps"] == 20 and found["largest"] < 1e-3
    assert found["last"][0] < found["first"][0]
