"""The whole road with every path in an object store: prepare, train, evaluate, export, import, evaluate, report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t_elaine import paths
from tests.storage.bucket import Bucket

SMALL = [
    "--gin_file=cpt.gin", "--gin_file=quickstart.gin", "--gin.LlamaConfig.embed=32", "--gin.LlamaConfig.mlp=64",
    "--gin.LlamaConfig.layers=1", "--gin.LlamaConfig.head_dim=8", "--gin.Mixture.sequence_length=64",
    "--gin.Mixture.batch_tokens=512", "--gin.Loop.steps=6", "--gin.Loop.evaluate_every=3",
    "--gin.Loop.evaluate_tokens=512", "--gin.Checkpointing.every=3", "--gin.Checkpointing.permanent_every=None",
]  # fmt: skip


def command(name: str, *arguments: str) -> str:
    """Run a command; what it prints."""
    line = [sys.executable, "-m", f"t_elaine.{name}", *arguments]
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_path_may_lie_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    there = bucket.url
    bucket.faults({"match": ".", "status": 503, "every": 150, "times": 4})
    stores = [f"{there}/stores/samples_{language}" for language in ("en", "ja", "zh")]
    staging = f"--gin.prepare.staging='{tmp_path}'"
    tasks = "--tasks=samples", "--vocabulary={samples}", f"--stores={there}/stores"
    command("prepare", *tasks, staging, "--gin.prepare.validation_share=0.15", "--shards=2", "--workers=1")
    run = f"--gin.RUN_DIR='{there}/run'"
    weights = f"--gin.Mixture.defaults='{there}/stores/mixtures/samples.json'"
    said = command("train", *SMALL, run, weights, f"--gin.STORES={stores!r}")
    assert "finished at step 6 of 6" in said
    command("evaluate", f"--checkpoint={there}/run", f"--stores={stores[0]}", "--exams=samples/en", "--limit=6")
    result = json.loads(paths.read_text(f"{there}/run/evaluation/step-6.json"))
    command("export", f"--checkpoint={there}/run", f"--to={there}/hf")
    assert json.loads(paths.read_text(f"{there}/hf/proof.json"))["passed"] is True
    command("import_hf", f"--hf={there}/hf", f"--to={there}/again", "--gin.import_hf.untrained=True")
    command(
        "evaluate", f"--checkpoint={there}/again", f"--stores={stores[0]}", "--exams=samples/en", "--limit=6"
    )  # fmt: skip
    again = json.loads(paths.read_text(f"{there}/again/evaluation/step-0.json"))
    # Of the import, nobody knows what its parent was trained on.
    known = [exam.pop("contamination")["known"] for found in (result, again) for exam in found["exams"]]
    assert known == [True, False]
    assert result["bits_per_byte"] == again["bits_per_byte"] and result["exams"] == again["exams"]
    command("report", f"{there}/run", f"--exports={there}/hf")
    page = paths.read_text(f"{there}/run/report.html")
    assert "<svg" in page or "data:image" in page
