"""Curves as inline SVG that follows the page's colours: text stays text, colours are the page's CSS variables.

Legends are not drawn: the page writes them in HTML, where a browser has fonts for every script. Reads no files.
"""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib import font_manager, ticker
from matplotlib.figure import Figure

from t_elaine.reporting.record import Series, smoothed, thinned

# Stand-ins that matplotlib draws with; in the SVG they become CSS variables.
INK, FAINT = "#010203", "#040506"
COLOURS = tuple(f"#0a0b{i:02x}" for i in range(8))
POINTS = 400
SMOOTHED_FROM = 30
SIZE = (4.3, 2.55)
FONTS = ("Noto Sans CJK JP", "Noto Sans JP", "Source Han Sans", "IPAexGothic", "Hiragino Sans", "Yu Gothic", "SimHei")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a plot. `colour`: its number among the page's colours; `dots`: mark each point; `noisy`: smooth."""

    name: str
    pair: Series
    colour: int = 0
    dots: bool = False
    noisy: bool = True


def family() -> list[str]:
    """Font families for labels: one that has Japanese and Chinese if this machine has one, and matplotlib's own."""
    there = {font.name for font in font_manager.fontManager.ttflist}
    return [*(name for name in FONTS if name in there), "DejaVu Sans"]


def plot(
    curves: Sequence[Curve],
    label: str,
    identity: str,
    *,
    resumes: Sequence[int] = (),
    title: str = "",
    log: bool = False,
    from_zero: bool = False,
) -> str:
    """One figure as an `<svg>` element.

    Args:
        curves: what to draw; long ones are thinned to means, noisy ones get a running mean over the faint original.
        label: of the vertical axis, with its unit.
        identity: goes in front of every id in the SVG, so that a page may hold many.
        resumes: steps to be marked by a dotted line.
        title: for screen readers.
        log: logarithmic vertical axis.
        from_zero: the vertical axis begins at 0.
    """
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": identity,
        "font.family": family(),
        "font.size": 8.5,
        "axes.unicode_minus": True,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has the glyph
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        for curve in curves:
            _draw(axes, curve)
        for step in resumes:
            axes.axvline(step, color=INK, linewidth=0.7, linestyle=(0, (1.5, 2)), zorder=1)
        _dress(axes, label, log, from_zero)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return themed(buffer.getvalue(), identity, title or label)


def _draw(axes: matplotlib.axes.Axes, curve: Curve) -> None:
    colour = COLOURS[curve.colour % len(COLOURS)]
    steps, values = thinned(curve.pair, POINTS)
    if curve.dots:
        axes.plot(steps, values, color=colour, linewidth=1.4, marker="o", markersize=3.2)
    elif len(steps) < SMOOTHED_FROM or not curve.noisy:
        axes.plot(steps, values, color=colour, linewidth=1.3)
    else:
        axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.35)
        axes.plot(*smoothed((steps, values), max(3, len(steps) // 25)), color=colour, linewidth=1.5)


def _dress(axes: matplotlib.axes.Axes, label: str, log: bool, from_zero: bool) -> None:
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel(label, color=INK)
    if log:
        axes.set_yscale("log")
    elif from_zero:
        axes.set_ylim(bottom=0)
    if not log:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, pad=4)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    offset = axes.yaxis.get_offset_text()
    offset.set_color(INK)


def themed(svg: str, identity: str, title: str) -> str:
    """matplotlib's SVG file as an element for a page: no prologue, ids of its own, the page's colours and fonts."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{identity}-\1"', svg)
    svg = re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{identity}-", svg)
    svg = svg.replace(INK, "var(--ink-2)").replace(FAINT, "var(--line)")
    for i, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--c{i})")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", svg, count=1)
    safe = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{safe}" ', 1)
