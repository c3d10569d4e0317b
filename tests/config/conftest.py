"""The made-up commands in place of the real ones, and a folder to write gin files in."""

from pathlib import Path

import pytest

from t_elaine.config import settings
from tests.config import made_up

GIN = Path(__file__).parent / "gin"


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working folder with the made-up gin files, and the made-up commands behind them."""
    monkeypatch.setattr(settings, "ROOTS", made_up.ROOTS)
    monkeypatch.setattr(settings, "DATACLASSES", made_up.DATACLASSES)
    monkeypatch.chdir(tmp_path)
    for file in GIN.glob("*.gin"):
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path
