"""Scores under protocols that have several templates, as tables of 80 columns: a table an exam, a row a template.

Of MMedBench a table a template: a row a language. Prints what the result says.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from t_elaine.evaluation.table import interval

Row = Mapping[str, Any]
# Marks as published, then as the published code computes them.
RATIONALE = {"bleu_1": "BLEU-1", "rouge_1": "ROUGE-1", "bleu_4": "BLEU-4*", "rouge_l": "ROUGE-L*"}
MMEDBENCH = "mmedbench"
COMMITTED = "of rationales that people have passed, × 100; * what the published code computes under these names"


def is_templated(row: Row) -> bool:
    """The protocol's name ends in a template's."""
    return ":" in row["protocol"]


def show(generated: Mapping[str, Sequence[Row]], console: Console) -> None:
    """Print them; `generated`: side → scores."""
    sides = [[row for row in rows if is_templated(row)] for rows in generated.values()]
    together = list(zip(*sides, strict=True))
    for exam in dict.fromkeys((_family(rows[0]), rows[0]["suite"]) for rows in together):
        if exam[0] != MMEDBENCH:
            console.print(_templates([rows for rows in together if (_family(rows[0]), rows[0]["suite"]) == exam]))
    asked = [rows for rows in together if _family(rows[0]) == MMEDBENCH]
    if found := _by_language(asked, "answer"):
        console.print(_accuracies(found, list(generated)))
    if found := _by_language(asked, "rationale"):
        console.print(_rationales(found, list(generated)))
        console.print(f"[dim]{COMMITTED}[/dim]\n")


def _family(row: Row) -> str:
    return str(row["protocol"].partition(":")[0])


def _template(row: Row) -> str:
    return str(row["protocol"].partition(":")[2])


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    return table


def _templates(asked: Sequence[Sequence[Row]]) -> Table:
    first = asked[0][0]
    most, marks = first["majority"], list(first.get("marks", {}))
    limits = f"{100 * first['ceiling']:.1f}/{100 * first['chance']:.1f}/{100 * most['accuracy']:.1f} {most['answer']}"
    about = f"{first['questions']:,} items, limits {limits}"
    table = _table(f"{_family(first)}, {first['suite']}, % right ({about})", "template")
    sides = ("child", "parent")[: len(asked[0])]
    seen = any(row.get("contamination", {}).get("known") for rows in asked for row in rows)
    for column in (*sides, *marks, "none", *(("unseen",) if seen else ()), *(("length",) if len(sides) == 1 else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for rows in asked:
        cells = [interval(rows[0]["accuracy"], 1, 100), *(f"{100 * row['accuracy']['value']:.1f}" for row in rows[1:])]
        cells += [f"{100 * rows[0]['marks'][name]['value']:.1f}" for name in marks]
        cells += [f"{100 * rows[0]['unparsable']:.1f}", *([_unseen(rows[0])] if seen else [])]
        cells += [f"{rows[0]['answer_characters']:.0f}"] if len(rows) == 1 else []
        table.add_row(_template(rows[0]), *cells)
    return table


def _unseen(row: Row) -> str:
    left = row["contamination"].get("without", {"questions": 0})
    return f"{100 * left['accuracy']['value']:.1f}" if left["questions"] else "–"


def _by_language(asked: Sequence[Sequence[Row]], template: str) -> dict[str, Sequence[Row]]:
    return {rows[0]["suite"].partition("/")[2]: rows for rows in asked if _template(rows[0]) == template}


def _accuracies(asked: Mapping[str, Sequence[Row]], sides: Sequence[str]) -> Table:
    table = _table("mmedbench, % right", "language")
    for column in ("n", *sides, "limits", "none"):
        table.add_column(column, justify="right", no_wrap=True)
    for language, rows in asked.items():
        cells = [interval(rows[0]["accuracy"], 2, 100), *(f"{100 * row['accuracy']['value']:.2f}" for row in rows[1:])]
        cells += [limits(rows[0]), f"{100 * rows[0]['unparsable']:.1f}"]
        table.add_row(language, f"{rows[0]['questions']:,}", *cells)
    return table


def _rationales(asked: Mapping[str, Sequence[Row]], sides: Sequence[str]) -> Table:
    table = _table(f"mmedbench, rationales, {'/'.join(sides)}", "language")
    for column in ("n", *RATIONALE.values()):
        table.add_column(column, justify="right", no_wrap=True)
    for language, rows in asked.items():
        if all("marks" in row for row in rows):
            digits = 2 if len(rows) == 1 else 1
            cells = ["/".join(f"{100 * row['marks'][name]['value']:.{digits}f}" for row in rows) for name in RATIONALE]
            table.add_row(language, f"{rows[0]['marks']['bleu_1']['questions']:,}", *cells)
    return table


def limits(row: Row) -> str:
    """The best, a drawn and the best constant answer, in per cent."""
    most = row["majority"]
    return f"{100 * row['ceiling']:.0f}/{100 * row['chance']:.0f}/{100 * most['accuracy']:.0f} {most['answer']}"
