"""Chip-hours: devices of all hosts × hours, over all starts of a run, and what they cost.

RUN_DIR/chip_hours.json holds them, written at each checkpoint and at the end: what a kill takes between two
checkpoints is not counted.
"""

import json
import time
from typing import Any

import jax

from t_elaine import paths

FILE = "chip_hours.json"


class ChipHours:
    """Counts from its making on. Only process 0's count is written and decides."""

    def __init__(self, run_dir: str, first: int, price: float | None) -> None:
        """first: step that this start begins at; price: of one chip-hour, in any currency; None: not known."""
        self._path, self._price = paths.join(run_dir, FILE), price
        self._since, self._devices = time.monotonic(), jax.device_count()
        self._earlier: list[dict[str, Any]] = []
        if jax.process_index() == 0 and paths.exists(self._path):
            self._earlier = json.loads(paths.read_text(self._path))["starts"]
        self._start = {"first_step": first, "devices": self._devices, "kind": jax.devices()[0].device_kind}
        self._before = sum(float(start["chip_hours"]) for start in self._earlier)

    def now(self) -> float:
        """Chip-hours so far, earlier starts included."""
        return self._before + self._here()

    def _here(self) -> float:
        return (time.monotonic() - self._since) / 3600 * self._devices

    def money(self) -> float | None:
        """What they cost; None without a price."""
        return None if self._price is None else self.now() * self._price

    def figures(self) -> dict[str, float]:
        """For a line of the metrics."""
        money = self.money()
        return {"chip_hours": round(self.now(), 6)} | ({} if money is None else {"money": round(money, 4)})

    def told(self) -> str:
        """For people."""
        money = self.money()
        return f"{self.now():.4g} chip-hours" + ("" if money is None else f", {money:,.2f} in money")

    def write(self, step: int) -> None:
        """Write the record down, as true for this step."""
        if jax.process_index() == 0:
            start = {**self._start, "last_step": step, "chip_hours": round(self._here(), 6)}
            record = {"starts": [*self._earlier, start], **self.figures(), "price_per_chip_hour": self._price}
            paths.write_text(self._path, json.dumps(record, indent=1) + "\n")
