"""The command itself, on real miniature training runs: each in its process, one fails, a second call does the rest."""

import json
from pathlib import Path

import pytest

from tests.studies.tiny_sweep import GRID, sweep, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path)


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
