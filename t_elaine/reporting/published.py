"""The published tables with our scores in their places, and our other scores with why they have no place there.

The figures are data_tasks/published.json; that a score is of a table's own protocol and items says the score itself
(`published_row`), which `evaluate` wrote.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from t_elaine import paths
from t_elaine.reporting.entrants import LIKELIHOOD, Entrant, Row

OTHER_GRADING = {
    LIKELIHOOD: "options are scored by their likelihood; the tables have written answers",
    "repaired": "prompts and grading of our own",
    "official-rescored": "the table's prompts, but grading of our own",
}


@functools.cache
def tables() -> tuple[Mapping[str, Any], ...]:
    """The published tables: id, system, language, title, metric, source, protocol, columns, average, rows.

    `marks`: the scores that the cells hold in place of accuracies, as "45.94 / 40.51".
    """
    return tuple(json.loads((paths.shipped("data_tasks") / "published.json").read_bytes())["tables"])


def place(row: Row) -> tuple[str, str] | None:
    """(table, column) that a score stands in; None where protocol, exam or questions are others."""
    found = row.get("published_row")
    return (found["table"], found["column"]) if found else None


def with_ours(table: Mapping[str, Any], models: Sequence[Entrant]) -> dict[str, Any]:
    """A table with a row for each of our models that has a score there; its average where it has all of them."""
    ours = []
    for model in models:
        cells = {at[1]: row for row in model.rows if (at := place(row)) and at[0] == table["id"]}
        if cells:
            shown = [_cell(table, cells[name]) if name in cells else None for name in table["columns"]]
            ours.append({"model": model.name, "cells": shown, **_average(table, cells)})
    return {**table, "ours": ours, "below": _subjects(table, models)}


def _subjects(table: Mapping[str, Any], models: Sequence[Entrant]) -> list[dict[str, Any]]:
    """Parts of our scores that a table has as columns of its own, as MMLU's subjects; they stand below it."""
    found = []
    for model in models:
        for row in model.rows:
            parts = row.get("by_subject", {})
            if set(parts) & set(table["columns"]):
                cells = [parts.get(name) for name in table["columns"]]
                found.append({"model": model.name, "protocol": row["protocol"], "cells": cells})
    return found


def _cell(table: Mapping[str, Any], row: Row) -> Any:
    """What stands in a table for a score: its accuracy with its interval, or its marks in % as text."""
    if "marks" not in table:
        return row["accuracy"]
    return " / ".join(f"{100 * row['marks'][name]['value']:.2f}" for name in table["marks"])


def _average(table: Mapping[str, Any], cells: Mapping[str, Row]) -> dict[str, Any]:
    """Unweighted over the columns, as in the published tables."""
    if not table["average"] or set(cells) != set(table["columns"]):
        return {}
    if "marks" not in table:
        return {"average": 100 * sum(row["accuracy"]["value"] for row in cells.values()) / len(cells)}
    means = [sum(row["marks"][name]["value"] for row in cells.values()) / len(cells) for name in table["marks"]]
    return {"average": " / ".join(f"{100 * value:.2f}" for value in means)}


def apart(models: Sequence[Entrant]) -> list[dict[str, Any]]:
    """Scores without a place in a table: {"model", "row", "why"}."""
    return [
        {"model": model.name, "row": row, "why": why(row)} for model in models for row in model.rows if not place(row)
    ]


def why(row: Row) -> str:
    """Why a score stands in no published table."""
    if row["protocol"] in OTHER_GRADING:
        return OTHER_GRADING[row["protocol"]]
    if row["protocol"].partition(":")[2] and row.get("published_suite"):
        return "the table has another template, or not all questions were asked"
    if not row.get("published_suite"):
        return "the file of the exam is none of the published ones"
    for table in tables():
        if row["suite"] in table.get("suites", ()):
            wanted = table["scored"][table["suites"].index(row["suite"])]
            if row["questions"] != wanted:
                return f"{row['questions']:,} of {wanted:,} questions were asked"
    return "no published table has this exam under this protocol"
