"""A whole run with its stores and its folder in an object store: equal to a local one, through throttling and kills."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from t_elaine import paths
from t_elaine.checkpoints import layout, verify
from t_elaine.checkpoints.reading import read_tensor, tensors
from t_elaine.errors import UserError
from t_elaine.hf.folders import copy_into
from t_elaine.reporting.record import read_record
from t_elaine.training.lease import Lease, held
from tests import tiny_runs
from tests.storage.bucket import Bucket

SPRINKLED = [
    {"match": "checkpoints", "status": 503, "every": 40, "times": 2},
    {"match": "POST .*upload", "status": 429, "every": 25, "times": 2},
    {"match": "GET .*train-", "status": 429, "every": 3, "times": 1},
]


def weights(run_dir: str, step: int) -> dict[str, np.ndarray]:
    return {name: read_tensor(run_dir, step, name) for name in tensors(run_dir, step)}


def losses(run_dir: str) -> dict[int, float]:
    names = [n for n in paths.listing(run_dir) if n.startswith("metrics")]
    lines = [json.loads(line) for n in names for line in paths.read_text(paths.join(run_dir, n)).splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def same(one: str, other: str, step: int) -> None:
    here, there = weights(one, step), weights(other, step)
    assert sorted(here) == sorted(there) and all(np.array_equal(here[name], there[name]) for name in here)


def test_a_run_there_is_bitwise_the_run_here_through_throttling(bucket: Bucket, tmp_path: Path) -> None:
    store = tiny_runs.make_store(tmp_path / "s")
    far = f"{bucket.url}/stores/s"
    copy_into(store, far, last="manifest.json")
    assert tiny_runs.train_here(tmp_path / "run", [store], steps=6) == 0
    bucket.faults(*SPRINKLED)
    run = f"{bucket.url}/run"
    assert tiny_runs.train_here(run, [far], steps=6) == 0  # type: ignore[arg-type]
    bucket.faults()
    same(str(tmp_path / "run"), run, 6)
    assert losses(run) == losses(str(tmp_path / "run")) and sorted(losses(run)) == [1, 2, 3, 4, 5, 6]
    assert json.loads(paths.read_text(f"{run}/status.json"))["state"] == "finished"
    assert "lease.json" not in paths.listing(run)
    assert layout.complete_steps(run) == [3, 6] and verify.faults(layout.step_dir(run, 6)) == []
    assert [n for n in paths.listing(f"{run}/tensorboard") if "events" in n]
    assert read_record(run)


def test_no_tensorflow_is_loaded_for_an_object_store(bucket: Bucket) -> None:
    program = (
        "import sys, jax.numpy as jnp; from t_elaine.checkpoints import layout, writing, reading\n"
        "meta = layout.CheckpointMeta(step=0, tokens=0, row=0, vocabulary_sha256='', model={}, config_hash='')\n"
        f"writing.save_params('{bucket.url}/run', 0, {{'a': jnp.ones(3)}}, meta)\n"
        f"print(reading.read_tensor('{bucket.url}/run', 0, 'a'), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split("\n")[0] == "[1. 1. 1.] False", done.stderr


@pytest.mark.slow
def test_a_kill_during_an_upload_costs_the_steps_since_the_last_checkpoint(bucket: Bucket, tmp_path: Path) -> None:
    store = tiny_runs.make_store(tmp_path / "s")
    run = f"{bucket.url}/run"
    # The data of checkpoint 6 are on their way for long, so that the kill comes in the midst of them.
    bucket.faults({"match": r"POST .*checkpoints/6/params/.*/d/", "delay": 60, "times": 100})
    here = run.split("/", 3)[3]
    process = tiny_runs.start_process(run, [store], steps=9)
    until = time.monotonic() + 200
    while not any(f"{here}/checkpoints/6/params" in line and "POST" in line for line in bucket.seen()):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    bucket.faults()
    assert layout.complete_steps(run) == [3] and paths.listing(f"{run}/checkpoints") == ["3", "6"]
    assert json.loads(paths.read_text(f"{run}/status.json"))["state"] == "running"
    code, output = tiny_runs.train_process(run, [store], steps=9)
    assert code == 0, output
    assert "removing checkpoint 6: it was never completed" in output and "going on from checkpoint 3" in output
    assert "which has ended" in output
    assert tiny_runs.train_process(tmp_path / "run", [store], steps=9)[0] == 0
    same(str(tmp_path / "run"), run, 9)
    assert losses(run) == losses(str(tmp_path / "run"))


@pytest.mark.full
@pytest.mark.parametrize(
    "moment",
    ["checkpoint.before_save", "checkpoint.mid_save", "checkpoint.before_digests", "checkpoint.after_digests"],
)
def test_a_kill_at_any_moment_of_a_save(bucket: Bucket, tmp_path: Path, moment: str) -> None:
    store = tiny_runs.make_store(tmp_path / "s")
    run = f"{bucket.url}/run"
    code, output = tiny_runs.train_process(run, [store], steps=6, kill_at=moment)
    assert code == -signal.SIGKILL, output
    code, output = tiny_runs.train_process(run, [store], steps=6)
    assert code == 0, output
    assert tiny_runs.train_process(tmp_path / "run", [store], steps=6)[0] == 0
    same(str(tmp_path / "run"), run, 6)


def test_a_bucket_without_rights_ends_in_three_lines(bucket: Bucket, tmp_path: Path) -> None:
    store = tiny_runs.make_store(tmp_path / "s")
    bucket.faults({"match": "POST .*checkpoints/3/", "status": 403, "times": 10**6})
    with pytest.raises(UserError, match="checkpoint 3 could not be saved") as told:
        tiny_runs.train_here(f"{bucket.url}/run", [store], steps=6)  # type: ignore[arg-type]
    assert told.value.mend == "look at bucket, permissions and network"
    bucket.faults()
    assert json.loads(paths.read_text(f"{bucket.url}/run/status.json"))["state"] == "stopped"
    assert layout.complete_steps(f"{bucket.url}/run") == []


def test_a_second_run_in_the_folder_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    store = tiny_runs.make_store(tmp_path / "s")
    settings = Lease(stale_seconds=3, heartbeat_seconds=0.5)
    with (
        held(f"{bucket.url}/run", settings, False, print),
        pytest.raises(UserError, match=f"in use by process {os.getpid()} "),
    ):
        tiny_runs.train_here(f"{bucket.url}/run", [store], lease=settings)  # type: ignore[arg-type]
    assert paths.listing(f"{bucket.url}/run") == []


@pytest.mark.full
def test_two_processes_write_one_checkpoint(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tiny_runs.make_store(tmp_path / "s")
    far, run = f"{bucket.url}/stores/s", f"{bucket.url}/run"
    copy_into(store, far, last="manifest.json")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("T_ELAINE_COORDINATOR", f"127.0.0.1:{port}")
    monkeypatch.setenv("T_ELAINE_PROCESSES", "2")
    for steps in (3, 6):  # the second time they go on from what they wrote
        started = []
        for number in range(2):
            monkeypatch.setenv("T_ELAINE_PROCESS", str(number))
            started.append(tiny_runs.start_process(run, [far], steps=steps))
        told = [process.communicate(timeout=400)[0] for process in started]
        assert [process.returncode for process in started] == [0, 0], told
    assert "going on from checkpoint 3" in told[0] and layout.complete_steps(run) == [3, 6]
    assert {"digests.json", "digests.1.json"} <= set(paths.listing(layout.step_dir(run, 6)))
    assert verify.faults(layout.step_dir(run, 6)) == []
