"""Small models, imported once, that the tests of this folder share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from t_elaine.hf import reference
from tests.hf.models import add_small_files, imported, write_model


@pytest.fixture(autouse=True, scope="session")
def without_transformers() -> Iterator[None]:
    """Loading it takes seconds; tests that are about it ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "transformers_lack", lambda parameters: "not tried")
        yield


@pytest.fixture(scope="session")
def imported_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family → a run folder that holds that tiny model, imported from float32 files beside it (in `hf`)."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            base = tmp_path_factory.mktemp(family)
            made[family] = imported(add_small_files(write_model(base / "hf", family)), base / "run")
        return made[family]

    return make
