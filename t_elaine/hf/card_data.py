"""Parts of the model card that say what a run was trained on, where it came from and how it was judged.

Read from the run folder alone, since the stores may be gone: data.json (sources and licences as prepare kept them),
mixture.json (what the rows really held), parent/, metrics and evaluation/. What is not recorded is said to be unknown.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from t_elaine import parentage, paths
from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.hf import hub, side_files

UNKNOWN = "not recorded"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; a bar inside a cell does not end it."""
    lines = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *lines])


def origin(run_dir: str, meta: CheckpointMeta) -> str:
    """Where the weights came from first: a hub name with its commit, of a folder only the last part; "" if random."""
    record = side_files.origin_record(run_dir)
    name = record or re.sub(r"/checkpoints/\d+$", "", (meta.parent or "").rstrip("/"))
    return name if hub.is_name(name.partition("@")[0]) and "@" in name else name.rpartition("/")[2]


def parent_section(run_dir: str, meta: CheckpointMeta, licence: Sequence[str]) -> str:
    """The parent, the run between it and this one, and what is known of its licence."""
    base, merge = origin(run_dir, meta), side_files.merge_record(run_dir)
    if merge:
        return f"## Parents\n\n{_merged(run_dir, merge, meta)}"
    if not base:
        told = "It has no parent: its first weights were random. Nobody else's licence lies on the weights; this card"
        return f"## Parent\n\n{told} names none either: who publishes them chooses one that the texts below allow."
    lines = [f"`{base}`" + (", with its commit on the hub." if "@" in base else ".")]
    if step := re.search(r"([^/]+)/checkpoints/([1-9]\d*)$", meta.parent or ""):
        lines.append(f"Between the two lies the run `{step[1]}`, up to step {step[2]}; its texts are not in this card.")
    legal = parentage.terms(run_dir)
    if licence:
        lines.append(f"Its own card says: {'; '.join(f'`{line}`' for line in licence)}.")
    if legal:
        lines.append(f"Its terms lie beside the weights and bind whoever uses them: {', '.join(legal)}.")
    if not licence and not legal:
        lines.append("No licence came with it: find it out before the weights go anywhere.")
    return "## Parent\n\n" + " ".join(lines)


def base_models(run_dir: str, meta: CheckpointMeta) -> list[str]:
    """Names on the hub of the models that the weights came from, commits left out."""
    merge = side_files.merge_record(run_dir)
    names = [parent["origin"] for parent in merge["parents"]] if merge else [origin(run_dir, meta)]
    return list(dict.fromkeys(name.partition("@")[0] for name in names if hub.is_name(name.partition("@")[0])))


def _merged(run_dir: str, merge: dict[str, Any], meta: CheckpointMeta) -> str:
    """The models that were merged, how, and what is known of their licences."""
    rows = [
        [
            parent["name"],
            parent["role"],
            "–" if parent["weight"] is None else parent["weight"],
            "; ".join(parent["licence"]) or UNKNOWN,
            f"{parent['fingerprint'][:16]}…",
        ]
        for parent in merge["parents"]
    ]
    used = {
        "slerp": ("t",),
        "linear": ("normalize",),
        "task_arithmetic": ("normalize", "scale"),
        "ties": ("normalize", "scale", "rescale"),
    }.get(merge["method"], ("normalize", "scale", "rescale", "seed"))
    settings = [f"{name} {merge[name]}" for name in used]
    if merge["method"] in ("ties", "dare_ties", "dare_linear"):
        densities = [parent["density"] for parent in merge["parents"] if parent["density"] is not None]
        settings.append(f"density {', '.join(map(str, densities))}")
    made = f"Its weights were merged from these, by {merge['method']} ({'; '.join(settings)})"
    trained = f", then trained for {meta.step:,} steps." if meta.step else "."
    lines = [made + trained, table(("model", "role", "weight", "its card's licence", "sha256 over its weights"), rows)]
    if legal := parentage.terms(run_dir):
        lines.append(f"Terms that came with them bind whoever uses the weights: {', '.join(legal)}.")
    else:
        lines.append("No file with terms came with them: find them out before the weights go anywhere.")
    return "\n\n".join(lines)


def data_section(run_dir: str, meta: CheckpointMeta) -> str:
    """Sources trained on, with language, category, tokens seen, share, passes, licence and address."""
    stores, mixture = side_files.data_record(run_dir), side_files.record(run_dir, "mixture.json")
    if not stores:
        return "## Training data\n\nNo training data are recorded with this checkpoint."
    rows = [row for name, store in stores.items() for row in _source_rows(name, store, mixture, meta)]
    header = ("store", "source", "language", "category", "tokens seen", "share", "passes", "licence", "from")
    licences = sorted({part for row in rows for part in row[7].split("; ")})
    realised = f"as its rows held them up to step {mixture['step']}" if mixture else f"{UNKNOWN} for this run"
    note = (
        f"Tokens and shares: {realised}"
        + (f", in proportion for step {meta.step}" if mixture and mixture["step"] != meta.step else "")
        + ". Within a store they are divided as its training documents are; its sources of one language and category "
        "share a line."
    )
    return "\n\n".join(
        [
            "## Training data",
            table(header, rows),
            note,
            f"Licences of the texts, as whoever prepared them stated: {', '.join(licences)}.",
        ]
    )


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


