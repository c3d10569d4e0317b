"""What the runs of a sweep came to: the last figures of their metrics, in order of one of them."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from t_elaine import paths
from t_elaine.studies.runner import Outcome

Best = Literal["lowest", "highest"]


def last_figures(run_dir: str) -> dict[str, float]:
    """The newest value of every number in a run's metrics: "train/loss", "validation/language/ja/bits_per_byte".

    A last line that a kill cut off is left out.
    """
    found: dict[str, float] = {}
    names = [name for name in paths.listing(run_dir) if name.startswith("metrics") and name.endswith(".jsonl")]
    lines = [line for name in names for line in paths.read_text(paths.join(run_dir, name)).splitlines(keepends=True)]
    records = [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]
    for record in sorted(records, key=lambda record: record.get("step", 0)):
        found |= _numbers(record, str(record.get("kind", "train")))
    return found


def _numbers(record: dict[str, Any], prefix: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}/{name}"] = value
    return found


def rows(outcomes: Sequence[Outcome], metric: str, best: Best) -> list[dict[str, Any]]:
    """A row for each run: finished runs that have the metric first, the best at the top."""
    made = []
    for outcome in outcomes:
        figures = last_figures(outcome.run.folder)
        made.append(
            {
                "name": outcome.run.name,
                "values": outcome.run.values,
                "state": outcome.state,
                "code": outcome.code,
                "metric": figures.get(metric),
                "step": figures.get("train/step"),
                "loss": figures.get("train/loss"),
                "last_lines": outcome.last_lines,
            }
        )
    sign = 1.0 if best == "lowest" else -1.0

    def order(row: dict[str, Any]) -> tuple[int, float]:
        value = row["metric"]
        return (row["state"] != "finished") + 2 * (value is None), sign * (value or 0.0)

    return sorted(made, key=order)


def known_metrics(outcomes: Sequence[Outcome]) -> list[str]:
    """Every metric that some run has."""
    return sorted({name for outcome in outcomes for name in last_figures(outcome.run.folder)})


def table(found: Sequence[dict[str, Any]], metric: str) -> str:
    """The rows as plain text, columns aligned."""
    settings = list(dict.fromkeys(name for row in found for name in row["values"]))
    also = ["train/loss"] if metric != "train/loss" else []
    lines = [[*settings, metric, *also, "step", "state"]]
    for row in found:
        cells = [str(row["values"].get(name, "")) for name in settings]
        figures = [shown(row["metric"]), *([shown(row["loss"])] if also else []), shown(row["step"])]
        lines.append([*cells, *figures, row["state"]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def shown(value: float | None) -> str:
    """A figure for a table, a dash where there is none."""
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"


def write(folder: str, found: Sequence[dict[str, Any]], metric: str, best: Best) -> str:
    """Write sweep.json, from which the page is made; returns its path."""
    path = paths.join(folder, "sweep.json")
    record = {"metric": metric, "best": best, "runs": list(found)}
    paths.write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path
