"""Parts of the model card that say where a model came from and what it was trained on, in the card's language.

Read from the run folder alone, since the stores may be gone: data.json (sources and licences as prepare kept them),
mixture.json (what the rows really held), parent/, chip_hours.json. What is not recorded is said to be unknown.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from t_elaine import parentage
from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.hf import hub, side_files

UNKNOWN = "not recorded"
LANGUAGES = ("en", "ja", "zh")


@functools.cache
def words(language: str) -> dict[str, Any]:
    """The card's sentences in a language of LANGUAGES."""
    every = json.loads(Path(__file__).with_name("card_words.json").read_text(encoding="utf-8"))
    return dict(every[language])


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; a bar inside a cell does not end it."""
    lines = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *lines])


def origin(run_dir: str, meta: CheckpointMeta) -> str:
    """Where the weights came from first: a hub name with its commit, of a folder only the last part; "" if random."""
    record = side_files.origin_record(run_dir)
    name = record or re.sub(r"/checkpoints/\d+$", "", (meta.parent or "").rstrip("/"))
    return name if hub.is_name(name.partition("@")[0]) and "@" in name else name.rpartition("/")[2]


def parent_section(run_dir: str, meta: CheckpointMeta, licence: Sequence[str], built: str, say: dict[str, Any]) -> str:
    """The parent, the run between it and this one, what is known of its licence, and what that wants shown."""
    base = origin(run_dir, meta)
    if not base:
        lines = [say["parent_none"], *([] if licence else [say["parent_none_open"]])]
        return f"{say['parent']}\n\n{_joined(lines)}"
    lines = [say["parent_commit" if "@" in base else "parent_name"].format(base=base)]
    if step := re.search(r"([^/]+)/checkpoints/([1-9]\d*)$", meta.parent or ""):
        lines.append(say["parent_between"].format(run=step[1], step=step[2]))
    legal, own = parentage.terms(run_dir), parentage.licence_lines(run_dir)
    if own:
        lines.append(say["parent_licence"].format(lines="; ".join(f"`{line}`" for line in own)))
    if legal:
        lines.append(say["parent_terms"].format(names=", ".join(legal)))
    if not own and not legal:
        lines.append(say["parent_no_licence"])
    shown = f"\n\n**{built}**" if built else ""
    return f"{say['parent']}\n\n{_joined(lines)}{shown}"


def _joined(lines: Sequence[str]) -> str:
    """Sentences in a row: a space after a full stop, none after 。"""
    return "".join(line if line.endswith("。") else f"{line} " for line in lines).rstrip()


def data_section(run_dir: str, meta: CheckpointMeta, say: dict[str, Any]) -> str:
    """Sources trained on, with language, category, tokens seen, share, passes, licence and address."""
    stores, mixture = side_files.data_record(run_dir), side_files.record(run_dir, "mixture.json")
    if not stores:
        return f"{say['data']}\n\n{say['data_none']}"
    rows = [row for name, store in stores.items() for row in _source_rows(name, store, mixture, meta)]
    licences = sorted({part for row in rows for part in row[7].split("; ")})
    note = say["data_realised"].format(step=mixture["step"]) if mixture else say["data_unknown"]
    if mixture and mixture["step"] != meta.step:
        note += say["data_proportion"].format(step=meta.step)
    shares: dict[str, float] = {}
    for row in rows:
        shares[row[2]] = shares.get(row[2], 0.0) + (float(row[5].rstrip("%")) if row[5] != UNKNOWN else float("nan"))
    told = ", ".join(f"{language} {share:.1f} %" for language, share in shares.items() if share == share)
    cells = [[say["unknown"] if cell == UNKNOWN else cell for cell in row] for row in rows]
    parts = [say["data"], table(say["data_header"], cells), note + say["data_note"]]
    parts += [say["languages"].format(shares=told)] if told else []
    licences = [say["unknown"] if licence == UNKNOWN else licence for licence in licences]
    return "\n\n".join([*parts, say["data_licences"].format(licences=", ".join(licences))])


def _source_rows(
    name: str, store: dict[str, Any], mixture: dict[str, Any], meta: CheckpointMeta
) -> Iterator[list[str]]:
    """A line for each language and category of a store; one line of unknowns for a store of an older record."""
    seen = mixture.get("sources", {}).get(name)
    ratio = meta.step / mixture["step"] if seen and mixture["step"] else 0.0
    groups = [group for group in store.get("trained_on", []) if group["tokens"]]
    if not groups:
        tokens = f"{round(seen['tokens'] * ratio):,}" if seen else UNKNOWN
        share = f"{seen['share']:.2%}" if seen else UNKNOWN
        yield [name, UNKNOWN, UNKNOWN, UNKNOWN, tokens, share, UNKNOWN, UNKNOWN, UNKNOWN]
        return
    whole = sum(group["tokens"] for group in groups)
    for group in groups:
        part = group["tokens"] / whole
        sources = [source for source in store.get("sources", []) if _covers(source, group)]
        yield [
            name,
            "; ".join(dict.fromkeys(_source_name(source) for source in sources)) or UNKNOWN,
            group["language"],
            group["category"],
            f"{round(seen['tokens'] * ratio * part):,}" if seen else UNKNOWN,
            f"{seen['share'] * part:.2%}" if seen else UNKNOWN,
            f"{seen['epochs'] * ratio:.2f}" if seen else UNKNOWN,
            "; ".join(dict.fromkeys(source["licence"] for source in sources)) or UNKNOWN,
            "; ".join(dict.fromkeys(source["url"] for source in sources if source["url"])) or "–",
        ]


def _covers(source: dict[str, Any], group: dict[str, Any]) -> bool:
    return (source["language"], source["category"]) == (group["language"], group["category"])


def _source_name(source: dict[str, Any]) -> str:
    return f"private ({source['name']})" if source["private"] else source["name"]


def cost(run_dir: str, say: dict[str, Any] | None = None) -> str:
    """Chip-hours that the run has taken, by kind of device, with the money where a price was given; "" if unknown."""
    found, say = side_files.record(run_dir, "chip_hours.json"), say or words("en")
    if not found:
        return ""
    starts = found["starts"]
    price = f"{found['price_per_chip_hour']:g}" if "money" in found else ""
    return str(say["cost"]).format(
        hours=f"{found['chip_hours']:.3g}",
        step=f"{starts[-1]['last_step']:,}",
        kinds=", ".join(dict.fromkeys(f"{start['devices']} × {start['kind']}" for start in starts)),
        times=say["cost_times"].format(count=len(starts)) if len(starts) > 1 else "",
        money=say["cost_money"].format(money=f"{found['money']:,.2f}", price=price) if price else "",
    )


def languages(run_dir: str) -> list[str]:
    """Languages of the texts that the run was trained on; [] where that is not recorded."""
    stores = side_files.data_record(run_dir).values()
    found = [g["language"] for store in stores for g in store.get("trained_on", []) if g["tokens"]]
    return list(dict.fromkeys(found))
