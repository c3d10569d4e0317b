"""The page of an evaluation as Markdown: its tables and what stands behind them, without plots and answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from t_elaine.reporting import words
from t_elaine.reporting.evaluation_page import p_value


def render(shown: Mapping[str, Any]) -> str:
    """Markdown of what `evaluation_page.content` found."""
    names = shown["model_names"]
    parts = [f"# {shown['title']}", shown["lead"], _models(shown["models"])]
    for protocol, rows in shown["groups"]:
        parts += [f"## {protocol}, % right", _scores(rows, names)]
    if shown["groups"]:
        parts += ["## Seen in training", shown["base"], _seen(shown["groups"], names)]
    if shown["compared"]:
        parts += [f"## Gain and loss: {names[0]} against {names[1]}", *_compared(shown["compared"])]
    for name, both, rows in shown["bits"]:
        parts += [f"## Held-out text, bits per byte: {name}", _bits(rows, both)]
    parts += [told for told, _ in shown["gates"]]
    parts.append("## In the published tables")
    for _, tables in shown["published"]:
        for one in tables:
            parts += [f"### {one['title']}", _source(one), _published(one)]
    if shown["apart"]:
        parts += ["## Numbers of ours that stand in no published table", _apart(shown["apart"])]
    parts += ["## What stands behind the numbers", _made(shown["made"])]
    parts += [f"Versions of {name}: {', '.join(f'{k} {v}' for k, v in rows)}" for name, rows in shown["versions"]]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [list(heads), ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def percent(value: Mapping[str, Any], digits: int = 2, factor: float = 100, signed: bool = False) -> str:
    """A value with its interval."""
    told = [words.number(value[end], digits, factor, signed) for end in ("value", "low", "high")]
    return told[0] if value["low"] is None else f"{told[0]} [{told[1]} to {told[2]}]"


def _models(models: Sequence[Any]) -> str:
    rows = [[one.name, one.model["path"], one.model["identity"][:16], one.path.rpartition("/")[2]] for one in models]
    return table(["model", "given as", "sha256 of its files", "result"], rows)


def _scores(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    lines = []
    for row in rows:
        first = row["first"]
        limits = [words.number(first[key], 1, 100) for key in ("ceiling", "chance")]
        constant = f"{words.number(first['majority']['accuracy'], 1, 100)} {first['majority']['answer']}"
        read = [words.number(first.get("unparsable"), 1, 100), words.number(first.get("answer_characters"), 0)]
        scores = [percent(score["accuracy"]) if score else "–" for score in row["scores"]]
        exam = f"{first['suite']} {row['template']}".rstrip()
        lines.append([exam, first["questions"], *scores, *limits, constant, *read])
    return table(["exam", "n", *names, "limit", "chance", "constant", "% unread", "length"], lines)


def _seen(groups: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], names: Sequence[str]) -> str:
    lines = []
    for _, rows in groups:
        for row in rows:
            found = row["first"].get("contamination", {"known": False, "why": "not looked for"})
            cells = [found[key] for key in ("seen", "half", "unseen")] if found["known"] else [found["why"], "", ""]
            for score in row["scores"]:
                without = (score or {}).get("contamination", {}).get("without", {}).get("accuracy")
                cells += [percent(score["accuracy"]) if score else "–", percent(without) if without else "–"]
            lines.append([row["first"]["suite"], row["first"]["protocol"], *cells])
    heads = [head for name in names for head in (name, "without seen")]
    return table(["exam", "protocol", "seen", "half or more", "left", *heads], lines)


def _compared(found: Mapping[str, Any]) -> list[str]:
    parts = []
    for protocol, rows, _ in found["groups"]:
        lines = [
            [
                row["suite"],
                row["questions"],
                percent(row["difference"], signed=True),
                len(row["gained"]),
                len(row["lost"]),
                p_value(row["p"]),
                p_value(row["p_holm"]),
            ]
            for row in rows
        ]
        parts += [f"### {protocol}", table(["exam", "n", "difference", "gained", "lost", "p", "Holm"], lines)]
    return parts + [f"Not compared: {row['suite']}, {row['protocol']}: {row['why']}." for row in found["left_out"]]


def _bits(rows: Sequence[Mapping[str, Any]], both: bool) -> str:
    sides = ("child", "parent", "difference") if both else ("child",)
    lines = [
        [row["label"], row["documents"], *(percent(row[side], 3, 1, side == "difference") for side in sides)]
        for row in rows
    ]
    return table(["text", "documents", *sides], lines)


def _source(one: Mapping[str, Any]) -> str:
    note = f" Note: {one['note']}." if "note" in one else ""
    return f"{one['metric']}. Source: {one['source']}.{note}"


def _published(one: Mapping[str, Any]) -> str:
    def cell(value: Any) -> str:
        return "–" if value is None else value if isinstance(value, str) else f"{value:.2f}"

    more = [one["average"]] if one["average"] else []
    lines = [[row["model"], *map(cell, row["cells"]), *(cell(row["average"]) for _ in more)] for row in one["rows"]]
    for row in one["ours"]:
        cells = [percent(score) if isinstance(score, Mapping) else cell(score) for score in row["cells"]]
        lines.append([f"**{row['model']} (ours)**", *cells, *(cell(row.get("average")) for _ in more)])
    return table(["model", *one["columns"], *more], lines)


def _apart(apart: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for one in apart:
        row = one["row"]
        told = [row["suite"], row["protocol"], row["questions"], percent(row["accuracy"])]
        rows.append([one["model"], *told, one["why"]])
    return table(["model", "exam", "protocol", "n", "% right", "why"], rows)


def _made(made: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for one in made:
        digests = [f"`{digest}`" if digest else "–" for digest in one["digests"]]
        file = f"[{one['file'].rpartition('/')[2]}]({one['file']})" if one["file"] else "in the result"
        rows.append([one["model"], one["suite"], one["protocol"], *digests, one["engine"], file])
    heads = ["model", "exam", "protocol", "prompts", "templates", "exam's file", "computed by", "answers"]
    return table(heads, rows)
