"""A vocabulary with more ids: mean rows behind the model's own, padded in the run, cut to their number on export."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from t_elaine.checkpoints import reading
from t_elaine.errors import UserError
from t_elaine.hf import importing, run_import, tensors
from t_elaine.hf.exporting import export_checkpoint
from t_elaine.parallel.mesh import MeshConfig
from tests.hf.models import VOCABULARY_SHA256, encode, save_vocabulary

Runs = Callable[[str], Path]


def grow(imported_run: Runs, family: str, to: Path, size: int, multiple: int) -> Path:
    def save(folder: Path) -> None:
        save_vocabulary(folder)
        file = folder / "vocabulary.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"size": size}))

    vocabulary = run_import.ImportedVocabulary(sha256=VOCABULARY_SHA256, size=size, bos=1, encode=encode, save=save)
    source = imported_run(family).parent / "hf"
    run_import.import_model(
        source, str(to), vocabulary, "lab/parent", MeshConfig(), say=lambda line: None, grow=multiple
    )
    return to


@pytest.mark.parametrize("family", ["llama3", "llama32_tied"])
def test_new_rows_are_the_mean_and_exports_have_the_true_number(
    tmp_path: Path, imported_run: Runs, family: str
) -> None:
    run = grow(imported_run, family, tmp_path / "run", 330, 64)
    assert reading.read_meta(run, 0).model["vocab_size"] == 384 and not (run / "probe.json").exists()
    before = reading.read_tensor(imported_run(family), 0, "embed/table")
    table = reading.read_tensor(run, 0, "embed/table")
    assert np.array_equal(table[:320], before)
    np.testing.assert_allclose(table[320:], np.tile(before.mean(axis=0), (64, 1)), atol=1e-6)
    done = export_checkpoint(str(run), str(tmp_path / "out"), encode, transformers=False, say=lambda line: None)
    assert done.proof["passed"] and importing.read_config(tmp_path / "out").vocab_size == 330
    infos = tensors.open_tensors(tmp_path / "out")
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & set(infos):
        rows = tensors.read(infos[name])
        assert rows.shape[0] == 330
        np.testing.assert_allclose(rows[320:], np.tile(rows[:320].mean(axis=0), (10, 1)), atol=1e-6)


def test_a_vocabulary_that_is_no_larger_grows_nothing(tmp_path: Path, imported_run: Runs) -> None:
    with pytest.raises(UserError, match="320 rows"):
        grow(imported_run, "llama3", tmp_path / "run", 320, 64)
    with pytest.raises(UserError, match="330 ids"):
        grow(imported_run, "llama3", tmp_path / "run", 330, 0)
