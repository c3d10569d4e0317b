"""Scores of exams that were answered in text, as tables for a terminal of 80 columns. Prints what the result says."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from t_elaine.evaluation import templated
from t_elaine.evaluation.table import interval

LEGEND = (
    "limits: the best that any answers can get / drawn / the best constant answer; none: % of answers in which none "
    "was found; length: characters of an answer; prompts' digests and all answers stand with the result"
)


def show(generated: Mapping[str, Sequence[Mapping[str, Any]]], console: Console) -> None:
    """Print a table a protocol: a row an exam, in per cent right; `generated`: side → scores.

    Protocols with several templates have tables of their own (`templated`).
    """
    sides = list(generated)
    plain = [row for rows in generated.values() for row in rows if not templated.is_templated(row)]
    names = dict.fromkeys(row["protocol"] for row in plain)
    for name in names:
        by_side = [[row for row in generated[side] if row["protocol"] == name] for side in sides]
        table = Table(
            title=f"{name}, % right", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
        )
        table.add_column("exam", no_wrap=True, min_width=12)
        for column in ("n", *sides, "limits", "none", *(("length",) if len(sides) == 1 else ())):
            table.add_column(column, justify="right", no_wrap=True)
        for rows in zip(*by_side, strict=True):
            if rows[0]["questions"]:
                table.add_row(rows[0]["suite"], f"{rows[0]['questions']:,}", *_cells(rows))
        console.print(table)
        _show_unseen(name, by_side, console)
    templated.show(generated, console)
    if any(generated.values()):
        console.print(f"[dim]{LEGEND}[/dim]")
    for side, rows in generated.items():
        for row in rows:
            if row["unanswered"]:
                what = f"{row['suite']}, {row['protocol']}, {side}: no answer to {len(row['unanswered'])} of "
                what += f"{len(row['items'])} items, whose prompts are longer than the context; they count as wrong; "
                console.print(f"{what}the first is {row['unanswered'][0]}", highlight=False)


def _show_unseen(name: str, by_side: Sequence[Sequence[Mapping[str, Any]]], console: Console) -> None:
    """A table of the same scores without the items that stand in the texts trained on; or why it is not known."""
    found = [row["contamination"] for row in by_side[0] if "contamination" in row]
    whys = dict.fromkeys(one["why"] for one in found if not one["known"])
    for why in whys:
        console.print(f"questions seen in training: {why}\n", highlight=False)
    title = f"{name} without the questions seen in the texts trained on, % right"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("exam", no_wrap=True, min_width=12)
    for column in ("seen", "≥ half", "n left", *("child", "parent")[: len(by_side)]):
        table.add_column(column, justify="right", no_wrap=True)
    for rows in zip(*by_side, strict=True):
        one = rows[0].get("contamination", {"known": False})
        if rows[0]["questions"] and one["known"]:
            left = [row["contamination"]["without"] for row in rows]
            shown = [interval(part["accuracy"], 2, 100) if part["questions"] else "–" for part in left]
            table.add_row(rows[0]["suite"], *(f"{one[key]:,}" for key in ("seen", "half", "unseen")), *shown)
    if table.row_count:
        console.print(table)
        for base in dict.fromkeys(one["base"] for one in found if one["base"]):
            console.print(f"{base}\n", highlight=False)


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    first = rows[0]
    cells = [interval(first["accuracy"], 2, 100), *(f"{100 * row['accuracy']['value']:.2f}" for row in rows[1:])]
    cells += [templated.limits(first), f"{100 * first['unparsable']:.1f}"]
    return cells if len(rows) > 1 else [*cells, f"{first['answer_characters']:.0f}"]
