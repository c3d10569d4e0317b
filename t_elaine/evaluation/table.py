"""A result as tables that fit a terminal of 80 columns. Prints what the result file says and computes nothing."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from t_elaine.evaluation import contamination

LABELS = {
    "store": "corpus",
    "category": "language, category",
    "language": "language, without general text",
    "general": "language, general text",
}


def show(result: dict[str, Any], console: Console) -> None:
    """Print bits-per-byte and exam scores, child beside parent."""
    both = "parent" in result["models"]
    for level, label in LABELS.items():
        rows = [row for row in result["bits_per_byte"] if row["level"] == level and "child" in row]
        if rows:
            console.print(_bits(rows, label, both))
    for exam in result["exams"]:
        console.print(_exam(exam, both))
        if told := contamination.sentence(exam, lambda value: interval(value, 1, 100)):
            console.print(f"{told}\n", highlight=False)
    if result["bits_per_byte"] or result["exams"]:
        console.print("[dim]in brackets 95 % bootstrap intervals, none below 5 documents; Δ child − parent[/dim]")


def _table(title: str, label: str, both: bool, extra: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(label, overflow="fold")
    for name in (*extra, "child", *(("parent", "Δ") if both else ())):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _bits(rows: list[dict[str, Any]], label: str, both: bool) -> Table:
    table = _table(f"bits per byte by {label} (lower is better)", label.partition(", with")[0], both, ("bytes",))
    for row in rows:
        name = row.get("store") or ", ".join(row[key] for key in ("language", "category") if key in row)
        cells = [interval(row["child"], 3)]
        if both:
            cells += [f"{row['parent']['value']:.3f}", interval(row["difference"], 3, signed=True)]
        table.add_row(name, amount(row["bytes"]), *cells)
    return table


def _exam(exam: dict[str, Any], both: bool) -> Table:
    most = exam["majority"]
    lines = f"chance {100 * exam['chance']:.0f}, always {most['answer']} {100 * most['accuracy']:.0f}"
    table = _table(f"{exam['suite']}, % right of {exam['questions']} ({lines})", "option likelihood", both, ())
    for name in (exam["headline"], *(name for name in exam["scores"] if name != exam["headline"])):
        score = exam["scores"][name]
        cells = [interval(score["child"], 1, 100)]
        if both:
            cells += [f"{100 * score['parent']['value']:.1f}", interval(score["difference"], 1, 100, True)]
        table.add_row(name.replace("_", " "), *cells)
    return table


def interval(value: dict[str, Any], digits: int, factor: float = 1.0, signed: bool = False) -> str:
    """A value with its interval, if it has one: 1.234 [1.200–1.270]; a signed one: −0.020 [−0.031 +0.002]."""
    sign = "+" if signed else ""
    if value["low"] is None:
        return f"{factor * value['value']:{sign}.{digits}f}".replace("-", "−")
    shown = [f"{factor * value[name]:{sign}.{digits}f}".replace("-", "−") for name in ("value", "low", "high")]
    return f"{shown[0]} \\[{shown[1]}{' ' if signed else '–'}{shown[2]}]"


def amount(n: float) -> str:
    """A count in three digits: 812, 4.1k, 12M."""
    for unit in ("", "k", "M", "G"):
        if abs(n) < 1000:
            return f"{n:.0f}{unit}" if unit == "" or n >= 100 else f"{n:.1f}{unit}"
        n /= 1000
    return f"{n:.0f}T"
