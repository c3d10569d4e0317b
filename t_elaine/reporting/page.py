"""The report: one HTML page that loads nothing, from what a run folder holds. Words and layout are in page.html.

Decides what belongs on the page and in which words; reads no files but its own template and style.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from t_elaine.reporting import entrants, plots, words
from t_elaine.reporting.plots import Curve
from t_elaine.reporting.record import Line, Record, names_in, series

WAYS = {"text_per_byte": "option text, per byte", "text": "option text, summed", "letter": "option letter"}
LONGEST_SAMPLE = 900
# Title, axis, kind of line, part of the line, number.
BY_GROUP = (
    ("Training loss by language", "nats per token", "train", "language", "loss"),
    ("Held-out pairs by language", "share that is right", "validation", "language", "accuracy"),
    ("Margin of held-out pairs by language", "reward", "validation", "language", "margin"),
    ("Margin of training pairs by language", "reward", "train", "language", "margin"),
    ("Held-out bits per byte by language", "bits per byte", "validation", "language", "bits_per_byte"),
    ("Training bits per byte by language", "bits per byte", "train", "language", "bits_per_byte"),
    ("Training loss by category", "nats per token", "train", "category", "loss"),
    ("Held-out bits per byte by category", "bits per byte", "validation", "category", "bits_per_byte"),
)
OVERALL = (
    ("Learning rate", "learning rate", "learning_rate"),
    ("Gradient norm before clipping", "norm", "grad_norm"),
    ("Throughput", "tokens per second", "tokens_per_second"),
)


def render(record: Record) -> str:
    """The page as HTML text."""
    return environment().get_template("page.html").render(content(record))


def environment() -> jinja2.Environment:
    """The templates of this folder, with our ways of writing numbers."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    made.filters |= {
        "number": words.number,
        "count": words.count,
        "bytes": words.in_bytes,
        "small": words.small,
        "verdict": words.verdict,
        "bar": words.bar,
    }
    return made


def content(record: Record) -> dict[str, Any]:
    """Everything that the template shows, by name."""
    result = list(record.evaluations.values())[-1] if record.evaluations else None
    exams = result["exams"] if result else []
    rows = [row for row in result["bits_per_byte"] if "child" in row] if result else []
    shown: dict[str, Any] = {
        "record": record,
        "css": Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8")),
        "names": words.LANGUAGE_NAMES
        | {name: "" for name in _labels(record, rows) if name not in words.LANGUAGE_NAMES},
        "ways": WAYS,
        "state": record.status,
        "lead": words.lead(record, result),
        "tiles": words.tiles(record, rows),
        "mixture": record.mixture,
        "lost": words.lost(record.mixture),
        "figures": figures(record),
        "result": result,
        "both": bool(result and "parent" in result["models"]),
        "bits": by_level(rows),
        "bits_scale": words.scale(rows),
        "exam_scale": words.scale([score for exam in exams for score in exam["scores"].values()]),
        "findings": words.findings(rows, exams),
        "forgetting": words.forgetting(rows),
        "small_exams": words.small_exams(exams),
        **written(result),
        "samples": samples(exams),
        "licences": licences(record),
        "versions": versions(record.versions),
        "digests": [(name, entry.get("manifest_sha256", "")) for name, entry in record.data.items()],
    }
    return shown | {"sections": sections(shown)}


def written(result: Line | None) -> dict[str, Any]:
    """Exams answered in text, and of all exams what was seen in training; by protocol."""
    models = entrants.of_result(result, "") if result else []
    every = entrants.by_protocol(models)
    return {
        "written": [group for group in every if group[0] != entrants.LIKELIHOOD],
        "all_exams": every,
        "sides": [one.side for one in models],
        "base": entrants.base(models),
    }


