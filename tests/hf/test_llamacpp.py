"""llama.cpp reads our GGUF files as we do: ids, logits, greedy text. Another program, in an environment of its own.

python3 -m venv llamacpp && llamacpp/bin/pip install llama-cpp-python
T_ELAINE_LLAMACPP=llamacpp/bin/python make test-full
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t_elaine.data.gguf_vocabulary import gguf_vocabulary
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.hf import gguf_reading, gguf_writing, importing, walking
from t_elaine.hf.prompts import PROMPTS
from t_elaine.hf.tokenizer_check import AWKWARD
from tests.hf import models
from tests.hf.test_gguf import SHAPES

SIDE = Path(__file__).with_name("llamacpp_side.py")
PYTHON = os.environ.get("T_ELAINE_LLAMACPP", "")
TEXTS = [text for group in PROMPTS.values() for text in group] + list(AWKWARD)
NEW = 12

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not PYTHON, reason="T_ELAINE_LLAMACPP names no Python that has llama-cpp-python"),
]


def tiny(folder: Path, name: str) -> Path:
    """A tiny model of a family with a byte-level tokenizer of 259 ids (the embedding has 320 rows)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.FAMILIES, name, SHAPES[name])
        return models.add_tokenizer(models.write_model(folder, name))


def beside_llama_cpp(folder: Path, kind: str, prompts: list[list[int]]) -> dict[str, Any]:
    """The ids of TEXTS, differences of logits, and how many greedy tokens of llama.cpp are our choice too."""
    file, asked, told = (folder / f"{kind}.{end}" for end in ("gguf", "json", "npz"))
    rows = importing.read_config(folder).vocab_size
    gguf_writing.write(folder, file, kind, gguf_vocabulary(folder, rows, []))
    asked.write_text(json.dumps({"file": str(file), "texts": TEXTS, "prompts": prompts, "new": NEW}))
    done = subprocess.run([PYTHON, str(SIDE), str(asked), str(told)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.load(told)
    found = json.loads(theirs["told"].tobytes())
    model = gguf_reading.open_gguf(file)
    written = [np.array(prompt + ids) for prompt, ids in zip(prompts, found["greedy"], strict=True)]
    x_ND = walking.hidden(model.config, model.source, written)
    logits_NV = x_ND @ walking.head_reader(model.config, model.source, True)(0, model.config.vocab_size)
    ends = np.cumsum([len(row) for row in written])
    ours = [logits_NV[end - len(row) : end] for row, end in zip(written, ends, strict=True)]
    pairs = [(o[: len(p)], theirs[f"logits_{i}"]) for i, (o, p) in enumerate(zip(ours, prompts, strict=True))]
    error, size = (
        sum(float(np.square(a, dtype=np.float64).sum()) for a in of)
        for of in ([a - b for a, b in pairs], [a for a, _ in pairs])
    )
    # At each place our choice after the same tokens, so that one tie does not change all that follows.
    same = [
        o[len(p) - 1 + j].argmax() == token
        for o, p, ids in zip(ours, prompts, found["greedy"], strict=True)
        for j, token in enumerate(ids)
    ]
    return {
        "texts": found["texts"],
        "largest": max(float(np.abs(a - b).max()) for a, b in pairs),
        "relative": (error / size) ** 0.5,
        "scale": max(float(np.abs(a).max()) for a, _ in pairs),
        "same": float(np.mean(same)),
    }


@pytest.mark.parametrize("name", SHAPES)
def test_the_families_compute_the_same(tmp_path: Path, name: str) -> None:
    """Order of pairs, factors of Llama 3.1 beyond its old context of 64, Qwen2's biases, tied tables."""
    folder = tiny(tmp_path / "hf", name)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 259, n).tolist() for n in (5, 40, 150)]
    found = beside_llama_cpp(folder, "f32", prompts)
    assert found["largest"] <= 1e-3 * found["scale"] and found["same"] == 1.0
    vocabulary = load_vocabulary(folder)
    assert found["texts"] == [ids.tolist() for ids in vocabulary.encode_batch(TEXTS)]


def test_llama3s_tokenizer_gives_the_same_ids(tmp_path: Path, llama3_tokenizer: Path) -> None:
    from t_elaine.data.hf_files import hf_files

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.FAMILIES, "tied", {**SHAPES["tied"], "vocab_size": 128_256, "num_hidden_layers": 1})
        folder = models.write_model(tmp_path / "hf", "tied")
    shutil.copyfile(llama3_tokenizer, folder / "tokenizer.model")
    vocabulary = load_vocabulary(folder)
    for name, text in hf_files(vocabulary, ["tokenizer.model"], [128_000]).items():
        (folder / name).write_text(text, encoding="utf-8")
    found = beside_llama_cpp(folder, "q8_0", [[128_000, 40, 50]])
    assert found["texts"] == [ids.tolist() for ids in vocabulary.encode_batch(TEXTS)]


def test_smollm2_writes_the_same_text(smollm2_dir: Path, tmp_path: Path) -> None:
    """Exact in float32. In 8 and 4 bits llama.cpp rounds activations to 8 bits too, so near ties may fall otherwise."""
    folder = tmp_path / "hf"
    shutil.copytree(smollm2_dir, folder)
    vocabulary = load_vocabulary(folder)
    prompts = [ids[:24].tolist() for group in PROMPTS.values() for ids in vocabulary.encode_batch(list(group[:3]))]
    for kind, relative, same in (("f32", 1e-4, 1.0), ("q8_0", 0.04, 0.9), ("q4_0", 0.04, 0.85)):
        found = beside_llama_cpp(folder, kind, prompts)
        assert found["relative"] <= relative and found["same"] >= same, kind
        assert found["texts"] == [ids.tolist() for ids in vocabulary.encode_batch(TEXTS)]
