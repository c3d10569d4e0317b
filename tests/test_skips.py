"""Skips are counted by reason, and too many of them fail the run."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MAX_SKIPS

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("too_many", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_too_many_skips_fail_the_run(tmp_path: Path, too_many: int) -> None:
    count = MAX_SKIPS + too_many
    file = tmp_path / "test_made_up.py"
    marks = (
        f"import pytest\n@pytest.mark.parametrize('i', range({count}))\n@pytest.mark.skip(reason='no such device')\n"
    )
    file.write_text(f"{marks}def test_one(i):\n    pass\ndef test_two():\n    pass\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", f"--basetemp={tmp_path / 'base'}", file]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == bool(too_many), done.stdout + done.stderr
    assert f"skipped {count}: no such device" in done.stdout
    told = f"failed: {count} tests were skipped, at most {MAX_SKIPS} may be"
    assert (told in done.stdout) == bool(too_many)
