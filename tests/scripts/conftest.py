"""A pod that is ACTIVE; what a test left running on its hosts is ended."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripts.cloud import Cloud, state


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path)
    made.answers(state("ACTIVE"))
    yield made
    for pid in made.folder.glob("slice-*/t-elaine-pod/run/pid"):
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue
