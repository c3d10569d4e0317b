"""An exam by likelihood through vLLM, in a worker and as an OpenAI-compatible server: our own engine's choices.

Needs a Python with vLLM, named in T_ELAINE_VLLM_PYTHON (docs/evaluation.md, "Other engines", says how to make one).
"""

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.evaluate import evaluate
from tests.evaluation.making import make_store

PYTHON = os.environ.get("T_ELAINE_VLLM_PYTHON", "")
SECONDS = 600  # for a server to be there


@contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """The address of vLLM's own server with the model as "served", while the block lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    how = ["--served-model-name", "served", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *how]
    with log.open("wb") as told:
        place = {"cwd": log.parent, "stdout": told, "stderr": told}  # not where a folder may be called as a package is
        server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], **place)
        try:
            wait(server, f"http://127.0.0.1:{port}/v1/models", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=60)


def wait(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    for _ in range(SECONDS):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text(errors="replace")[-2000:]
            time.sleep(1)
    pytest.fail(f"no server after {SECONDS} s: {log.read_text(errors='replace')[-2000:]}")


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_same_choices_and_bits(smollm2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not PYTHON:
        pytest.skip("no environment with vLLM: name its Python in T_ELAINE_VLLM_PYTHON")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    make_store(tmp_path / "held", load_vocabulary(smollm2_dir))
    given: dict[str, Any] = {"stores": (str(tmp_path / "held"),), "limit": 2, "sequence_length": 512, "resamples": 50}
    given |= {"to": str(tmp_path / "results"), "contamination": False}
    evaluate(checkpoint=str(smollm2_dir), name="ours", **given)
    evaluate(checkpoint=str(smollm2_dir), name="vllm", engine="vllm", engine_python=PYTHON, **given)
    with serving(smollm2_dir, tmp_path / "server.log") as address:
        evaluate(checkpoint="served", name="served", engine=address, vocabulary=str(smollm2_dir), **given)
    ours, *others = (
        json.loads((tmp_path / "results" / f"{name}.json").read_text()) for name in ("ours", "vllm", "served")
    )
    for other in others:
        for mine, theirs in zip(ours["exams"], other["exams"], strict=True):
            for one, same in zip(mine["items"], theirs["items"], strict=True):
                for way, found in one["child"].items():
                    assert same["child"][way]["choice"] == found["choice"]
                    np.testing.assert_allclose(same["child"][way]["scores"], found["scores"], atol=5e-3)
        for mine, theirs in zip(ours["bits_per_byte"], other["bits_per_byte"], strict=True):
            assert theirs["child"]["value"] == pytest.approx(mine["child"]["value"], abs=5e-5)
