"""Scores by exam with their intervals, and gains against another model, as inline SVG in the page's colours.

Reads no files. Names of exams are written by the browser, which has fonts for every script.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from t_elaine.reporting import words

WIDTH, LEFT, RIGHT, ROW = 680, 168, 16, 15
LONGEST = 27  # letters of a name
SCALES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)
COLOURS = 8  # of the page


def by_exam(groups: Sequence[tuple[str, Sequence[Mapping[str, Any] | None]]], title: str) -> str:
    """Per cent right: a band from chance to ceiling a exam, a tick at the best constant answer, a dot a model.

    Args:
        groups: (exam, a score or None of each model, always in the same order).
        title: for screen readers.
    """
    many = max((len(scores) for _, scores in groups), default=1)
    height = many * ROW + 14
    parts = [_axis(len(groups) * height, 0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0])]
    for place, (exam, scores) in enumerate(groups):
        top = 8 + place * height
        parts.append(_name(exam, top + height / 2 - 3))
        parts.append(_band(next(score for score in scores if score), top, height - 8))
        for i, score in enumerate(scores):
            if score:
                parts.append(_dot(score["accuracy"], top + ROW * (i + 0.5) + 2, i % COLOURS, 0.0, 1.0))
    return _svg(parts, len(groups) * height + 34, title)


def differences(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Differences with their intervals around zero, in points; green and red where the interval leaves out zero."""
    largest = max(abs(row["difference"][end] or 0.0) for row in rows for end in ("value", "low", "high"))
    scale = next(scale for scale in SCALES if scale >= min(largest, 1.0))
    height = ROW + 8
    ticks = [-scale, -scale / 2, 0.0, scale / 2, scale]
    parts = [_axis(len(rows) * height, -scale, scale, ticks, signed=True)]
    for place, row in enumerate(rows):
        y = 8 + place * height + height / 2
        colour = {"better": "var(--good)", "worse": "var(--bad)", "": "var(--ink-2)"}[
            words.verdict(row["difference"], False)
        ]
        parts += [_name(row["suite"], y + 4), _dot(row["difference"], y, colour, -scale, scale)]
    return _svg(parts, len(rows) * height + 34, title)


def _x(value: float, low: float, high: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low), 2)


def _axis(bottom: float, low: float, high: float, ticks: Sequence[float], signed: bool = False) -> str:
    lines = []
    for tick in ticks:
        x, strong = _x(tick, low, high), signed and tick == 0
        lines.append(
            f'<line x1="{x}" x2="{x}" y1="4" y2="{bottom + 8}" stroke="var(--{"ink-2" if strong else "line"})"/>'
        )
        label = words.number(tick, 0 if high >= 0.1 else 1, 100, signed)
        lines.append(f'<text x="{x}" y="{bottom + 24}" text-anchor="middle">{label}</text>')
    return "".join(lines)


def _name(exam: str, y: float) -> str:
    shown = exam if len(exam) <= LONGEST else f"{exam[: LONGEST - 1]}…"
    return f'<text x="{LEFT - 10}" y="{y}" text-anchor="end" class="name">{escape(shown)}</text>'


def _band(score: Mapping[str, Any], top: float, height: float) -> str:
    low, high, most = (_x(v, 0, 1) for v in (score["chance"], score["ceiling"], score["majority"]["accuracy"]))
    return (
        f'<rect x="{low}" width="{max(0, high - low)}" y="{top}" height="{height}" rx="3" fill="var(--soft)"/>'
        f'<line x1="{most}" x2="{most}" y1="{top}" y2="{top + height}" stroke="var(--ink-2)" stroke-dasharray="2 2"/>'
    )


def _dot(value: Mapping[str, Any], y: float, colour: int | str, low: float, high: float) -> str:
    ink = colour if isinstance(colour, str) else f"var(--c{colour})"
    line = ""
    if value["low"] is not None:
        first, last = (_x(value[end], low, high) for end in ("low", "high"))
        line = f'<line x1="{first}" x2="{last}" y1="{y}" y2="{y}" stroke="{ink}" stroke-width="2" opacity=".7"/>'
    return f'{line}<circle cx="{_x(value["value"], low, high)}" cy="{y}" r="4" fill="{ink}"/>'


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    label = escape(title, {'"': "&quot;"})
    inside = "".join(parts)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{inside}</svg>'
