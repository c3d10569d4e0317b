"""Preferences with pairs and run in an object store: the run is the local one, and goes on with the kept sums."""

from pathlib import Path

import numpy as np
import pytest

from t_elaine import paths
from t_elaine.hf.folders import copy_into
from t_elaine.preferring import FILE
from tests.end_to_end.test_preference_runs import RPO, make_base
from tests.storage.bucket import Bucket
from tests.storage.test_training import SPRINKLED, losses, same
from tests.tiny_runs import make_store, train_here


def test_a_run_there_is_bitwise_the_run_here(bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pairs, base = make_store(tmp_path / "pairs", pairs=True), make_base(tmp_path / "base")
    far = f"{bucket.url}/stores/pairs"
    copy_into(pairs, far, last="manifest.json")
    short = {"steps": 4, "every": 2, "evaluate_every": 2, "packing": "whole"}
    short |= {"preference": RPO, "checkpoint": str(base)}
    assert train_here(tmp_path / "run", [pairs], **short) == 0
    bucket.faults(*SPRINKLED)
    run = f"{bucket.url}/run"
    train_here(run, [far], stop_at=2, **short)  # type: ignore[arg-type]
    capsys.readouterr()
    assert train_here(run, [far], **short) == 0  # type: ignore[arg-type]
    bucket.faults()
    assert f"pairs: read from {run}/{FILE}" in capsys.readouterr().out
    with paths.open_file(f"{run}/{FILE}") as there, np.load(there) as found, np.load(tmp_path / "run" / FILE) as here:
        assert all(np.array_equal(found[name], here[name], equal_nan=True) for name in here.files if name != "record")
    same(str(tmp_path / "run"), run, 4)
    assert losses(run) == losses(str(tmp_path / "run")) and sorted(losses(run)) == [1, 2, 3, 4]