def cost(run_dir: str) -> str:
    """Chip-hours that the run has taken, by kind of device, with the money where a price was given; "" if unknown."""
    found = side_files.record(run_dir, "chip_hours.json")
    if not found:
        return ""
    starts = found["starts"]
    kinds = ", ".join(dict.fromkeys(f"{start['devices']} × {start['kind']}" for start in starts))
    money = f", {found['money']:,.2f} at {found['price_per_chip_hour']:g} each" if "money" in found else ""
    times = f", in {len(starts)} starts" if len(starts) > 1 else ""
    last = f"up to step {starts[-1]['last_step']:,}"
    return f"Training took {found['chip_hours']:.3g} chip-hours {last} ({kinds}{times}){money}."


def languages(run_dir: str) -> list[str]:
    """Languages of the texts that the run was trained on; [] where that is not recorded."""
    stores = side_files.data_record(run_dir).values()
    found = [g["language"] for store in stores for g in store.get("trained_on", []) if g["tokens"]]
    return list(dict.fromkeys(found))


def evaluation_section(run_dir: str, meta: CheckpointMeta) -> str:
    """How the checkpoint was judged: held-out text while training, and what `evaluate` had written by then."""
    parts = ["## Evaluation", *_held_out(run_dir, meta)]
    folder = paths.join(run_dir, "evaluation")
    for name in sorted(name for name in paths.listing(folder) if name.endswith(".json")):
        found = json.loads(paths.read_text(paths.join(folder, name)))
        child = found.get("models", {}).get("child", {})
        if child.get("kind") == "run" and child.get("step") == meta.step:
            parts += _evaluated(found)
    if len(parts) == 1 or parts[-1].startswith("Held-out"):
        parts.append(
            "It had not been judged with `t-elaine evaluate` when it was exported: no exam was taken, no parent set "
            "beside it. `t-elaine evaluate --checkpoint=RUN_DIR --parent=PARENT` and a new export put both here."
        )
    return "\n\n".join(parts)


def _held_out(run_dir: str, meta: CheckpointMeta) -> Iterator[str]:
    line = None
    for name in sorted(n for n in paths.listing(run_dir) if n.startswith("metrics") and n.endswith(".jsonl")):
        for text in paths.read_text(paths.join(run_dir, name)).split("\n"):
            if '"kind": "validation"' in text and f'"step": {meta.step},' in text and text.endswith("}"):
                line = json.loads(text)
    if line is None:
        return
    rows = [[name, f"{v['bits_per_byte']:.4f}", f"{v['tokens']:,}"] for name, v in line["language"].items()]
    told = "Held-out text of the training stores (chosen by hash, never trained on), measured by the run at this step:"
    yield f"{told}\n\n{table(('language', 'bits per byte', 'tokens'), rows)}"


def _evaluated(found: dict[str, Any]) -> Iterator[str]:
    beside = found["models"].get("parent")
    sides = ("child", "parent", "difference") if beside else ("child",)
    names = {"child": "this model", "parent": "beside it", "difference": "difference"}
    header = [names[side] for side in sides]
    if beside:
        yield f"Beside it: `{_model_name(beside)}`. In brackets: 95 % bootstrap intervals, where texts suffice."
    rows = [
        [e["language"], f"{e['documents']:,}", *(_value(e[side]) for side in sides)]
        for e in found["bits_per_byte"]
        if e["level"] == "language"
    ]
    if rows:
        told = "Bits per byte of held-out documents, lower is better:"
        yield f"{told}\n\n{table(('language', 'documents', *header), rows)}"
    rows = [
        [
            e["suite"],
            e["questions"],
            f"{e['chance']:.3f}",
            *(_value(e["scores"][e["headline"]][side]) for side in sides),
        ]
        for e in found["exams"]
    ]
    if rows:
        way = found["exams"][0]["headline"]
        told = f"Exam questions, accuracy by likelihood of the options (`{way}`), no examples shown:"
        yield f"{told}\n\n{table(('exam', 'questions', 'chance', *header), rows)}"


def _value(figure: dict[str, Any]) -> str:
    interval = f" [{figure['low']:.3f}, {figure['high']:.3f}]" if figure["low"] is not None else ""
    return f"{figure['value']:.3f}{interval}"


def _model_name(model: dict[str, Any]) -> str:
    """A model's name without the folders of a machine."""
    name = re.sub(r"/checkpoints/\d+$", "", model["path"].rstrip("/"))
    name = name if hub.is_name(name) and model["kind"] != "run" else name.rpartition("/")[2]
    return f"{name}, step {model['step']}" if model["kind"] == "run" else name
