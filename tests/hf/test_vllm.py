"""Exported folders in vLLM: the same greedy text and likelihoods as our own engine has from the checkpoint.

Needs a Python with vLLM, named in T_ELAINE_VLLM_PYTHON (docs/evaluation.md, "Other engines", says how to make one).
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from t_elaine.evaluation import engines
from t_elaine.evaluation.engines import open_model
from t_elaine.generation.engine import generate, make_engine
from t_elaine.generation.manners import read_manners
from t_elaine.generation.requests import Request
from t_elaine.generation.sampling import Sampling
from t_elaine.hf.exporting import export_checkpoint
from t_elaine.import_hf import import_hf
from t_elaine.model.config import ComputeConfig, LlamaConfig, RopeScaling
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.peers import process
from t_elaine.writing import small_files
from tests.evaluation import making
from tests.random_params import random_params

PYTHON = os.environ.get("T_ELAINE_VLLM_PYTHON", "")
GREEDY = Sampling(max_new=24)
TEXTS = [
    "The heart has",
    "Question: What lowers the glucose of the blood?\nAnswer:\n",
    "心臓には四つの部屋がある。" * 8,
    "胰岛素降低血糖。\n" * 3,
]
# vLLM's CPU attention knows heads of 32 and more.
SHAPE: dict[str, Any] = {
    "embed": 128,
    "mlp": 192,
    "layers": 3,
    "q_heads": 4,
    "kv_heads": 2,
    "head_dim": 32,
    "max_position": 512,
}
SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=64)
QUIET: dict[str, Any] = {"transformers": False, "say": lambda line: None}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama31": {"rope_scaling": SCALING, "rope_theta": 500_000.0, "tied_embeddings": False},
    "qwen2": {"qkv_bias": True, "rope_theta": 1_000_000.0, "tied_embeddings": True},
}


@pytest.fixture(scope="module", autouse=True)
def vllm() -> None:
    if not PYTHON:
        pytest.skip("no environment with vLLM: name its Python in T_ELAINE_VLLM_PYTHON")
    process.versions("vllm", PYTHON)


def ours(checkpoint: Path) -> list[str]:
    """Our engine's answers, from the checkpoint."""
    model, mesh = open_model(str(checkpoint)), make_mesh(MeshConfig(), jax.devices()[:1])
    compute = ComputeConfig(dtype="float32", remat="none")
    engine = make_engine(model.load(mesh), model.config, compute, mesh, model.vocabulary, rows=4, donate=True)
    manners = read_manners(small_files(model), model.vocabulary)
    prompts = [[*manners.before, *model.vocabulary.encode(text).tolist()] for text in TEXTS]
    asked = [Request(tokens=np.asarray(p, np.int32), sampling=GREEDY, end_ids=manners.end_ids) for p in prompts]
    # An unfinished character at the end is U+FFFD with us; vLLM leaves it out.
    return [answer.text.rstrip("\ufffd") for answer in sorted(generate(engine, asked), key=lambda answer: answer.index)]


def theirs(folder: Path, ends: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """vLLM's answers, from the export."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    with process.working("vllm", PYTHON, str(folder), "float32", 4) as worker:
        found = dict(process.write(worker, TEXTS, GREEDY, ends))
    return [(found[place] or "").rstrip("\ufffd") for place in range(len(TEXTS))]


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_of_each_family(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def config(vocabulary) -> LlamaConfig:
        small = replace(plain(vocabulary), **SHAPE)
        return replace(small, **FAMILIES[family])

    plain = making.make_config

    def noisy(config: LlamaConfig, seed: int = 0) -> Any:
        """Norms and biases too: a bias of zero would not be missed."""
        draw = np.random.default_rng(seed)
        shift = lambda x: (x + 0.1 * draw.standard_normal(x.shape)).astype(np.float32)  # noqa: E731
        return jax.tree.map(shift, random_params(config, seed))

    monkeypatch.setattr(making, "make_config", config)
    monkeypatch.setattr(making, "random_params", noisy)
    vocabulary = making.make_vocabulary(tmp_path / "vocabulary")
    run = making.make_run(tmp_path / "run", vocabulary)
    export_checkpoint(str(run), str(tmp_path / "out"), vocabulary.encode_batch, **QUIET)
    mine = ours(run)
    assert theirs(tmp_path / "out", (vocabulary.eos,), monkeypatch) == mine
    assert len(set(mine)) == len(TEXTS), "and they are not all alike"


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_smollm2(smollm2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_hf(hf=str(smollm2_dir), to=str(tmp_path / "run"))
    model = open_model(str(tmp_path / "run"))
    encode = model.vocabulary.encode_batch
    export_checkpoint(str(tmp_path / "run"), str(tmp_path / "out"), encode, **QUIET)
    ends = read_manners(small_files(model), model.vocabulary).end_ids
    assert theirs(tmp_path / "out", ends, monkeypatch) == ours(tmp_path / "run")


def their_nll(folder: Path, pieces: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> list[list[np.ndarray]]:
    """vLLM's figures of the pieces: at first, and again after it has read them and written after them."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    found = []
    with process.working("vllm", PYTHON, str(folder), "float32", 4) as worker:
        for _ in range(2):
            scored = dict(process.score(worker, pieces, TEXTS))
            found.append([scored[place] for place in range(len(pieces))])
            dict(process.write(worker, TEXTS, GREEDY, ()))
    return found


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_likelihoods_of_smollm2(smollm2_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, mesh = open_model(str(smollm2_dir)), make_mesh(MeshConfig(), jax.devices()[:1])
    pieces = [model.vocabulary.encode(text).astype(np.int32) for text in TEXTS]
    compute = ComputeConfig(dtype="float32", remat="none", attention="blocked", loss_chunk=64)
    engine = engines.make_engine(model.load(mesh), model.config, compute, mesh, batch_rows=1, length=256)
    mine = list(engines.score(engine, pieces))
    del engine
    for again in their_nll(smollm2_dir, pieces, monkeypatch):
        for wanted, found in zip(mine, again, strict=True):
            np.testing.assert_allclose(found, wanted, atol=5e-4)
    assert max(one.max() for one in mine) > 5, "and they are not near nothing"
