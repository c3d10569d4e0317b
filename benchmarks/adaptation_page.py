"""The pages of `real_adaptation`: what its facts say, as tables and answers in Markdown. Computes no score."""

from pathlib import Path
from typing import Any

from benchmarks.real_page import LANGUAGES, estimate, table

MARKS = ("<!-- real_adaptation: begin -->", "<!-- real_adaptation: end -->")
STAGES = {"parent": "before", "cpt": "after text", "sft": "after conversations", "merged": "merged"}
# Kind of held-out documents → (level of the evaluation's rows, what the page calls them).
KINDS = {
    "medical": ("text", "language", "medical text"),
    "general": ("text", "general", "general text"),
    "answers": ("answers", "language", "answers"),
}
SHOWN = 1  # of each language's questions, on the page of numbers
CUT = 160  # characters of an answer there


def scored(facts: dict[str, Any], stage: str, kind: str, language: str) -> dict[str, Any]:
    """One row of an evaluation: `child` with replay, `parent` without, `difference`."""
    part, level, _ = KINDS[kind]
    rows = facts["done"][f"scores {stage}"][part]
    return next(row for row in rows if row["level"] == level and row["language"] == language)


def lines() -> list[tuple[str, str, str]]:
    """(kind, language, name of the line) in the page's order."""
    return [(kind, language, f"{KINDS[kind][2]}, {LANGUAGES[language]}") for kind in KINDS for language in LANGUAGES]


def stage_table(facts: dict[str, Any]) -> str:
    """Bits-per-byte at each stage, the branch with replay before the one without."""
    head = ["", "documents", "kB", STAGES["parent"]]
    head += [f"{told}, {branch}" for told in list(STAGES.values())[1:] for branch in ("replay", "without")]
    rows = []
    for kind, language, name in lines():
        first = scored(facts, "parent", kind, language)
        cells = [name, str(first["documents"]), f"{first['bytes'] / 1000:.0f}", f"{first['child']['value']:.3f}"]
        for stage in list(STAGES)[1:]:
            row = scored(facts, stage, kind, language)
            cells += [f"{row[side]['value']:.3f}" for side in ("child", "parent")]
        rows.append(cells)
    return table(head, rows)


def replay_table(facts: dict[str, Any]) -> str:
    """With replay minus without, at each stage, paired over documents."""
    stages = list(STAGES)[1:]
    rows = [
        [name, *(estimate(scored(facts, stage, kind, language)["difference"], signed=True) for stage in stages)]
        for kind, language, name in lines()
    ]
    return table(["", *(STAGES[stage] for stage in stages)], rows)


def training_table(facts: dict[str, Any]) -> str:
    """What each training did."""
    rows = []
    for name, run in facts["trained"].items():
        cells = [f"{run['updates']}", f"{run['targets']:,}", f"{run['first']:.3f}", f"{run['last']:.3f}"]
        rows.append([f"`{name}`", *cells, f"{run['seconds']:.0f}"])
    return table(["run", "updates", "target tokens", "first loss", "last loss", "seconds"], rows)


def short(text: str, limit: int) -> str:
    """An answer in one line of a table."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= limit else flat[:limit].rstrip() + " …"


def by_model(facts: dict[str, Any]) -> dict[str, dict[tuple[str, int], dict[str, Any]]]:
    """Model → (language, number) → answer."""
    found = {key.split(" ", 1)[1]: rows for key, rows in facts["done"].items() if key.startswith("answers ")}
    return {name: {(row["language"], row["number"]): row for row in rows} for name, rows in found.items()}


def answer_table(facts: dict[str, Any], names: tuple[str, ...] = ("import", "sft-replay", "merged-replay")) -> str:
    """The first questions of each language, before and after."""
    held = by_model(facts)
    rows = []
    for language in LANGUAGES:
        asked = sorted(key for key in held[names[0]] if key[0] == language)[:SHOWN]
        for key in asked:
            cells = [short(held[name][key]["answer"], CUT) for name in names]
            rows.append([held[names[0]][key]["prompt"], *cells])
    text = table(["question", "before", "after conversations, replay", "merged, replay"], rows)
    return text.replace("---:", "---")


def ended(facts: dict[str, Any]) -> str:
    """How many answers came to an end by themselves, a model each."""
    told = [
        f"{sum(row['finish'] == 'stop' for row in rows.values())} of {len(rows)} (`{name}`)"
        for name, rows in by_model(facts).items()
    ]
    return ", ".join(told)


def section(facts: dict[str, Any], answers: Path | None) -> str:
    """The section in Markdown, without the marks."""
    given, machine = facts["arguments"], facts["machine"]
    page = f" --answers={answers}" if answers else ""
    every = f" All answers: [{answers.name}]({answers.name})." if answers else ""
    chats = ", ".join(f"`{name}`" for name in given["chats"])
    return f"""## Text, conversations, merging

SmolLM2-135M-Instruct (values as above) was trained on real medical text in three languages, once with 15 % general \
text (replay) and once without, on the same number of tokens; then each on the same conversations, in its own \
template; then each merged with the model that both began from ({given["share"]:g} of the child). Rows of \
{given["length"]} tokens, of conversations {given["chat_length"]}, float32. Text: the stores of \
`gin_configs/recipes/smollm2_cpt.gin`, a fifth of each held out. Conversations: {chats}, shared out by the root of \
each language's tokens, a fifth held out. Settings of the two trainings: `{" ".join(given["cpt"])}`; \
`{" ".join(given["sft"])}`.

{machine["date"]}, {machine["cores"]} shared cores, {machine["processor"]}, no GPU; other programs ran on the same \
cores.

```
python -m benchmarks.real_adaptation --texts=texts --out=adapted --limit={given["limit"]} --tokens={given["tokens"]} \\
    --page=docs/numerics.md{page}
```

Held-out bits-per-byte (lower is better): of text the first {given["tokens"]:,} tokens of {given["limit"]} documents \
of each corpus at most; of conversations the answers alone, {given["limit"]} of a set of each language:

{stage_table(facts)}

What replay changed: the branch with it minus the one without, on the same documents; in brackets the 95 % bootstrap \
interval, not given for fewer than five documents:

{replay_table(facts)}

{training_table(facts)}

The sample questions of ELAINE's card, asked in the model's own template, answered by the likeliest token with the \
card's penalty of 1.2 on repetition, {given["new"]} tokens at most; the first of each language, cut short here. \
Answers that came to an end by themselves: {ended(facts)}.{every}

{answer_table(facts)}
"""


def all_answers(facts: dict[str, Any]) -> str:
    """Every question with every model's answer."""
    held = by_model(facts)
    names = {"import": "before", "sft-replay": "after conversations", "merged-replay": "merged"}
    text = [
        "# Answers before and after",
        "",
        "The sample questions of ELAINE's card, answered by a model of 135 M parameters before and after a very short",
        "training, the branch with replay ([numerics.md](numerics.md#text-conversations-merging)).",
        "**They are not medical advice, and many are wrong.** An answer that ends in … was cut at the limit of tokens.",
        "",
    ]
    for key, first in sorted(held["import"].items()):
        text += [f"## {key[0]} {key[1]}: {first['prompt']}", ""]
        for name, told in names.items():
            row = held[name][key]
            end = "" if row["finish"] != "length" else " …"
            text += [f"- **{told}:** {short(row['answer'], 10**6)}{end}"]
        text.append("")
    return "\n".join(text)
