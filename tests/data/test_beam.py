"""prepare through Apache Beam: the very stores of the local runner, whatever Beam does to the shards on the way."""

import errno
import functools
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import small_tasks as small
from rich.console import Console
from small_vocabularies import SAMPLE_VOCABULARY

from t_elaine import prepare as command
from t_elaine.data import beam
from t_elaine.data.identity import Making
from t_elaine.data.preparation import Shard
from t_elaine.data.store import verify_store
from t_elaine.data.texts import Task
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.data.workers import Mapper, mapper_of, prepare_stores
from t_elaine.errors import UserError

HERE = Path(__file__).resolve().parent
MAKING = Making(shards=4, validation_share=0.2, drop_duplicates=True, max_rejected_share=0.05)
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import test_beam as here
from t_elaine.data.workers import mapper_of
print(here.prepare(Path({stores!r}), here.sources(Path({folder!r})), mapper_of("beam", ())))
"""


def sources(folder: Path, bad: dict[int, str] | None = None) -> Task:
    folder.mkdir(exist_ok=True)
    english = small.write_rows(folder / "a.jsonl", small.rows(200), {7: "{"} if bad is None else bad)
    japanese = small.write_rows(folder / "b.jsonl", [*small.rows(150, "ja"), *small.rows(20, "ja")])
    return small.task("t", small.source(english, "a"), small.source(japanese, "b", language="ja"))


def prepare(stores: Path, task: Task, mapper: Mapper | None, workers: int = 1) -> str:
    out = io.StringIO()
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    prepare_stores([task], vocabulary, stores, MAKING, workers=workers, mapper=mapper, console=Console(file=out))
    return out.getvalue()


def content(stores: Path) -> dict[str, bytes]:
    assert [p.name for p in stores.iterdir()] == ["t"], "something is left beside the store"
    files = [p for p in sorted(stores.rglob("*")) if p.is_file() and p.name != "sources.json"]
    return {str(p.relative_to(stores)): p.read_bytes() for p in files}


def twice_in_threads(shards: Sequence[Shard], options: Sequence[str], attempts: int = 2) -> None:
    """A stand-in for Beam at its worst: every shard is given to two workers at once, exceptions change their type."""
    with ThreadPoolExecutor(2) as pool:
        for shard in shards:
            try:
                list(pool.map(beam.prepare_apart, [shard] * attempts))
            except (OSError, UserError) as error:
                raise RuntimeError("a traceback") from error


@pytest.fixture
def without_beam(monkeypatch: pytest.MonkeyPatch) -> Mapper:
    monkeypatch.setattr(beam, "_run", twice_in_threads)
    return beam.over_beam


@pytest.fixture(scope="module")
def installed() -> None:
    pytest.importorskip("apache_beam", reason="apache-beam is not installed: docs/data.md says how")


@pytest.mark.usefixtures("installed")
def test_a_pipeline_makes_the_files_that_processes_make(tmp_path: Path) -> None:
    task = sources(tmp_path / "in")
    prepare(tmp_path / "local", task, None)
    prepare(tmp_path / "beam", task, mapper_of("beam", ()))
    assert content(tmp_path / "beam") == content(tmp_path / "local")
    verify_store(tmp_path / "beam" / "t")
    assert "up to date" in prepare(tmp_path / "beam", task, mapper_of("beam", ()))
    # Beam hides a worker's exception behind one of its own, with a traceback for a message.
    broken = sources(tmp_path / "broken", {i: "{" for i in range(60)})
    with pytest.raises(UserError, match="malformed"):
        prepare(tmp_path / "none", broken, mapper_of("beam", ()))
    for options, told in (("--runner=Nothing", "Nothing"), ("--direct_num_workers=x", "invalid int value: 'x'")):
        with pytest.raises(UserError, match=f"refuses its options.*{told}"):
            prepare(tmp_path / "none", task, mapper_of("beam", (options,)))


@pytest.mark.usefixtures("installed")
def test_a_killed_pipeline_goes_on_where_it_was(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(HERE), stores=str(stores), folder=str(tmp_path / "in")))
    environment = {**os.environ, "T_ELAINE_KILL_AT": "prepare.before_report:3"}
    run = functools.partial(subprocess.run, [sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert run(env=environment).returncode == -signal.SIGKILL
    assert len(list(stores.glob(".t.partial/part-*.report.json"))) == 2 and list(stores.glob(".t.partial/.attempt-*"))
    done = run()
    assert done.returncode == 0, done.stderr
    assert "resumed: 2 of 4 shards were done before" in done.stdout
    prepare(tmp_path / "local", sources(tmp_path / "in"), None)
    assert content(stores) == content(tmp_path / "local")


def test_two_attempts_at_a_shard_do_not_disturb_each_other(
    tmp_path: Path, without_beam: Mapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, real = threading.Barrier(2, timeout=60), beam.prepare_shard

    def at_once(shard: Shard) -> dict[str, Any]:
        together.wait()
        report = real(shard)
        together.wait()
        return report

    monkeypatch.setattr(beam, "prepare_shard", at_once)
    task = sources(tmp_path / "in")
    prepare(tmp_path / "beam", task, without_beam)
    prepare(tmp_path / "local", task, None)
    assert content(tmp_path / "beam") == content(tmp_path / "local")


@pytest.mark.parametrize("second", ["local", "beam"])
def test_one_runner_goes_on_with_what_the_other_left(
    tmp_path: Path, without_beam: Mapper, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    task, stores = sources(tmp_path / "in"), tmp_path / "stores"
    monkeypatch.setattr(beam, "_run", lambda shards, options: twice_in_threads(shards[:2], options))
    with pytest.raises(UserError, match="2 of 4 shards are not there") as caught:
        prepare(stores, task, without_beam)
    assert "share this folder" in caught.value.mend
    partial = stores / ".t.partial"
    (partial / ".attempt-0.tmp").mkdir()  # a worker that was killed
    (partial / "part-00000.failed.json").write_text("{}")  # an attempt that failed beside another that did not
    monkeypatch.setattr(beam, "_run", twice_in_threads)
    assert "resumed: 2 of 4" in prepare(stores, task, without_beam if second == "beam" else None)
    prepare(tmp_path / "local", task, None)
    assert content(stores) == content(tmp_path / "local")


@pytest.mark.parametrize("mistake", ["damaged file", "too many bad records"])
def test_a_mistake_comes_back_whole_and_stops_the_shards_after_it(
    tmp_path: Path, without_beam: Mapper, mistake: str
) -> None:
    stores, last = tmp_path / "stores", tmp_path / "last.jsonl.gz"
    if mistake == "damaged file":
        small.write_rows(last, small.rows(9))
    else:
        last = small.write_rows(last.with_suffix(""), small.rows(6000, "zh"), {i: "{" for i in range(0, 6000, 9)})
    task = small.task("t", *sources(tmp_path / "in").sources, small.source(last, "last"), small.source(last, "more"))
    with pytest.raises(UserError) as local:
        prepare(stores, task, None)
    where = Path(local.value.where)
    assert where.is_file()
    (stores / ".t.partial" / "part-00000.report.json").unlink(missing_ok=True)
    where.unlink() if "quarantine" in where.name else None
    with pytest.raises(UserError) as through_beam:
        prepare(stores, task, without_beam)
    assert through_beam.value.text() == local.value.text() and where.is_file()
    assert not list(stores.glob(".t.partial/.attempt-*")) and len(list(stores.glob(".t.partial/*.failed.json"))) == 1
    again = sources(tmp_path / "in")
    prepare(stores, again, without_beam)
    prepare(tmp_path / "local", again, None)
    assert content(stores) == content(tmp_path / "local")


def test_a_full_disk_is_one_message(tmp_path: Path, without_beam: Mapper, monkeypatch: pytest.MonkeyPatch) -> None:
    task, real = sources(tmp_path / "in"), os.fsync

    def full(descriptor: int) -> None:
        if list((tmp_path / "stores").glob(".t.partial/.attempt-*/.*.arrow.*.tmp")):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(beam, "_run", functools.partial(twice_in_threads, attempts=1))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        prepare(tmp_path / "stores", task, without_beam)
    monkeypatch.undo()
    prepare(tmp_path / "stores", task, None)
    assert list(content(tmp_path / "stores"))


def test_what_is_missing_or_does_not_fit_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    flags = ["--tasks=samples", "--vocabulary={samples}", f"--stores={tmp_path / 'stores'}"]
    assert command.main([*flags, "--runner=beam"]) == 2
    assert "pip install 't-elaine[beam]'" in capsys.readouterr().err
    assert command.main([*flags, "--runner=spark"]) == 2
    assert "there is no runner 'spark'" in capsys.readouterr().err
    assert command.main([*flags, "--beam_options=--runner=FlinkRunner"]) == 2
    assert "prepare.runner = 'beam'" in capsys.readouterr().err
    assert not (tmp_path / "stores").exists()
