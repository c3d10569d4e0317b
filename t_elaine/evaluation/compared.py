"""A comparison of two models as tables for a terminal of 80 columns. Prints what `comparing` found."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from t_elaine.evaluation import comparing
from t_elaine.evaluation.table import interval

LEGEND = (
    "difference in points with its paired 95 % bootstrap interval; +: items that only the first has right, −: only the "
    "second; p: McNemar, exact, two-sided; Holm: the same for all exams of the table together"
)


def show_sides(result: Mapping[str, Any], console: Console) -> None:
    """Print how a result's child differs from its parent; nothing where there is no parent."""
    if "parent" in result["models"]:
        draws = {name: int(result["identity"][name]) for name in ("resamples", "seed")}
        sides = [comparing.scores(result, side) for side in ("child", "parent")]
        show(comparing.compare(sides[0], sides[1], **draws), ("child", "parent"), console)


def show(found: Mapping[str, Sequence[Mapping[str, Any]]], names: tuple[str, str], console: Console) -> None:
    """Print a table a protocol; `names` of the two models."""
    for protocol in dict.fromkeys(row["protocol"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["protocol"] == protocol]
        console.print(_table(f"{protocol}: {names[0]} against {names[1]}", rows))
    if found["rows"]:
        console.print(f"[dim]{LEGEND}[/dim]")
    for row in found["left_out"]:
        console.print(f"{row['suite']}, {row['protocol']}: not compared: {row['why']}", highlight=False)


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("exam", no_wrap=True, min_width=12)
    for column in ("n", "difference", "+", "−", "p", "Holm"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        counts = [f"{len(row[key]):,}" for key in ("gained", "lost")]
        shown = interval(row["difference"], 2, 100, True)
        table.add_row(row["suite"], f"{row['questions']:,}", shown, *counts, p_value(row["p"]), p_value(row["p_holm"]))
    return table


def p_value(p: float) -> str:
    """Three decimals; below, a bound."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
