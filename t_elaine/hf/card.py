"""The model card of an export: what is known from the run's own files, and what the model is not for.

Everything it says is read from the run folder or the proof; what is not recorded is said to be unknown.
"""

import re
from typing import Any

from t_elaine import __version__, changes, parentage
from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.hf import card_data, tokenizer_check
from t_elaine.model.config import LlamaConfig

LIMITS = """\
This is a language model for research. It is not a medical device, it has not been examined for clinical use, and it
must not be used to diagnose, treat or advise people, nor to decide on anyone's care. It makes false statements
fluently, in doses, interactions and contraindications too; its knowledge ends where its texts end; and it can be wrong
in one language where it is right in another. It may repeat passages of the texts that it was trained on word for word,
and what is wrong, biased or out of date in them is in it too. Anyone who builds on it must test it for their own
purpose with people who can judge the answers."""


def model_card(run_dir: str, meta: CheckpointMeta, config: LlamaConfig, proof: dict[str, Any]) -> str:
    """README.md of the exported folder, with the hub's front matter."""
    base, licence = card_data.origin(run_dir, meta), parentage.licence_lines(run_dir)
    return "\n\n".join(
        [
            _front_matter(
                card_data.base_models(run_dir, meta),
                licence,
                card_data.languages(run_dir) or list(proof["prompts"])[:-1],
            ),
            f"# {proof['checkpoint']['run']}, step {meta.step}",
            _origin(base, meta, config),
            f"## Limits\n\n{_limits(run_dir)}",
            card_data.parent_section(run_dir, meta, licence),
            card_data.data_section(run_dir, meta),
            card_data.evaluation_section(run_dir, meta),
            _proof_section(proof),
            _settings_section(run_dir, meta.step),
            f"Made with T-ELAINE {__version__}.\n",
        ]
    )


def _limits(run_dir: str) -> str:
    trained = card_data.languages(run_dir)
    told = f" It was trained on texts in {', '.join(trained)}; of other languages nothing is known." if trained else ""
    return LIMITS + told


def _front_matter(base: list[str], licence: list[str], languages: list[str]) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- medical", "- t-elaine"]
    if len(base) == 1:
        lines.append(f"base_model: {base[0]}")
    elif base:
        lines += ["base_model:", *(f"- {name}" for name in base), "base_model_relation: merge"]
    lines += ["language:", *(f"- {language}" for language in languages), *licence, "---"]
    return "\n".join(lines)


def _origin(base: str, meta: CheckpointMeta, config: LlamaConfig) -> str:
    count = (
        f"{config.layers} layers, width {config.embed}, {config.q_heads} query and {config.kv_heads} key/value heads"
    )
    start = f"It started from `{base}`" if base else "It started from random parameters"
    trained = (
        f"and was trained on {meta.tokens:,} tokens in {meta.step:,} steps" if meta.step else "and was not trained"
    )
    return f"{start} {trained}. Shape: {count}, vocabulary {config.vocab_size:,}, context {config.max_position:,}."


def _proof_section(proof: dict[str, Any]) -> str:
    languages = [name for name in proof["prompts"] if name != "tokens"]
    count = sum(proof["prompts"][name] for name in languages)
    rounded = " rounded to bfloat16" if proof["dtype"] == "bfloat16" else ""
    lines = [
        "## Proof of this export",
        "",
        f"{proof['tensors']['count']} tensors, each bitwise the training checkpoint's{rounded}.",
        f"Largest differences of logits on {count} prompts:",
        "",
        f"| computation | against | {' | '.join(languages)} |",
        f"|---|---|{'---|' * len(languages)}",
    ]
    for entry in proof["logits"]:
        values = " | ".join(f"{entry['largest'][language]:.2e}" for language in languages)
        lines.append(f"| {entry['ours']} | {entry['theirs']} | {values} |")
    for name, lack in proof.get("not_compared", {}).items():
        lines += ["", f"Not compared through {name}: {lack}."]
    if proof.get("tokenizer"):
        told = tokenizer_check.summary(proof["tokenizer"])
        lines += ["", f"{told[0].upper()}{told[1:]}."]
    told = "All figures, and the sha256 of each weights file, are in `proof.json`; its `passed` speaks of weights and "
    return "\n".join([*lines, "", f"{told}logits, `tokenizer.passed` of the tokenizer in transformers."])


def _settings_section(run_dir: str, step: int) -> str:
    """The settings that made the checkpoint, and those that were others before."""
    text, changed = changes.settings_at(run_dir, step), changes.changes(run_dir, until=step)
    if not text:
        return "## Settings\n\nNo training settings are recorded with this checkpoint."
    cost = card_data.cost(run_dir)
    parts = ["## Settings", *([cost] if cost else []), f"As recorded by the run:\n\n```\n{_without_paths(text)}\n```"]
    told = "\n\n".join(parts)
    if not changed:
        return told
    rows = [(c.name, f"{c.step:,}", _without_paths(c.before), _without_paths(c.after)) for c in changed]
    table = card_data.table(("setting", "from step", "before", "after"), rows)
    return f"{told}\n\nThese are the last ones: some were changed while the run was going on.\n\n{table}"


def _without_paths(text: str) -> str:
    """Folders of the machine that trained are nobody's business: of an absolute path only the last part stays."""
    return re.sub(r"(['\"])(?:[a-z0-9]+:/)?/[^'\"\n]*/([^'\"/\n]+)\1", r"\1…/\2\1", text).rstrip()
