"""benchmarks/gpu.py without a GPU: what it says, what it would choose, and a rehearsal of both sides."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu, gpu_sides

REPOSITORY = Path(__file__).resolve().parents[2]


def test_rows_are_packed_with_real_boundaries() -> None:
    rows = gpu_sides.batch(0, 1000, 2, 8192)
    segments, positions = rows["segments"], rows["positions"]
    assert (segments > 0).all() and (np.diff(segments) >= 0).all() and segments.max() > 5
    assert ((positions[:, 1:] == 0) == (np.diff(segments) == 1)).all()
    assert (np.diff(positions)[np.diff(segments) == 0] == 1).all()
    assert (rows["tokens"][:, 1:] == rows["targets"][:, :-1]).all()
    assert not np.array_equal(rows["tokens"], gpu_sides.batch(1, 1000, 2, 8192)["tokens"])


def test_the_slice_grows_with_the_card_and_leaves_room_for_the_peer() -> None:
    depths = [gpu.slice_depth(gigabytes << 30, 1, 8192) for gigabytes in (44, 72, 128)]
    assert depths == sorted(set(depths)) and depths[0] >= 1 and depths[-1] < 32
    assert gpu.slice_depth(128 << 30, 1, 8192) > gpu.slice_depth(128 << 30, 4, 8192)
    with pytest.raises(SystemExit):
        gpu.slice_depth(8 << 30, 1, 8192)


def test_the_figures_follow_from_the_times(capsys: pytest.CaptureFixture[str]) -> None:
    job = {"config": vars(gpu.ONE), "rows": 2, "length": 8192, "gpus": 4}
    told = gpu.judged(job, [(1.0, 1.2), (2.0, 2.8), (1.0, 1.5)], 1e15, rehearse=False)
    assert told["ratio"] == 1.4 and told["ours_tokens_per_s"] == 4 * 2 * 8192
    assert told["theirs_tokens_per_s"] == pytest.approx(4 * 2 * 8192 / 1.5, rel=1e-4)
    matrices = 16 * (2048 * 64 * 80 + 3 * 2048 * 8192) + 2048 * 128256
    a_token = 6 * matrices + 6 * 16 * 2048 * 8192  # half of attention's square
    assert told["share_of_matmul_rate"]["ours"] == pytest.approx(2 * 8192 * a_token / 1e15, abs=1e-3)
    said = capsys.readouterr().out
    assert "ratio: 1.400, goal 1.3: reached" in said and "of the card's matmul rate: 0.148, goal 0.5: missed" in said


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    none = {"gpus": 0, "torch_gpus": 0, "kind": "", "memory": 0, "versions": ""}
    monkeypatch.setattr(gpu, "turn", lambda job, rehearse: none)
    assert gpu.main([]) == 2
    said = capsys.readouterr()
    assert not said.out and "nothing was measured" in said.err and "--rehearse" in said.err


@pytest.mark.parametrize(("losses", "groups"), [([6.2, 6.1, 6.1], [6.2, 6.2]), ([6.2, 6.1, 6.0], [6.2, 6.22])])
def test_losses_that_part_end_it(losses: list[float], groups: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"ours": ([6.2, 6.1, 6.0], [6.2, 6.2]), "theirs": (losses, groups)}

    def turn(job: Mapping[str, Any], rehearse: bool) -> dict[str, Any]:
        told, by_group = said[job["side"]]
        return {"seconds": 1.0, "losses": told, "by_group": by_group}

    monkeypatch.setattr(gpu, "turn", turn)
    sides = ({"side": "ours", "gpus": 1}, {"side": "theirs", "mask": "packed"})
    with pytest.raises(SystemExit, match="the losses part"):
        gpu.pairs(*sides, 1, True)
    assert gpu.pairs(sides[0], {**sides[1], "mask": "causal"}, 1, True) == [(1.0, 1.0)]


@pytest.mark.full
def test_a_rehearsal_runs_both_sides_to_the_end() -> None:
    """Both sides of the real script in their own processes, with equal losses on the way."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    flags = ["--rehearse", "--models", "1b", "--pairs=1", "--steps=1", "--candidates", "flash_gpu 128, minimal"]
    command = [sys.executable, "-m", "benchmarks.gpu", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["rehearsal"] and told["1b"]["layers"] == 2 and told["1b"]["ratio"] > 0
    assert "REHEARSAL" in done.stdout and "rehearsed, not judged" in done.stdout and "reached" not in done.stdout
