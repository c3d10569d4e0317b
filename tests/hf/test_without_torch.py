"""An export where transformers is installed and PyTorch is not, or only half of it is."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
{before}
from t_elaine.hf.exporting import export_checkpoint
from tests.hf.models import encode
export_checkpoint(sys.argv[1], sys.argv[2], encode)
"""
HALF = "raise ModuleNotFoundError(\"No module named 'torch._C'\")\n"


@pytest.mark.parametrize("kind", ["absent", "half", pytest.param("empty", marks=pytest.mark.slow)])
def test_what_is_not_compared_is_said(tmp_path: Path, imported_run: Callable[[str], Path], kind: str) -> None:
    shadow = tmp_path / "shadow"
    (shadow / "torch").mkdir(parents=True)
    (shadow / "torch" / "__init__.py").write_text(HALF if kind == "half" else "")
    script = SCRIPT.format(before="sys.modules['torch'] = None" if kind == "absent" else "")
    own = {**os.environ, "PYTHONPATH": f"{shadow}{os.pathsep}{REPOSITORY}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script, str(imported_run("llama3")), str(tmp_path / "out")]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    reason = {"absent": "PyTorch is not installed", "half": "does not load (No module named 'torch._C')"}.get(kind, "")
    told = next(line for line in done.stdout.splitlines() if "not compared through transformers: " in line)
    assert reason in told
    assert "Traceback" not in done.stderr and "PyTorch was not found" not in done.stdout + done.stderr
    proof = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert reason in proof["not_compared"]["transformers"] and len(proof["logits"]) == 2
    assert f"Not compared through transformers: {proof['not_compared']['transformers']}." in (
        tmp_path / "out" / "README.md"
    ).read_text(encoding="utf-8")
    assert proof["passed"] is proof["weights_and_logits_passed"] is True
