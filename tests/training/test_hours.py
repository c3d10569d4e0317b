"""Chip-hours: all devices, all starts of a run; the limit is on their sum."""

import json
from pathlib import Path

import jax
import pytest

from t_elaine.training import hours
from t_elaine.training.stopping import stopping


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that `hours` takes for now."""
    now = [1000.0]
    monkeypatch.setattr(hours.time, "monotonic", lambda: now[0])
    return now


def test_devices_and_starts_are_summed_up(tmp_path: Path, clock: list[float]) -> None:
    first = hours.ChipHours(str(tmp_path), 0, 1.5)
    clock[0] += 1800
    assert jax.device_count() == 8 and first.now() == pytest.approx(4.0)
    assert first.figures() == {"chip_hours": 4.0, "money": 6.0}
    first.write(100)
    clock[0] += 900  # killed: what came after the last checkpoint is not counted
    second = hours.ChipHours(str(tmp_path), 100, None)
    clock[0] += 900
    assert second.now() == pytest.approx(6.0) and second.figures() == {"chip_hours": 6.0}
    second.write(150)
    second.write(200)
    record = json.loads((tmp_path / hours.FILE).read_text())
    assert [(s["first_step"], s["last_step"], s["chip_hours"]) for s in record["starts"]] == [
        (0, 100, 4),
        (100, 200, 2),
    ]
    assert record["chip_hours"] == 6.0 and "6 chip-hours" in second.told()


def test_the_limit_is_on_the_sum_of_all_starts(tmp_path: Path, clock: list[float]) -> None:
    first = hours.ChipHours(str(tmp_path), 0, None)
    clock[0] += 1800
    first.write(10)
    second = hours.ChipHours(str(tmp_path), 10, None)
    with stopping(5.0, second.now) as stop:
        assert stop(11) is None
        clock[0] += 451  # 8 devices: one more hour of chips
        assert stop(12) == "chip hours"
