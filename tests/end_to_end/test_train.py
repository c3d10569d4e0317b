"""Whole training runs on a tiny store: what they leave behind, what they refuse, and how they go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_runs

from t_elaine.checkpoints import layout, writing
from t_elaine.errors import UserError
from t_elaine.training import loop as looping
from t_elaine.training import run_folder


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("stores")
    return [tiny_runs.make_store(folder / "alpha"), tiny_runs.make_store(folder / "beta", documents=60)]


@pytest.fixture(scope="module")
def cache() -> str:
    """The tests' own folder for compiled programs: nothing here is killed while it writes there."""
    return os.environ["JAX_COMPILATION_CACHE_DIR"]


@pytest.fixture(scope="module")
def whole(stores: list[Path], cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 12 steps in this process, on 8 devices."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    assert tiny_runs.train_here(run_dir, stores, compilation_cache=cache) == 0
    return run_dir


def test_the_loss_falls_and_the_run_says_what_it_is_made_of(whole: Path, stores: list[Path]) -> None:
    rows = tiny_runs.lines(whole, timings=True)
    train = [row for row in rows if row["kind"] == "train"]
    held_out = [row for row in rows if row["kind"] == "validation"]
    assert [row["step"] for row in train] == list(range(1, 13))
    assert [row["step"] for row in held_out] == [0, 4, 8, 12]
    assert train[-1]["loss"] < train[0]["loss"] - 0.2 and held_out[-1]["loss"] < held_out[0]["loss"] - 0.2
    assert set(held_out[0]["language"]) == {"en", "ja", "zh"} and set(held_out[0]["category"]) >= {"textbook"}
    status = json.loads((whole / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 12)
    versions = json.loads((whole / "versions.json").read_text())
    assert versions["packages"]["jax"] == jax.__version__ and versions["devices"]["count"] == 8
    data = json.loads((whole / "data.json").read_text())
    assert set(data) == {"alpha", "beta"} and len(data["alpha"]["manifest_sha256"]) == 64
    assert (whole / "config.gin").read_text() == "tiny" and (whole / "vocabulary" / "byte_lengths.npy").exists()
    meta = layout.read_meta(whole, 12)
    assert (meta.step, meta.row, meta.tokens) == (12, 96, train[-1]["tokens"]) and meta.has_optimizer
    assert meta.tokens == sum(row["batch_tokens"] for row in train)
    shares = json.loads((whole / "mixture.json").read_text())["sources"]
    assert sum(source["rows"] for source in shares.values()) == 96


def test_a_finished_run_started_again_does_nothing(whole: Path, stores: list[Path], capsys: Any) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    assert tiny_runs.train_here(whole, stores) == 0
    assert "finished at step 12 of 12" in capsys.readouterr().out
    assert tiny_runs.train_here(whole, stores, steps=10) == 0
    told = capsys.readouterr().out
    assert "it has 12 steps already, more than the 10 asked for" in told and "of 10" not in told
    assert (whole / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("damage", [pytest.param("none", marks=pytest.mark.slow), "params", "meta"])
def test_resume_is_bitwise(whole: Path, stores: list[Path], cache: str, tmp_path: Path, damage: str) -> None:
    """From an earlier checkpoint of the run, as if everything after it had been lost; also past a damaged one."""
    run_dir = tmp_path / "again"
    assert tiny_runs.train_here(run_dir, stores, compilation_cache=cache, max_chip_hours=1e-9) == 0
    assert json.loads((run_dir / "status.json").read_text())["state"] == "stopped"
    assert layout.complete_steps(run_dir) == [1]
    assert tiny_runs.train_here(run_dir, stores, compilation_cache=cache, every=2) == 0
    if damage != "none":
        folder = run_dir / "checkpoints" / "12" / damage
        file = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        content = bytearray(file.read_bytes())
        content[0 if damage == "meta" else len(content) // 2] ^= 1
        file.write_bytes(content)
        assert tiny_runs.train_here(run_dir, stores, compilation_cache=cache, every=2) == 0
        assert os.listdir(run_dir / "damaged") == ["12"]
    assert tiny_runs.lines(run_dir) == tiny_runs.lines(whole)
    found, wanted = tiny_runs.parameters(run_dir, 12), tiny_runs.parameters(whole, 12)
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def imported(whole: Path, folder: Path, **probe: Any) -> Path:
    """An imported model made of a run's parameters, with a probe."""
    import dataclasses

    meta = dataclasses.replace(layout.read_meta(whole, 12), parent="somewhere/model@1", has_optimizer=False)
    config = tiny_runs.settings("", [])["model"]
    from t_elaine.checkpoints import reading
    from t_elaine.model import llama

    names = reading.tensors(whole, 12)
    params = llama.parameter_shapes(config)
    tree = jax.tree_util.tree_map_with_path(
        lambda path, _: reading.read_tensor(whole, 12, jax.tree_util.keystr(path, simple=True, separator="/")), params
    )
    assert len(jax.tree.leaves(tree)) == len(names)
    writing.save_params(str(folder), 0, jax.device_put(tree), meta)
    (folder / "parent").mkdir()
    (folder / "parent" / "LICENSE").write_text("a licence")
    if probe:
        (folder / "probe.json").write_text(json.dumps(probe))
    return folder


def reference_loss(whole: Path, rows: list[list[int]]) -> float:
    """Mean nats a token of the rows through the plain model on one device."""
    from t_elaine.checkpoints import reading
    from t_elaine.model import llama

    made = tiny_runs.settings("", [])
    shapes = llama.parameter_shapes(made["model"])
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=one), shapes)
    params = reading.restore(whole, 12, target)
    tokens = np.asarray(rows)
    logp = jax.nn.log_softmax(llama.logits(params, made["model"], made["compute"], tokens[:, :-1]))
    return float(-np.mean(np.take_along_axis(np.asarray(logp), tokens[:, 1:, None], -1)))


@pytest.mark.slow
def test_a_start_from_given_weights_passes_its_probe(
    whole: Path, stores: list[Path], cache: str, tmp_path: Path, capsys: Any
) -> None:
    rows = np.random.default_rng(0).integers(1, 60, (3, 25)).tolist()
    loss = reference_loss(whole, rows)
    parent = imported(whole, tmp_path / "parent", rows=rows, loss=loss + 0.005)
    assert tiny_runs.train_here(tmp_path / "run", stores, checkpoint=str(parent), steps=2, compilation_cache=cache) == 0
    assert f"loss on the probe rows {loss:.4f}; the reference model has {loss + 0.005:.4f}" in capsys.readouterr().out
    meta = layout.read_meta(tmp_path / "run", 2)
    assert meta.parent == f"{parent}/checkpoints/0"
    assert (tmp_path / "run" / "parent" / "LICENSE").read_text() == "a licence"


def test_a_start_that_is_not_the_references_stops(whole: Path, stores: list[Path], cache: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(1, 60, (3, 25)).tolist()
    loss = reference_loss(whole, rows)
    parent = imported(whole, tmp_path / "parent", rows=rows, loss=loss - 0.02)
    with pytest.raises(UserError, match=f"is {loss:.4f}; the reference model has {loss - 0.02:.4f}"):
        tiny_runs.train_here(tmp_path / "run", stores, checkpoint=str(parent), compilation_cache=cache)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"
    assert not layout.complete_steps(tmp_path / "run")


def test_stores_of_another_vocabulary_are_refused(whole: Path, tmp_path: Path) -> None:
    other = tiny_runs.make_store(tmp_path / "other", vocabulary="w" * 64)
    with pytest.raises(UserError, match=r"vocabulary vvvv.*wwww"):
        tiny_runs.train_here(tmp_path / "run", [other], checkpoint=str(whole))
    shutil.copytree(whole, tmp_path / "copy")
    with pytest.raises(UserError, match=r"vocabulary vvvv.*wwww"):
        tiny_runs.train_here(tmp_path / "copy", [other])


def test_a_model_of_another_shape_is_refused_with_both(whole: Path, stores: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="layers: 2 there, 3 here"):
        tiny_runs.train_here(tmp_path / "run", stores, checkpoint=str(whole), layers=3)


def test_a_damaged_store_is_refused_before_training(stores: list[Path], tmp_path: Path) -> None:
    store = shutil.copytree(stores[0], tmp_path / "alpha")
    shard = store / "train-00000-of-00001.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000-of-00001.arrow is damaged"):
        tiny_runs.train_here(tmp_path / "run", [store])


def test_a_batch_that_does_not_divide_is_refused(stores: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not divide into microbatches"):
        tiny_runs.train_here(tmp_path / "run", stores, rows_per_device=3)


def test_a_run_folder_in_use_is_refused(stores: list[Path], tmp_path: Path) -> None:
    with run_folder.in_use(str(tmp_path)), pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        tiny_runs.train_here(tmp_path, stores)
    with run_folder.in_use(str(tmp_path)):
        pass


@pytest.mark.parametrize(
    "refused",
    [
        {"stores": [Path("no such store")]},
        {"checkpoint": "no such run"},
        {"vocab_size": 32},
        {"rows_per_device": 3},
        {"layers": 3, "checkpoint": "whole"},
    ],
    ids=lambda refused: "+".join(refused),
)
def test_a_refused_new_run_leaves_nothing(
    whole: Path, stores: list[Path], tmp_path: Path, refused: dict[str, Any]
) -> None:
    how = {"stores": stores, **refused, **({"checkpoint": str(whole)} if refused.get("checkpoint") == "whole" else {})}
    with pytest.raises(UserError):
        tiny_runs.train_here(tmp_path / "runs" / "one", **how)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "of a person").touch()
    for name in ("empty", "notes"):
        with pytest.raises(UserError):
            tiny_runs.train_here(tmp_path / name, **how)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "notes"]
    assert not list((tmp_path / "empty").iterdir()) and (tmp_path / "notes" / "of a person").exists()


def test_half_written_files_of_dead_processes_are_cleared(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for process in (dead.pid, os.getpid()):
        (tmp_path / f".writing-{process}-status.json").touch()
    with run_folder.in_use(str(tmp_path)):
        assert sorted(os.listdir(tmp_path)) == [".lock", f".writing-{os.getpid()}-status.json"]


@pytest.mark.slow
def test_sigterm_saves_and_ends_well(stores: list[Path], cache: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = tiny_runs.start_process(run_dir, stores, steps=100000, every=100000, compilation_cache=cache)
    deadline = time.monotonic() + 200
    while not (run_dir / "metrics.jsonl").exists() or len((run_dir / "metrics.jsonl").read_text().splitlines()) < 5:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    status = json.loads((run_dir / "status.json").read_text())
    assert status["state"] == "preempted" and layout.complete_steps(run_dir) == [status["step"]]
    assert tiny_runs.lines(run_dir)[-1]["step"] == status["step"] > 0


def test_importing_train_brings_no_heavy_library() -> None:
    names = ("tensorflow", "seqio", "transformers", "torch", "datasets", "tensorflow_datasets")
    script = f"import sys, t_elaine.train; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_going_on_with_other_rows_is_refused_and_changes_nothing(
    whole: Path, stores: list[Path], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(UserError, match="seed: 0 → 5"):
        tiny_runs.train_here(run_dir, stores, steps=20, seed=5)
    with pytest.raises(UserError, match="sequence_length: 16 → 32"):
        tiny_runs.train_here(run_dir, stores, steps=20, sequence_length=32, batch_tokens=256)
    assert {path: path.read_bytes() for path in before} == before


def test_a_finished_run_keeps_the_record_of_what_trained_it(whole: Path, stores: list[Path], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    assert tiny_runs.train_here(run_dir, stores, config_text="other settings") == 0
    assert (run_dir / "config.gin").read_text() == "tiny"
    for text in ("second", "third"):  # two starts that add nothing before the step they begin at
        run_folder.write_records(str(run_dir), 12, text, (), {})
    assert (run_dir / "config.before-step-12.gin").read_text() == "tiny"


def test_the_status_of_a_run_that_failed_names_the_step_to_go_on_from(
    stores: list[Path], cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = looping.report

    def pressed(done: int, *arguments: Any) -> None:
        report(done, *arguments)
        if done == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(looping, "report", pressed)
    with pytest.raises(KeyboardInterrupt):
        tiny_runs.train_here(tmp_path / "run", stores, compilation_cache=cache)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "stopped" and status["step"] == layout.complete_steps(tmp_path / "run")[-1] == 6
