"""The page of an evaluation: scores, gain and loss, answers, the published tables with ours, what stands behind them.

Decides what belongs on the page; words and layout are in evaluation.html. `evaluation_text` says the same in Markdown.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from t_elaine import paths
from t_elaine.reporting import page, published, score_plots, side_by_side, words
from t_elaine.reporting.entrants import Entrant, base, by_protocol

Comparison = Mapping[str, Sequence[Mapping[str, Any]]]


def render(shown: Mapping[str, Any]) -> str:
    """The page as HTML text, of what `content` found."""
    environment = page.environment()
    environment.filters["p_value"] = p_value
    return environment.get_template("evaluation.html").render(shown)


def content(
    models: Sequence[Entrant], compared: Comparison | None, folder: str, suites_dir: str = ""
) -> dict[str, Any]:
    """Everything that the template shows, by name.

    Args:
        models: one or more.
        compared: the first two, item by item.
        folder: where the page will lie; links to answers start there.
        suites_dir: folder of the published exams, for the questions' texts.
    """
    groups = by_protocol(models)
    found = [row["contamination"] for model in models for row in model.rows if "contamination" in row]
    shown: dict[str, Any] = {
        "title": " and ".join([", ".join(one.name for one in models[:-1]), models[-1].name]).removeprefix(" and "),
        "lead": lead(models, groups),
        "css": Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8")),
        "names": words.LANGUAGE_NAMES,
        "models": models,
        "model_names": [one.name for one in models],
        "groups": groups,
        "charts": charts(groups),
        "stores": list(dict.fromkeys(name for one in found for name in one.get("stores", {}))),
        "base": base(models),
        "compared": _compared(compared),
        "bits": bits(models),
        "gates": [gate for gate in (one.result.get("forgetting") for one in models if one.side == "child") if gate],
        "answers": side_by_side.shown(models, suites_dir),
        "published": by_language(models),
        "apart": published.apart(models),
        "made": made(models, folder),
        "versions": versions(models),
    }
    shown["gates"] = [(gate["told"], not gate["exceeded"]) for gate in shown["gates"]]
    return shown | {"sections": _sections(shown)}


def p_value(p: float) -> str:
    """Three decimals; below, a bound."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def lead(models: Sequence[Entrant], groups: Sequence[tuple[str, Any]]) -> str:
    """What was evaluated, in one sentence."""
    exams = {row["first"]["suite"] for _, rows in groups for row in rows}
    parts = [f"{len(models)} model{'s' * (len(models) > 1)}"]
    if groups:
        parts.append(f"{len(exams)} exam{'s' * (len(exams) > 1)} under {', '.join(name for name, _ in groups)}")
    return f"{'; '.join(parts)}."


def charts(groups: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[tuple[str, Markup]]:
    """A plot a language: every exam under every protocol."""
    every = [(protocol, row) for protocol, rows in groups for row in rows]
    found = []
    for language in sorted({row["first"]["language"] for _, row in every}):
        lines = [
            (f"{row['first']['suite']} {row['template'] or short(protocol)}", row["scores"])
            for protocol, row in every
            if row["first"]["language"] == language
        ]
        found.append((language, Markup(score_plots.by_exam(lines, f"Scores of exams, {language}"))))
    return found


def short(protocol: str) -> str:
    """A protocol's name for a plot."""
    return {"official-rescored": "rescored"}.get(protocol, protocol)


def _compared(found: Comparison | None) -> dict[str, Any] | None:
    if not found or not (found["rows"] or found["left_out"]):
        return None
    groups = []
    for protocol in dict.fromkeys(row["protocol"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["protocol"] == protocol]
        groups.append((protocol, rows, Markup(score_plots.differences(rows, f"Gain and loss, {protocol}"))))
    return {"groups": groups, "left_out": found["left_out"]}


def bits(models: Sequence[Entrant]) -> list[tuple[str, bool, list[dict[str, Any]]]]:
    """(model, has it a parent, rows) of held-out text, a table a result."""
    found = []
    for one in models:
        rows = [row for row in one.result["bits_per_byte"] if "child" in row] if one.side == "child" else []
        if rows:
            told = [row | {"label": words.text_of(row)} for row in rows]
            found.append((one.name, "parent" in one.result["models"], told))
    return found


def by_language(models: Sequence[Entrant]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Language ("" for several) → published tables; those of asked exams stand open."""
    asked = {row["suite"] for model in models for row in model.rows}
    found: dict[str, list[dict[str, Any]]] = {}
    for table in published.tables():
        shown = published.with_ours(table, models) | {"open": bool(asked & set(table.get("suites", ())))}
        found.setdefault(table["language"], []).append(shown)
    return sorted(found.items(), key=lambda pair: (not pair[0], pair[0]))


def made(models: Sequence[Entrant], folder: str) -> list[dict[str, Any]]:
    """Digests, engine and file of answers of every score."""
    found = []
    for model in models:
        for row in model.rows:
            # Answers say themselves who wrote them; scores are the whole result's.
            by = {"engine": "t-elaine", **model.result["identity"], **row.get("answered_by", {})}
            told = [by["engine"], by.get("dtype", "")]
            found.append(
                {
                    "model": model.name,
                    "suite": row["suite"],
                    "protocol": row["protocol"],
                    "digests": [row.get(f"{name}_sha256", "") for name in ("prompts", "protocol", "suite")],
                    "engine": ", ".join(filter(None, told)),
                    "file": _link(model.path, row["answers"], folder) if "answers" in row else "",
                }
            )
    return found


def _link(result: str, name: str, folder: str) -> str:
    file = paths.join(f"{result.removesuffix('.json')}-answers", name)
    return file if paths.is_remote(file) or paths.is_remote(folder) else quote(os.path.relpath(file, folder))


def versions(models: Sequence[Entrant]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Packages, source and machine by result; of answers, what the engine had."""
    found = {}
    for model in models:
        rows = page.versions(model.result.get("versions", {}))
        for row in model.rows:
            rows = rows or page.versions({"packages": row.get("answered_by", {}).get("versions", {})})
        if rows:
            found[model.path.rpartition("/")[2]] = rows
    return list(found.items())


def _sections(shown: Mapping[str, Any]) -> list[tuple[str, str]]:
    every = (
        ("scores", "Scores", shown["groups"]),
        ("seen", "Seen in training", shown["groups"]),
        ("published", "Published tables", True),
        ("compared", "Gain and loss", shown["compared"]),
        ("bits", "Held-out text", shown["bits"]),
        ("answers", "Answers", shown["answers"]),
        ("made", "Behind the numbers", True),
    )
    return [(identity, name) for identity, name, there in every if there]
