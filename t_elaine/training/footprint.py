"""What a start costs and a step takes up: compile time, first step, device memory; into the log and the metrics.

It measures only; whether a run fits is asked before, in `fit`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from t_elaine.training.fit import text


class Footprint:
    """Figures for the lines of the metrics, and a sink that tells of the first step."""

    def __init__(self, done: Any, compile_seconds: float, say: Callable[[str], None]) -> None:
        """done: the compiled step; say: takes messages."""
        self._compile: float | None = round(compile_seconds, 3)
        self._step, self._say, self._told = step_bytes(done), say, False

    def figures(self) -> dict[str, Any]:
        """`device_memory` {step, peak} in bytes; `compile_seconds` the first time."""
        memory = {"step": self._step, "peak": peak_bytes()}
        found: dict[str, Any] = {"device_memory": {name: value for name, value in memory.items() if value is not None}}
        if self._compile is not None:
            found["compile_seconds"], self._compile = self._compile, None
        return found

    def write(self, record: Mapping[str, Any]) -> None:
        """Tell of the first step."""
        if self._told or record["kind"] != "train":
            return
        self._told = True
        memory = record["device_memory"]
        peak = f", {text(memory['peak'])} at most so far" if "peak" in memory else ""
        self._say(
            f"first step {record['seconds']['step']:.2f} s; a device holds {text(memory['step'])} in a step{peak}"
        )

    def flush(self) -> None:
        """Nothing to make safe."""

    def close(self) -> None:
        """Nothing to close."""


def step_bytes(done: Any) -> int:
    """Bytes of one device that the compiled step needs: its arguments, what it makes anew, and temporaries."""
    memory: Any = done.memory_analysis()
    kinds = ("argument", "output", "temp")
    return int(sum(getattr(memory, f"{kind}_size_in_bytes") for kind in kinds) - memory.alias_size_in_bytes)


def peak_bytes() -> int | None:
    """The most that any device of this process held at once so far; None where devices do not tell (CPUs)."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return max((int(peak) for peak in peaks if peak is not None), default=None)
