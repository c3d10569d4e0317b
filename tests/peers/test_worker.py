"""transformers in a process of its own beside our engine, on one tiny random model: equal answers and likelihoods."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t_elaine.errors import UserError
from t_elaine.evaluate import evaluate
from t_elaine.hf import mapping, tensors
from t_elaine.model.config import ComputeConfig, LlamaConfig, to_hf
from t_elaine.peers import process
from t_elaine.peers.worker import refuse_sampling
from tests.evaluation import making
from tests.evaluation.test_official import record, write

needs_transformers = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers (pip install 't-elaine[test]')",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in Hugging Face format of 1,024 positions, a run folder, and an exam of which one item is too long."""
    folder = tmp_path_factory.mktemp("worker")
    vocabulary = making.make_vocabulary(folder / "model")
    making.make_run(folder / "run", vocabulary)
    small = making.make_config(vocabulary)
    config = LlamaConfig(**{**vars(small), "max_position": 1024})
    write_weights(folder / "model", config)
    items = [record(i, problem_text=f"{i}? " + "why " * (i % 4)) for i in range(9)]
    write(folder / "exam.jsonl", [*items, record(9, problem_text="x" * 1024)])
    return folder


def write_weights(folder: Path, config: LlamaConfig) -> None:
    """config.json and random weights, large enough that answers differ."""
    draw = np.random.default_rng(0)
    values = {t.name: draw.normal(float(len(t.shape) == 1), 0.3, t.shape) for t in mapping.hf_tensors(config)}
    planned = [
        tensors.Planned(name=name, tag=tensors.TAGS["float32"], shape=value.shape) for name, value in values.items()
    ]
    tensors.write_tensors(folder, planned, lambda name: values[name].astype(np.float32))
    (folder / "config.json").write_text(json.dumps(to_hf(config, "float32")), encoding="utf-8")


def judged(place: Path, engine: str) -> dict[str, Any]:
    """The result of one engine, and whether a second start asks anything."""
    given: dict[str, Any] = {"checkpoint": str(place / "model"), "exams": (f"en:{place / 'exam.jsonl'}",)}
    given |= {"protocols": ("likelihood", "official", "repaired"), "to": str(place / "results"), "name": engine}
    given |= {"batch_rows": 4, "compute": ComputeConfig(dtype="float32", remat="none", loss_chunk=16)}
    assert evaluate(**given, engine=engine, contamination=False, resamples=50) == 0
    return json.loads((place / "results" / f"{engine}.json").read_text())


@needs_transformers
def test_transformers_answers_and_scores_as_our_engine_does(place: Path) -> None:
    ours, theirs = judged(place, "t-elaine"), judged(place, "transformers")
    answers = [
        [(i["id"], i["answer"]) for row in side["generated"]["child"] for i in row["items"]] for side in (ours, theirs)
    ]
    assert answers[0] == answers[1] and len({text for _, text in answers[0]}) > 4, "and not all alike"
    assert [row["unanswered"] for row in theirs["generated"]["child"]] == [[9], [9], [9]]
    for mine, other in zip(ours["exams"][0]["items"], theirs["exams"][0]["items"], strict=True):
        for way, found in mine["child"].items():
            np.testing.assert_allclose(other["child"][way]["scores"], found["scores"], atol=1e-4)
    assert theirs["identity"]["engine"].startswith("transformers-") and "engine" not in ours["identity"]
    assert theirs["identity"]["versions"]["torch"]
    names = [path.name for path in (place / "results" / "transformers-answers").iterdir()]
    assert len(names) == 2 and all(f".{theirs['identity']['engine']}." in name for name in names)


def test_a_run_folder_is_refused_before_anything_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "versions", lambda name, python: {"vllm": "9"})
    given: dict[str, Any] = {"exams": ("samples/en",), "to": str(place)}
    with pytest.raises(UserError, match=r"Hugging Face format alone(.|\n)*t-elaine export"):
        evaluate(checkpoint=str(place / "run"), protocols=("official",), engine="vllm", **given)
    with pytest.raises(UserError, match=r"takes pieces of 1022 at most(.|\n)*give at most 1022"):
        evaluate(checkpoint=str(place / "model"), engine="vllm", sequence_length=1024, **given)
    with pytest.raises(UserError, match=r"no other vocabulary than the model's(.|\n)*leave it out"):
        evaluate(checkpoint=str(place / "model"), engine="vllm", vocabulary=str(place / "model"), **given)
    with pytest.raises(UserError, match=r"no engine is called 'vlm'(.|\n)*transformers, vllm, or a server"):
        evaluate(checkpoint=str(place / "model"), engine="vlm", **given)


def test_a_python_without_the_library_is_named(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    with pytest.raises(UserError, match=r"vllm is not installed there(.|\n)*--engine_python=ENVIRONMENT/bin/python"):
        process.versions("vllm", str(script))
    with pytest.raises(UserError, match="this Python cannot be run"):
        process.versions("vllm", str(tmp_path / "none"))


def worker(tmp_path: Path, body: str) -> str:
    """A Python that runs this instead of the worker."""
    program = tmp_path / "program.py"
    program.write_text(body, encoding="utf-8")
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return str(script)


READY = 'import sys, json\nprint(json.dumps({"ready": True, "context": 8}), flush=True)\n'


def test_a_worker_that_dies_tells_what_it_printed_last(tmp_path: Path) -> None:
    dying = worker(tmp_path, "import sys\nprint('out of memory', file=sys.stderr)\nsys.exit(9)\n")
    told = pytest.raises(UserError, match=r"vllm ended with exit code 9(.|\n)*out of memory")
    with told, process.working("vllm", dying, "model", "float32", 4):
        pytest.fail("it was never ready")
    body = READY + 'sys.stdin.readline()\nprint(json.dumps({"place": 1, "text": "b"}), flush=True)\nsys.exit(3)\n'
    got = []
    told = pytest.raises(UserError, match=r"exit code 3(.|\n)*answers that were written are kept")
    with told, process.working("vllm", worker(tmp_path, body), "model", "float32", 4) as it:
        got.extend(process.write(it, ["x", "y"], process.Sampling(), [2]))
    assert got == [(1, "b")]


def test_a_worker_ends_with_its_block(tmp_path: Path) -> None:
    deaf = worker(tmp_path, READY + "import time\ntime.sleep(600)\n")
    with process.working("vllm", deaf, "model", "float32", 4) as it:
        assert it.context == 8 and it.process.poll() is None
    assert it.process.poll() is not None


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"min_new": 2}, {"repetition_penalty": 1.2}])
def test_only_greedy_answers_are_asked_of_others(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="only greedy"):
        refuse_sampling({"temperature": 0.0, "min_new": 0, "repetition_penalty": 1.0} | change)
