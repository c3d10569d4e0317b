"""transformers in a process of its own beside our engine, on one tiny random model: equal answers and likelihoods."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.errors import UserError
from t_elaine.evaluate import evaluate
from t_elaine.evaluation import options
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


SCORING = """
import array, base64
task = json.loads(sys.stdin.readline())
for place, piece in enumerate(task["pieces"]):
    found = [place + token / 8 for token in piece[1:]]
    CHANGE
    data = base64.b64encode(array.array("f", found).tobytes()).decode()
    print(json.dumps({"place": place, "nll": data}), flush=True)
print(json.dumps({"done": True}), flush=True)
"""
PIECES = [np.array([1, 2, 3], np.int32), np.array([4, 5], np.int32)]


def scored(tmp_path: Path, change: str, got: dict[int, list[float]]) -> None:
    python = worker(tmp_path, READY + SCORING.replace("CHANGE", change))
    with process.working("vllm", python, "model", "float32", 4) as it:
        for place, nll in process.score(it, PIECES, ["first", "second"]):
            got[place] = nll.tolist()


def test_pieces_are_scored_by_a_worker(tmp_path: Path) -> None:
    got: dict[int, list[float]] = {}
    scored(tmp_path, "pass", got)
    assert got == {0: [0.25, 0.375], 1: [1.625]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("found = found[place:]", "vllm gives 0 log-likelihoods for 2 tokens"),
        ("found += [0.0] * place", "vllm gives 2 log-likelihoods for 2 tokens"),
        ("found[0] = float('nan') if place else 0.5", "vllm gives 1 .* for 2 tokens, 1 of them no numbers"),
        ("sys.exit(7 * place) if place else 0", r"vllm ended with exit code 7(.|\n)*are kept"),
    ],
)
def test_figures_that_are_not_a_pieces_own_are_refused(tmp_path: Path, change: str, says: str) -> None:
    got: dict[int, list[float]] = {}
    with pytest.raises(UserError, match=says):
        scored(tmp_path, change, got)
    assert list(got) == [0], "what came before it came"


FAKE_VLLM = """
class SamplingParams:
    def __init__(self, **how):
        assert how == dict(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False), how

class Logprob:
    def __init__(self, logprob):
        self.logprob = logprob

class Answer:
    def __init__(self, ids):
        # Beside each token's own there may be the likeliest.
        likeliest = {299: Logprob(0.0)}
        told = [likeliest | {i: Logprob(-((sum(ids[:at]) * 31 + i * 17) % 97) / 16)} for at, i in enumerate(ids)]
        self.prompt_logprobs = [None, *told[1:]]

class LLM:
    def __init__(self, model, **how):
        class Config:
            max_model_len = 1024
        self.model_config = Config()

    def generate(self, asked, sampling, use_tqdm):
        import os, pathlib
        count = pathlib.Path(__file__).with_name("count")
        left = int(count.read_text()) if count.exists() else 10**9
        if left < len(asked):
            raise MemoryError("the device is full")
        count.write_text(str(left - len(asked)))
        return [Answer(one["prompt_token_ids"]) for one in asked]
"""


def test_vllm_scores_exams_and_text_and_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real worker with a library of vLLM's name that makes its figures of the ids."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "vllm.py").write_text(FAKE_VLLM, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(library))
    monkeypatch.setattr(process, "versions", lambda name, python: {"vllm": "9"})
    monkeypatch.setattr(options, "QUESTIONS", 3)
    making.make_store(tmp_path / "held", load_vocabulary(place / "model"))
    given: dict[str, Any] = {"checkpoint": str(place / "model"), "exams": (f"en:{place / 'exam.jsonl'}",)}
    given |= {"stores": (str(tmp_path / "held"),), "engine": "vllm", "contamination": False, "resamples": 50}
    assert evaluate(**given, to=str(tmp_path / "whole")) == 0
    left = 10**9 - int((library / "count").read_text())
    (library / "count").write_text(str(left - 20))
    with pytest.raises(UserError, match=r"(?s)vllm ended with exit code 1.*the device is full"):
        evaluate(**given, to=str(tmp_path / "stopped"))
    (library / "count").write_text(str(left * 2 // 3))
    assert evaluate(**given, to=str(tmp_path / "stopped")) == 0, "what was scored is not scored again"
    whole, again = (json.loads((tmp_path / name / "step-0.json").read_text()) for name in ("whole", "stopped"))
    assert whole == again and whole["identity"]["engine"] == "vllm-9"
    assert whole["identity"]["sequence_length"] == 1022, (
        "a token of the piece, and one that is written, stand there too"
    )
    short = FAKE_VLLM.replace("max_model_len = 1024", "max_model_len = 900")
    (library / "vllm.py").write_text(short, encoding="utf-8")
    with pytest.raises(UserError, match=r"sequence_length is 1022, and vllm takes 900 tokens(.|\n)*at most 898"):
        evaluate(**given, to=str(tmp_path / "short"))
    scores = [item["child"]["letter"]["scores"] for item in whole["exams"][0]["items"]]
    assert all(one <= 0 for found in scores for one in found) and len({tuple(one) for one in scores}) > 4


def test_a_worker_ends_with_its_block(tmp_path: Path) -> None:
    deaf = worker(tmp_path, READY + "import time\ntime.sleep(600)\n")
    with process.working("vllm", deaf, "model", "float32", 4) as it:
        assert it.context == 8 and it.process.poll() is None
    assert it.process.poll() is not None


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"min_new": 2}, {"repetition_penalty": 1.2}])
def test_only_greedy_answers_are_asked_of_others(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="only greedy"):
        refuse_sampling({"temperature": 0.0, "min_new": 0, "repetition_penalty": 1.0} | change)
