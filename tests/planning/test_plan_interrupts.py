"""Ctrl-C and SIGTERM while the compiler works: `plan` leaves at once, with its trials and what it began to write."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from t_elaine.planning import compile

# Layers one by one: minutes for the compiler.
LONG = [
    "--gin_file=cpt.gin",
    *(f"--gin.LlamaConfig.{name}" for name in ("layers=100", "embed=64", "mlp=128", "q_heads=4", "kv_heads=2")),
    *(f"--gin.LlamaConfig.{name}" for name in ("head_dim=16", "vocab_size=512")),
    *("--gin.Mixture.sequence_length=64", "--gin.Mixture.batch_tokens=1024", "--topology=cpu:8"),
    *("--gin.ComputeConfig.scan_layers=False", "--gin.ComputeConfig.loss_chunk=64"),
]
SEARCH = ["--search", "--gin.Search.folder='kept'", "--gin.Search.remat=('full',)", "--gin.Search.blocks=(16,)"]


@contextmanager
def compiling(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A plan in a process group of its own, whose compiler is at work."""
    temporary = folder / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "t_elaine.plan", *LONG, *arguments]
    variables = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, cwd=folder, env=variables, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            limit = time.monotonic() + 120
            while not list(temporary.glob("t-elaine-plan-*/*")):
                assert process.poll() is None and time.monotonic() < limit
                time.sleep(0.05)
            yield process
        finally:
            if lives(process.pid):
                os.killpg(process.pid, signal.SIGKILL)


def lives(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def gone(group: int, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while lives(group) and time.monotonic() < limit:
        time.sleep(0.05)
    return not lives(group)


def cleared(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the next plan finds nothing of one that is gone; the folder of one at work stays."""
    ours = temporary / f"{compile.DUMPS}{os.getpid()}-abc"
    ours.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    compile.clear_dumps()
    return list(temporary.iterdir()) == [ours]


@pytest.mark.parametrize(
    ("number", "code", "by"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "the keyboard")]
)
def test_a_compile_is_left_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, by: str
) -> None:
    with compiling(tmp_path, "--hlo_out=step.hlo") as process:
        begun = time.monotonic()
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]
        assert time.monotonic() - begun < 30, "about a second; the compiler would take minutes"
        assert process.returncode == code and f"stopped by {by}; " in told and "Traceback" not in told
    assert not list(tmp_path.glob("*step.hlo*"))
    assert cleared(tmp_path / "temporary", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_trials_of_a_search_do_not_outlive_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    with compiling(tmp_path, *SEARCH) as process:
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]
        assert gone(process.pid, 5)
        assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL)
        assert ("stopped by SIGTERM; trials" in told) == (number == signal.SIGTERM)
    assert list((tmp_path / "kept").iterdir()) == []
    assert cleared(tmp_path / "temporary", monkeypatch)
