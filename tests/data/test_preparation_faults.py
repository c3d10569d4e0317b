"""prepare killed at named points and at any moment: the next run makes the very store that an undisturbed one makes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_tasks as small
from small_vocabularies import SAMPLE_VOCABULARY

from t_elaine.data.store import open_store, verify_store

HERE = Path(__file__).resolve().parent
POINTS = ("before_write", "mid_write", "before_report", "after_report", "before_marker", "after_marker")
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
if __name__ == "__main__":
    import small_tasks as small
    from t_elaine.data.identity import Making
    from t_elaine.data.vocabulary import load_vocabulary
    from t_elaine.data.workers import prepare_stores
    folder = Path({folder!r})
    task = small.task("t", small.source(folder / "a.jsonl", "a"), small.source(folder / "b.jsonl", "b"))
    making = Making(shards=4, validation_share=0.2, drop_duplicates=True, before={before!r})
    prepare_stores([task], load_vocabulary({vocabulary!r}), folder / "stores", making, workers={workers},
                   overwrite={overwrite})
"""


def start(
    folder: Path, kill_at: str = "", workers: int = 1, overwrite: bool = False, before: tuple[str, ...] = ("bos",)
) -> "subprocess.Popen[str]":
    script = folder / "script.py"  # a file: spawned workers import it again
    script.write_text(
        SCRIPT.format(
            here=str(HERE),
            folder=str(folder),
            vocabulary=str(SAMPLE_VOCABULARY),
            workers=workers,
            overwrite=overwrite,
            before=before,
        )
    )
    environment = {**os.environ, "T_ELAINE_KILL_AT": kill_at}
    return subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(folder: Path, **how: object) -> tuple[int, str]:
    process = start(folder, **how)  # type: ignore[arg-type]
    printed, _ = process.communicate(timeout=300)
    return process.returncode, printed


def make_sources(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    small.write_rows(folder / "a.jsonl", small.rows(400), {7: "{"})
    small.write_rows(folder / "b.jsonl", [*small.rows(300, "ja"), *small.rows(20, "ja")])
    return folder


def content(folder: Path) -> dict[str, bytes]:
    store = folder / "stores" / "t"
    kept = [p for p in sorted(store.rglob("*")) if p.is_file() and p.name not in ("sources.json", "quarantine.jsonl")]
    # The quarantine names the files, which lie elsewhere here; its digest stands in the manifest.
    return {p.name: p.read_bytes() for p in kept if p.name != "manifest.json"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = make_sources(tmp_path_factory.mktemp("undisturbed"))
    code, printed = run(folder)
    assert code == 0, printed
    return content(folder)


def assert_whole(folder: Path, undisturbed: dict[str, bytes]) -> None:
    assert content(folder) == undisturbed
    verify_store(folder / "stores" / "t")
    assert sorted(p.name for p in (folder / "stores").iterdir()) == ["t"]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_named_point(tmp_path: Path, undisturbed: dict[str, bytes], point: str) -> None:
    folder = make_sources(tmp_path / "work")
    visit = ":3" if point in ("mid_write", "after_report") else ""
    code, _ = run(folder, kill_at=f"prepare.{point}{visit}")
    assert code == -signal.SIGKILL, "the point was not reached"
    assert not (folder / "stores" / "t").exists()
    code, printed = run(folder)
    assert code == 0, printed
    assert_whole(folder, undisturbed)
    if point in ("after_report", "before_marker"):
        assert "resumed" in printed


def test_killed_while_an_old_store_is_replaced(tmp_path: Path) -> None:
    folder = make_sources(tmp_path / "work")
    run(folder, before=())
    old = content(folder)
    for point in ("before_report", "before_marker"):
        code, _ = run(folder, kill_at=f"prepare.{point}", overwrite=True)
        assert code == -signal.SIGKILL
        assert content(folder) == old
    code, _ = run(folder, kill_at="prepare.between_renames", overwrite=True)
    assert code == -signal.SIGKILL and not (folder / "stores" / "t").exists()
    code, printed = run(folder)
    assert code == 0 and "up to date" in printed
    assert open_store(folder / "stores" / "t").manifest["framing"]["before"] == ["bos"]


@pytest.mark.full
def test_a_killed_worker_is_one_message_and_the_next_run_goes_on(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    folder = make_sources(tmp_path / "work")
    code, printed = run(folder, kill_at="prepare.before_report", workers=2)
    assert code == 1 and "a worker process was killed" in printed
    assert run(folder, workers=2)[0] == 0
    assert_whole(folder, undisturbed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_any_moment(tmp_path: Path, undisturbed: dict[str, bytes], seed: int) -> None:
    rng = random.Random(seed)
    folder = make_sources(tmp_path / "work")
    for _ in range(3):
        process = start(folder, workers=rng.choice((1, 2)))
        time.sleep(rng.uniform(0.1, 3.0))
        process.kill()
        process.communicate(timeout=60)
    code, printed = run(folder, workers=2)
    assert code == 0, printed
    assert_whole(folder, undisturbed)
