"""The task files beside an export ask what `likelihood` asks; lm-eval, in an environment of its own, gets our figures.

python3 -m venv lmeval && lmeval/bin/pip install 'lm-eval[hf]' torch
T_ELAINE_LM_EVAL=lmeval/bin/python make test-full
"""

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.evaluation import benchmarks, options, protocols, scoring, suites
from t_elaine.evaluation.engines import make_engine, open_model
from t_elaine.evaluation.quantised import COMPUTE
from t_elaine.hf import lm_eval_files
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from tests.hf import models
from tests.hf.test_gguf import SHAPES

PYTHON = os.environ.get("T_ELAINE_LM_EVAL", "")
SIDE = Path(__file__).with_name("lm_eval_side.py")
SUITES = {"ja/IgakuQA", "ja/DenQA", "ja/JJSIMQA", "zh/CMExam"}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    lm_eval_files.write(folder)
    return folder / lm_eval_files.FOLDER


@pytest.fixture(scope="module")
def elaine(tasks: Path) -> Any:
    """The module that the task files name."""
    spec = importlib.util.spec_from_file_location("exported_elaine", tasks / "elaine.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tasks_name_the_published_files(tasks: Path) -> None:
    found = set()
    for file in tasks.glob("*.yaml"):
        told = dict(re.findall(r"^ *(\w+): (\S+)$", file.read_text(), re.MULTILINE))
        named = benchmarks.named(told["suite"])
        assert (told["file"], told["sha256"]) == (named.file, named.sha256) and told["include"] == f"_{told['way']}"
        assert told["task"] == file.stem and (tasks / told["include"]).is_file()
        found.add(told["suite"])
    assert found == SUITES and (tasks / "likelihood.json").is_file()
    assert benchmarks.named("ja/DenQA").commit in (tasks / "README.md").read_text()


def test_their_prompts_and_choices_are_those_of_the_protocol(elaine: Any, tasks: Path, tmp_path: Path) -> None:
    """On an exam with every kind of item: left out for the same reasons, asked in the same words, judged alike."""
    base = {"problem_id": "1", "problem_text": "何か{x}", "choices": ["甲", "乙", "丙"], "answer": ["b"]}
    changes: list[dict[str, Any]] = [
        {},
        {"answer": ["a", "c"]},
        {"answer": ["a", "b", "c"]},
        {"choices": [], "answer": ["12"]},
        {"context": "文脈"},
    ]
    records = [{**base, "problem_id": str(i), **change} for i, change in enumerate(changes)]
    exam = tmp_path / "exam.jsonl"
    exam.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    protocol, suite = protocols.load_protocol(), suites.load_suite(f"ja:{exam}")
    templates = json.loads((tasks / "likelihood.json").read_text(encoding="utf-8"))
    for answer in ("NA", ["e"], ["a or b"], [], ["d", ",", "e"]):  # of the published files alone
        assert elaine.item({**base, "answer": answer}, templates, "ja", "text") is None
    for way in protocols.WAYS:
        theirs = [found for record in records if (found := elaine.item(record, templates, "ja", way))]
        assert [one["id"] for one in theirs] == [question.id for question in suite.questions]
        for one, question in zip(theirs, suite.questions, strict=True):
            prompt, continuations = protocols.texts(protocol, way, "ja", question)
            assert (one["prompt"], one["continuations"]) == (prompt, continuations)
            assert tuple(one["gold"]) == question.gold
    for scores in ([-3.0, -1.0, -2.0], [-1.0, -1.0, -1.0], [-1.0, -2.0, -1.5]):
        for count in (1, 2):
            assert tuple(elaine.choose(scores, count)) == scoring.choose(scores, count)


def test_an_exam_that_is_absent_or_another_is_refused(elaine: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("ELAINE_EXAMS", raising=False)
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    asked = {"suite": "ja/DenQA", "file": "denqa.jsonl", "sha256": "0" * 64, "way": "text"}
    with pytest.raises(SystemExit, match="set ELAINE_EXAMS"):
        elaine.load(**asked)
    (tmp_path / "ja/DenQA").mkdir(parents=True)
    (tmp_path / "ja/DenQA/denqa.jsonl").write_text("{}")
    with pytest.raises(SystemExit, match="not the published file"):
        elaine.load(**asked, suites_dir=str(tmp_path))


def ours(folder: Path, exams: Path, count: int) -> dict[str, list[dict[str, Any]]]:
    """task → the first items' option scores by our protocol, nothing in front of the prompts."""
    model, mesh, protocol = (
        open_model(str(folder)),
        make_mesh(MeshConfig(), jax.devices()[:1]),
        protocols.load_protocol(),
    )
    engine = make_engine(model.load(mesh), model.config, COMPUTE, mesh, batch_rows=2, length=512)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(SUITES):
        suite = suites.load_suite(name, 0, str(exams))
        suite = type(suite)(**{**vars(suite), "questions": suite.questions[:count]})
        asked = options.exam_requests(model.vocabulary, suite, protocol, [], 512)
        scores = options.sit(engine, suite, asked).scores
        for way in protocols.WAYS:
            pairs = zip(suite.questions, scores[way], strict=True)
            found[f"elaine_{name.partition('/')[2].lower()}_{way}"] = [
                {"id": question.id, "scores": values, "gold": question.gold} for question, values in pairs
            ]
    return found


def compared(folder: Path, tasks: Path, exams: Path, count: int, tmp_path: Path) -> tuple[list[float], list[str]]:
    """Differences of all options' log-likelihoods, and the items of another choice."""
    told = tmp_path / "told.json"
    command = [PYTHON, str(SIDE), str(folder), str(tasks), str(exams), str(count), str(told)]
    own = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs, mine = json.loads(told.read_text()), ours(folder, exams, count)
    assert set(theirs) == set(mine)
    gaps, others = [], []
    for task, items in mine.items():
        for one, other in zip(items, theirs[task], strict=True):
            assert one["id"] == other["id"]
            gaps += np.abs(np.subtract(one["scores"], other["scores"])).tolist()
            choice = scoring.choose(one["scores"], len(one["gold"]))
            if choice != scoring.choose(other["scores"], len(one["gold"])):
                others.append(f"{task} {one['id']}")
            way = task.rpartition("_")[2]
            assert other["metrics"][way] == float(scoring.choose(other["scores"], len(one["gold"])) == one["gold"])
    return gaps, others


@pytest.mark.full
@pytest.mark.timeout(2400)
@pytest.mark.skipif(not PYTHON, reason="T_ELAINE_LM_EVAL names no Python that has lm-eval")
@pytest.mark.parametrize("name", ["llama31", "qwen2", "smollm2"])
def test_lm_eval_gets_our_log_likelihoods(
    tmp_path: Path, tasks: Path, shared_data: Path, request: pytest.FixtureRequest, name: str
) -> None:
    """Item by item, each option."""
    if name == "smollm2":
        folder = request.getfixturevalue("smollm2_dir")
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(models.FAMILIES, name, {**SHAPES[name], "max_position_embeddings": 2048})
            folder = models.add_tokenizer(models.write_model(tmp_path / "hf", name))
    gaps, others = compared(
        folder, tasks, shared_data / "benchmarks" / "elaine", 3 if name != "smollm2" else 5, tmp_path
    )
    assert load_vocabulary(folder).size and max(gaps) < 2e-3 and others == []
