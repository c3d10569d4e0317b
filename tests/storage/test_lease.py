"""The lease of a run's folder: one holder, a heartbeat, stale after a while, taken over only on demand."""

import json
import os
import threading
import time

import pytest

from t_elaine import paths
from t_elaine.errors import UserError
from t_elaine.reporting.record import true_status
from t_elaine.training import lease
from t_elaine.training.lease import Lease, held
from tests.storage.bucket import Bucket

QUICK = Lease(stale_seconds=1.5, heartbeat_seconds=0.3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE", 0.05)


def left(run: str, beats: bool = False, **changes: object) -> threading.Event:
    """A lease of another host, as if it were there; with `beats` it lives until the event is set."""
    mine = {"host": "far", "pid": 7, "token": "t", "since": "yesterday", "every": 0.3, **changes}
    paths.write_text(f"{run}/lease.json", lease._text(mine))
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.2):
            paths.write_text(f"{run}/lease.json", lease._text(mine))

    if beats:
        threading.Thread(target=beat, daemon=True).start()
    return ended


def test_the_folder_is_free_again_afterwards(bucket: Bucket) -> None:
    with held(bucket.url, QUICK, False, print):
        mine = lease.read(f"{bucket.url}/lease.json")
        assert mine is not None and mine["pid"] == os.getpid()
        time.sleep(0.8)
        later = lease.read(f"{bucket.url}/lease.json")
        assert later is not None and later["beat"] > mine["beat"] and later["token"] == mine["token"]
    assert paths.listing(bucket.url) == []


def test_a_living_holder_is_named_and_left_alone(bucket: Bucket) -> None:
    ended, said = left(bucket.url, beats=True), list[str]()
    with (
        pytest.raises(UserError, match=r"in use by process 7 on far \(since yesterday"),
        held(bucket.url, QUICK, False, said.append),
    ):
        raise AssertionError("two hold it")
    ended.set()
    assert "waiting" in said[0] and json.loads(paths.read_text(f"{bucket.url}/lease.json"))["host"] == "far"


def test_a_stale_lease_is_taken(bucket: Bucket) -> None:
    left(bucket.url)
    said, began = list[str](), time.monotonic()
    with held(bucket.url, QUICK, False, said.append):
        assert time.monotonic() - began >= 1.3
        assert json.loads(paths.read_text(f"{bucket.url}/lease.json"))["pid"] == os.getpid()
    assert "stale" in said[-1]


def test_a_process_of_this_host_that_has_ended_holds_nothing(bucket: Bucket) -> None:
    import socket
    import subprocess
    import sys

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left(bucket.url, host=socket.gethostname(), pid=gone.pid)
    said, began = list[str](), time.monotonic()
    with held(bucket.url, QUICK, False, said.append):
        assert time.monotonic() - began < 1.0
    assert "which has ended" in said[0]


def test_taking_over_says_whose_it_was_and_the_old_holder_stops(bucket: Bucket) -> None:
    lost, said = list[str](), list[str]()
    with held(bucket.url, QUICK, False, print, lost.append), held(bucket.url, QUICK, True, said.append):
        until = time.monotonic() + 5
        while not lost and time.monotonic() < until:
            time.sleep(0.05)
        assert said[0].startswith(f"taking the run folder over from process {os.getpid()}")
        assert lost and str(os.getpid()) in lost[0]


def test_of_many_at_once_one_gets_it(bucket: Bucket) -> None:
    left(bucket.url)
    inside, most, refused = [0], [0], list[str]()
    count = threading.Lock()

    def one() -> None:
        try:
            with held(bucket.url, QUICK, False, lambda text: None):
                with count:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                time.sleep(2.5)
                with count:
                    inside[0] -= 1
        except UserError as error:
            refused.append(error.what)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and len(refused) == 3


def test_a_store_that_does_not_answer_for_a_while_loses_no_run(bucket: Bucket) -> None:
    said = list[str]()
    with held(bucket.url, QUICK, False, said.append, lambda owner: said.append("lost")):
        bucket.faults({"match": "lease", "status": 403, "times": 2})
        time.sleep(1.2)
    assert any("could not be renewed" in text for text in said) and "lost" not in said


def test_bad_settings_and_a_damaged_lease(bucket: Bucket) -> None:
    with pytest.raises(UserError, match="heartbeat_seconds 10"):
        Lease(stale_seconds=20, heartbeat_seconds=10)
    paths.write_text(f"{bucket.url}/lease.json", "{")
    with pytest.raises(UserError, match="lease cannot be read"), held(bucket.url, QUICK, False, print):
        pass


def test_the_page_of_a_killed_run_does_not_call_it_running(bucket: Bucket) -> None:
    running = {"state": "running", "reason": "", "step": 4, "host": "far"}
    assert true_status(bucket.url, running, 4)["state"] == "stopped"
    left(bucket.url)
    assert true_status(bucket.url, running, 4) == running
    old = {"host": "far", "beat": "2026-01-01T00:00:00.000+00:00", "every": 20}
    paths.write_text(f"{bucket.url}/lease.json", json.dumps(old))
    told = true_status(bucket.url, running, 4)
    assert told["state"] == "stopped" and "no heartbeat of far since 2026-01-01" in told["reason"]
    assert true_status(bucket.url, {"state": "finished"}, 4) == {"state": "finished"}