def sections(shown: dict[str, Any]) -> list[tuple[str, str]]:
    """(id, name) of the sections that the page has."""
    every = (
        ("findings", "Gain and forgetting", shown["forgetting"] is not None),
        ("seen", "What was seen", shown["mixture"]),
        ("curves", "Curves", shown["figures"]),
        ("scores", "Scores", shown["result"]),
        ("questions", "Sample questions", shown["samples"]),
        ("proof", "Proof", shown["record"].proofs),
        ("licences", "Licences", shown["licences"] or shown["record"].parent),
        ("made", "Configuration", True),
    )
    return [(identity, name) for identity, name, there in every if there]


def _labels(record: Record, rows: Sequence[Line]) -> set[str]:
    names = {name for part in ("language", "category") for name in names_in([*record.steps, *record.validation], part)}
    names |= {row["language"] for row in rows if "language" in row} | set(record.mixture.get("languages", {}))
    for result in record.evaluations.values():
        names |= {exam["language"] for exam in result["exams"]}
    return names


def by_level(rows: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    """Bits-per-byte rows under their headings."""
    headings = {
        "language": "by language, without general text",
        "general": "general text by language",
        "category": "by language and category",
        "store": "by corpus",
    }
    found = [(words, [row for row in rows if row["level"] == level]) for level, words in headings.items()]
    return [(words, members) for words, members in found if members]


def figures(record: Record) -> list[dict[str, Any]]:
    """The plots: what there is data for."""
    found: list[dict[str, Any]] = []
    for title, label, kind, part, key in BY_GROUP:
        lines = record.steps if kind == "train" else record.validation
        if kind == "train" and key == "bits_per_byte" and record.validation:
            continue  # the held-out curve says more
        label = "nats per pair" if key == "loss" and any("margin" in line for line in lines) else label
        names = names_in([*record.steps, *record.validation], part)
        colours = words.colours(names) if part == "language" else {name: i for i, name in enumerate(names)}
        curves = [
            Curve(name=name, pair=pair, colour=colours[name], dots=kind == "validation")
            for name in names
            if (pair := series(lines, part, name, key))[0]
        ]
        if curves:
            found.append(_figure(title, label, curves, record, len(found), legend=True))
    for title, label, name in OVERALL:
        if (pair := series(record.steps, name))[0]:
            curve = Curve(name=name, pair=pair, colour=5, noisy=name != "learning_rate")
            found.append(_figure(title, label, [curve], record, len(found), legend=False))
    return found


def _figure(title: str, label: str, curves: list[Curve], record: Record, place: int, *, legend: bool) -> dict[str, Any]:
    svg = plots.plot(
        curves,
        label,
        f"f{place}",
        resumes=record.resumes,
        title=title,
        from_zero=label in ("learning rate", "tokens per second"),
    )
    return {
        "title": title,
        "legend": [(curve.name, curve.colour % len(plots.COLOURS)) for curve in curves] if legend else [],
        "svg": Markup(svg),  # made by us from numbers and fixed labels
    }


def samples(exams: Sequence[Line]) -> list[tuple[Line, Line]]:
    """(exam, question): two of each exam, none too long for a page; the exams take turns."""
    fitting = [[q for q in exam["samples"] if _length(q) <= LONGEST_SAMPLE][:2] for exam in exams]
    return [(exam, chosen[i]) for i in range(2) for exam, chosen in zip(exams, fitting, strict=True) if i < len(chosen)]


def _length(question: Line) -> int:
    return len(question["question"]) + sum(map(len, question["choices"]))


def licences(record: Record) -> list[dict[str, Any]]:
    """Licence and origin of every source of every store that is still there."""
    return [
        {"name": f"{store}: {name}" if name != store else name, "private": False, **entry}
        for store, manifest in record.stores.items()
        for name, entry in manifest.get("licences", {}).items()
    ]


def versions(found: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """versions.json as rows, empty entries left out."""
    rows: list[tuple[str, str]] = []
    for name, value in found.items():
        label = f"{prefix}{name}"
        if isinstance(value, dict):
            rows += versions(value, "" if name == "packages" else f"{label} ")
        elif value not in (None, ""):
            rows.append((label.replace("_", " "), str(value)))
    return rows
