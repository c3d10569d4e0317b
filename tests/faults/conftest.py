"""What the tests of kills and signals share: a tiny whole model, and exports that load no transformers."""

from pathlib import Path

import pytest

from t_elaine.hf import reference
from tests.hf.models import whole_model


@pytest.fixture(autouse=True)
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading it takes seconds."""
    monkeypatch.setattr(reference, "transformers_lack", lambda parameters: "not tried")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_model(tmp_path_factory.mktemp("model") / "model", "llama3")
