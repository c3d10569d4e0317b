"""The page and the figure of `real_road`: what its files say, in a section between two marks. Computes no score."""

from pathlib import Path
from typing import Any

MARKS = ("<!-- real_road: begin -->", "<!-- real_road: end -->")


def draw(metrics: Path, kills: tuple[int, ...], target: Path) -> None:
    """Loss by step, with the kills, and held-out bits-per-byte by language."""
    pass


def section(facts: dict[str, Any], run: Path, figure: Path | None) -> str:
    return ""


def put(page: Path, text: str) -> None:
    pass
