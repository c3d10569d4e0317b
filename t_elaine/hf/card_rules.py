"""What a parent's licence asks of a model made from it: its name, a sentence on its card, a notice; and what to cite.

Read from the parent's own card by the licence's id; texts of licences are carried along by side_files. Rules: section
1.b of the Meta Llama 3 and Llama 3.1 to 3.3 Community Licenses, section 1.b.iii of Llama 2's, section 4 of Qwen's.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t_elaine import __version__, parentage, paths
from t_elaine.errors import UserError
from t_elaine.hf import hub, side_files

META = "Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
CITATIONS = Path(__file__).with_name("citations.json")


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model card says that no run records.

    Args:
        name: the model's; "" takes the run folder's, with the beginning that the parent's licence asks for
        licence: of these weights, as the hub writes it (apache-2.0, llama3, …); "" takes the parent's
        base_model: owner/name of the parent on the hub, where the import came from a local folder
        bib: file of further BibTeX entries
        draft: write the card although parts are missing, marked as a draft
    """

    name: str = ""
    licence: str = ""
    base_model: str = ""
    bib: str = ""
    draft: bool = False


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`prefix`: how names must begin; `built`: to be shown; `notice`: to be kept in a file NOTICE."""

    prefix: str = ""
    built: str = ""
    notice: str = ""


RULES: Mapping[str, Rule] = {
    "llama2": Rule(notice=f"Llama 2 is licensed under the LLAMA 2 {META}"),
    "llama3": Rule(
        prefix="Llama 3",
        built="Built with Meta Llama 3",
        notice=f"Meta Llama 3 is licensed under the Meta Llama 3 {META}",
    ),
    **{
        f"llama3.{n}": Rule(
            prefix="Llama", built="Built with Llama", notice=f"Llama 3.{n} is licensed under the Llama 3.{n} {META}"
        )
        for n in (1, 2, 3)
    },
    "qwen": Rule(built="Built with Qwen"),
    "qwen-research": Rule(built="Built with Qwen"),
}


def licence_lines(run_dir: str, card: Card) -> list[str]:
    """The licence's lines of the hub's front matter: the parent's, unless the card names another; [] if neither."""
    parents = parentage.licence_lines(run_dir)
    return [f"license: {card.licence}"] if card.licence else parents


def rule(run_dir: str) -> Rule:
    """What the parent's licence asks for."""
    lines = dict(line.split(":", 1) for line in parentage.licence_lines(run_dir))
    names = [lines.get(key, "").strip().strip("\"'").lower() for key in ("license_name", "license")]
    return next((RULES[name] for name in names if name in RULES), Rule())


def title(run_dir: str, run: str, card: Card) -> str:
    """The model's name on its card.

    Raises:
        UserError: the name that was given does not begin as the parent's licence asks.
    """
    prefix = rule(run_dir).prefix
    if card.name:
        check_name(run_dir, card.name, "Card.name")
        return card.name
    return run if begins(run, prefix) else f"{prefix} {run}"


def begins(name: str, prefix: str) -> bool:
    """Whether a name begins so; hyphens, underscores and spaces are one."""
    plain = re.sub(r"[-_ ]+", " ", name).casefold()
    return plain.startswith(prefix.casefold())


def check_name(run_dir: str, name: str, where: str) -> None:
    """Refuse a name that the parent's licence does not allow.

    Raises:
        UserError: it does not begin as it must.
    """
    prefix = rule(run_dir).prefix
    if not begins(name, prefix):
        what = f"the parent's licence asks that the model's name begins with {prefix!r}, {name!r} does not"
        raise UserError(what, where, f"for example {prefix.replace(' ', '-')}-{name}")


def citations(run_dir: str, base: str, card: Card, version: str = __version__) -> list[str]:
    """BibTeX of the parent, the texts and the recipe.

    Raises:
        UserError: the file of further entries is not there.
    """
    return [*_parents(run_dir, base), *_texts(run_dir), _recipe(run_dir, version), *_further(card.bib)]


def _parents(run_dir: str, base: str) -> list[str]:
    """What the parent's own card asks to be cited, else the entry that is known for its family, else its address."""
    if not base:
        return []
    readme = paths.join(parentage.folder(run_dir), "README.md")
    text = paths.read_text(readme) if paths.exists(readme) else ""
    if own := re.findall(r"^@\w+\{[^\n]*\n.*?^\}", text, re.MULTILINE | re.DOTALL):
        return own
    name, _, revision = base.partition("@")
    known = json.loads(CITATIONS.read_text(encoding="utf-8"))
    for entry in known:
        if re.search(entry["name"], name, re.IGNORECASE):
            return ["\n".join(entry["bibtex"])]
    address = f"https://huggingface.co/{name}" if hub.is_name(name) else ""
    return [_misc(f"parent_{name}", name, address, f"revision {revision}" if revision else "")]


def _texts(run_dir: str) -> list[str]:
    """An entry a source that was trained on; of private ones none."""
    found: dict[str, str] = {}
    for store in side_files.data_record(run_dir).values():
        for source in store.get("sources", []):
            if not source["private"]:
                licence = f"licence: {source['licence']}"
                found[source["name"]] = _misc(f"data_{source['name']}", source["name"], source["url"], licence)
    return list(found.values())


def _recipe(run_dir: str, version: str) -> str:
    command = paths.join(run_dir, "command.txt")
    files = re.findall(r"--gin_file=(\S+)", paths.read_text(command)) if paths.exists(command) else []
    names = [file.rstrip("'\"").rpartition("/")[2] for file in files]
    note = f"recipe: {', '.join(names)}; settings on the model card" if names else "settings on the model card"
    return _misc("t_elaine", f"T-ELAINE {version}: adapting language models to medical text", "", note)


def _further(bib: str) -> list[str]:
    if not bib:
        return []
    if not paths.exists(bib):
        raise UserError("there is no such file of BibTeX entries", bib, "check Card.bib")
    return [paths.read_text(bib).strip()]


def _misc(key: str, name: str, address: str, note: str) -> str:
    lines = [f"@misc{{{re.sub(r'[^A-Za-z0-9]+', '_', key).strip('_').lower()},", f"  title = {{{_tex(name)}}},"]
    lines += [f"  howpublished = {{\\url{{{address}}}}},"] if address else []
    lines += [f"  note = {{{_tex(note)}}},"] if note else []
    return "\n".join([*lines, "}"])


def _tex(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def front_matter(
    name: str,
    base: str,
    licence: Sequence[str],
    languages: Sequence[str],
    card: Card,
    formats: Mapping[str, Any],
    merged: Sequence[str] = (),
) -> str:
    """The hub's front matter; `merged` are the hub's names of models that were merged."""
    lines = ["---", f"model_name: {json.dumps(name, ensure_ascii=False)}", "library_name: transformers"]
    lines += ["pipeline_tag: text-generation", "tags:", "- medical", "- t-elaine", *(["- gguf"] if formats else [])]
    parent = card.base_model or base.partition("@")[0]
    if hub.is_name(parent):
        lines += [f"base_model: {parent}", "base_model_relation: finetune"]
    elif merged:
        lines += ["base_model:", *(f"- {one}" for one in merged), "base_model_relation: merge"]
    return "\n".join([*lines, "language:", *(f"- {language}" for language in languages), *licence, "---"])
