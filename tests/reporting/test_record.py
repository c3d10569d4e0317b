"""What is read is what was written; what is damaged is named."""

import datetime
import json
import os
import re
import socket
import time
from pathlib import Path

import pytest

from t_elaine.errors import UserError
from t_elaine.reporting import page, words
from t_elaine.reporting.record import read_record, series, smoothed, thinned
from t_elaine.training import run_folder
from tests.reporting.making import make_run_folder, write


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run_folder(tmp_path, steps=10, resumes=(4,))


def test_reads_everything(run: Path) -> None:
    record = read_record(str(run))
    assert [line["step"] for line in record.steps] == list(range(1, 11)) and record.resumes == [4]
    assert len(record.validation) > 1 and list(record.evaluations) == ["step-240"]
    assert set(record.stores) == set(record.data) and list(record.proofs) == ["export"]
    assert record.status["state"] == "finished" and "Loop.steps" in record.config


def test_a_line_that_a_kill_cut_off_is_left_out_and_a_damaged_one_is_named(run: Path) -> None:
    path = run / "metrics.jsonl"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '{"kind": "train", "ste', encoding="utf-8")
    assert len(read_record(str(run)).steps) == 10
    lines = whole.splitlines()
    lines[3] = lines[3][:20]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="damaged") as caught:
        read_record(str(run))
    assert caught.value.where.endswith("metrics.jsonl:4")


def test_parts_from_an_object_store_are_joined_and_the_last_line_of_a_step_counts(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "metrics.jsonl").unlink()
    again = {**json.loads(lines[-1]), "loss": 9.0}
    write(run / "metrics-000000000-00000.jsonl", "".join(lines))
    write(run / "metrics-000000010-00001.jsonl", json.dumps(again) + "\n")
    record = read_record(str(run))
    same = record.steps if again["kind"] == "train" else record.validation
    assert same[-1]["loss"] == 9.0 and len(record.steps) == 10


def test_what_is_no_run_is_refused(tmp_path: Path, run: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, what in (("nowhere", "no such run folder"), ("empty", "nothing of a run")):
        with pytest.raises(UserError, match=what):
            read_record(str(tmp_path / folder))
    with pytest.raises(UserError, match=r"no proof\.json"):
        read_record(str(run), [str(tmp_path / "empty")])
    (run / "mixture.json").write_text("[", encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        read_record(str(run))


def test_series_thinning_and_smoothing() -> None:
    lines = [{"step": i, "language": {"ja": {"loss": float(i)}} if i % 2 else {}} for i in range(6)]
    assert series(lines, "language", "ja", "loss") == ([1, 3, 5], [1, 3, 5])
    assert series([{"step": 1, "loss": None}], "loss") == ([], [])
    pair = (list(map(float, range(100))), list(map(float, range(100))))
    steps, values = thinned(pair, 10)
    assert len(steps) == 10 and steps == values and values[0] == pytest.approx(4.5)
    assert smoothed(([0, 1, 2, 3], [0, 2, 4, 6]), 2)[1] == [0, 1, 3, 5]


def test_words() -> None:
    assert words.number(-0.0312, 3, 1, True) == "−0.031" and words.number(0.00001, 2, 1, True) == "0.00"
    assert words.number(12345.6, 1) == "12\u202f345.6" and words.number(None) == "–"
    assert words.count(99_999) == "99\u202f999" and words.count(3_932_160) == "3.93\u202fM"
    assert words.in_bytes(4_210) == "4.2\u202fkB" and words.in_bytes(538_060_544) == "538\u202fMB"
    assert words.small(3.14e-6) == "3.1·10⁻⁶" and words.duration(3725) == "1 h 2 min"


def test_a_change_is_one_only_where_the_interval_leaves_out_zero() -> None:
    fell = {"value": -0.1, "low": -0.2, "high": -0.01}
    assert words.verdict(fell, lower_is_better=True) == "better"
    assert words.verdict(fell, lower_is_better=False) == "worse"
    assert words.verdict({**fell, "high": 0.01}, lower_is_better=True) == ""


def status_of(run: Path, **status: object) -> dict[str, object]:
    write(run / "status.json", {"state": "running", "reason": "", "step": 4, "host": socket.gethostname(), **status})
    return read_record(str(run)).status


def test_a_killed_run_is_not_shown_as_running(run: Path) -> None:
    """Who runs holds the lock of the folder; the system frees it at SIGKILL."""
    (run / ".lock").write_text("process 1 on here")
    with run_folder.in_use(str(run)):
        assert status_of(run)["state"] == "running"
    told = status_of(run)
    assert told["state"] == "stopped"
    told_at = re.fullmatch(r"without a word at step 10; no sign of life since (.*)", str(told["reason"]))
    assert told_at and abs(time.time() - datetime.datetime.fromisoformat(told_at[1]).timestamp()) < 60
    assert f"stopped</span>: {told['reason']}." in page.render(read_record(str(run)))
    assert str(status_of(run, step=12)["reason"]).startswith("without a word at step 12; ")
    assert status_of(run, state="preempted")["state"] == "preempted"


def test_a_run_of_another_machine_counts_as_ended_when_it_wrote_nothing_for_long(run: Path) -> None:
    """Whose lock may not be seen here; each of its lines of metrics is a sign of life."""
    elsewhere = status_of(run, host="another-machine")
    assert elsewhere["state"] == "running" and "on another-machine" in str(elsewhere["reason"])
    assert "last sign of life at 20" in str(elsewhere["reason"])
    for name in ("status.json", "metrics.jsonl"):
        os.utime(run / name, (1e9, 1e9))
    told = read_record(str(run)).status
    assert told["state"] == "stopped" and "no sign of life since 2001-09-09T01:46:40+00:00" in told["reason"]
    os.utime(run / "metrics.jsonl")
    assert read_record(str(run)).status["state"] == "running"
