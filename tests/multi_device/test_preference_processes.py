"""Preferences learned by two processes with one device each: the sums and the losses are those of one process."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest
import tiny_runs

from t_elaine.preferring import FILE
from t_elaine.training.preference import Preference
from tests.end_to_end.test_lora_runs import make_base

SHORT: dict[str, Any] = {"steps": 4, "every": 2, "evaluate_every": 2, "packing": "whole", "rows_per_device": 4}
RPO = Preference(beta=0.2, rpo_alpha=0.5)
KILL = {1: {"T_ELAINE_KILL_AT": "checkpoint.after_digests:1"}}  # checkpoint 2 is not complete


class Runs:
    """Jobs on one start and one store, always with two devices in all."""

    def __init__(self, folder: Path, cache: str) -> None:
        self.folder, self._cache = folder, cache
        self.jobs: list[jobs.Job] = []
        make_base(folder / "base")
        self._store = tiny_runs.make_store(folder / "pairs", pairs=True)

    def start(self, name: str, processes: int, **given: Any) -> jobs.Job:
        changes = {**SHORT, "checkpoint": str(self.folder / "base"), "preference": RPO}
        text = jobs.gin_text(self.folder / name, [self._store], compilation_cache=self._cache, **changes)
        job = jobs.start(self.folder, text, processes=processes, devices=2 // processes, **given)
        self.jobs.append(job)
        return job


@pytest.fixture(scope="module")
def runs(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("preferences"), cache)
    yield made
    for job in made.jobs:
        job.kill()


@pytest.mark.full
def test_two_processes_learn_what_one_does(runs: Runs) -> None:
    """One of two is killed; both go on with the start's sums that were kept."""
    alone = runs.start("alone", 1)
    assert alone.wait() == [0], alone.told()
    job = runs.start("two", 2, variables=KILL)
    assert job.wait()[1] == -signal.SIGKILL, job.told()
    before = (runs.folder / "two" / FILE).read_bytes()
    job = runs.start("two", 2)
    assert job.wait() == [0, 0], job.told()
    assert (runs.folder / "two" / FILE).read_bytes() == before
    assert "pairs: read from" in job.output(0) and "pairs: read from" not in job.output(1)
    with np.load(runs.folder / "two" / FILE) as here, np.load(runs.folder / "alone" / FILE) as there:
        tables = [name for name in there.files if name.startswith("table")]
        assert tables and here["record"].tobytes() == there["record"].tobytes()
        for name in tables:
            np.testing.assert_allclose(here[name], there[name], rtol=1e-5)
    found, wanted = tiny_runs.lines(runs.folder / "two"), tiny_runs.lines(runs.folder / "alone")
    found = [line for line in found if line["kind"] != "resume"]
    assert [(line["kind"], line["step"]) for line in found] == [(line["kind"], line["step"]) for line in wanted]
    for line, other in zip(found, wanted, strict=True):
        assert line["pairs"] == other["pairs"]
        for key in ("loss", "margin", "chosen_nll"):
            assert line[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6), (key, line["step"])
