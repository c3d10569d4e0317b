"""The model card of an export in English, Japanese and Chinese: what is known from the run's own files, and limits.

Everything it says is read from the run folder or the proof; the words are card_words.json's. Which parts a card must
have, and how to make those that it lacks: card_parts.py.
"""

import re
from typing import Any

from t_elaine import __version__, changes
from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.hf import card_data, card_judged, card_merge, card_rules, chat_files, tokenizer_check
from t_elaine.hf.card_data import words
from t_elaine.hf.card_rules import Card
from t_elaine.model.config import LlamaConfig

FILES = {"en": "README.md", "ja": "README.ja.md", "zh": "README.zh.md"}
NAMES = {"en": "English", "ja": "日本語", "zh": "中文"}


def model_card(
    run_dir: str,
    meta: CheckpointMeta,
    config: LlamaConfig,
    proof: dict[str, Any],
    card: Card | None = None,
    language: str = "en",
    lacks: tuple[str, ...] = (),
) -> str:
    """The card in one language; the English one has the hub's front matter.

    Args:
        run_dir: the run.
        meta: of the checkpoint.
        config: the model.
        proof: what proof.json holds.
        card: what no run records.
        language: en, ja or zh.
        lacks: parts that are missing: the card is marked as a draft.

    Raises:
        UserError: a name that the parent's licence does not allow.
    """
    card, say = card or Card(), words(language)
    base, licence = card_data.origin(run_dir, meta), card_rules.licence_lines(run_dir, card)
    name = card_rules.title(run_dir, proof["checkpoint"]["run"], card)
    trained = card_data.languages(run_dir) or list(proof["prompts"])[:-1]
    formats = proof.get("gguf", {})
    front = card_rules.front_matter(name, base, licence, trained, card, formats, card_merge.bases(run_dir))
    built = card_rules.rule(run_dir).built
    return "\n\n".join(
        [
            *([front] if language == "en" else []),
            f"# {name}, step {meta.step}" if language == "en" else f"# {name}（step {meta.step}）",
            " · ".join(NAMES[one] if one == language else f"[{NAMES[one]}]({FILES[one]})" for one in FILES),
            *([say["draft"].format(parts=("; " if language == "en" else "；").join(lacks))] if lacks else []),
            _origin(base, meta, config, say),
            f"{say['use']}\n\n{say['use_text']}",
            f"{say['limits']}\n\n{_limits(run_dir, say)}",
            card_merge.section(run_dir, meta, built, say)
            or card_data.parent_section(run_dir, meta, licence, built, say),
            card_data.data_section(run_dir, meta, say),
            _settings_section(run_dir, meta.step, say),
            card_judged.evaluation_section(run_dir, meta, say),
            card_judged.forgetting_section(run_dir, meta, base, say),
            card_judged.contamination_section(run_dir, meta, say),
            _proof_section(proof, say),
            *([_gguf_section(formats, say)] if formats else []),
            _citation_section(run_dir, base, card, say),
            say["made"].format(version=__version__) + "\n",
        ]
    )


def _limits(run_dir: str, say: dict[str, Any]) -> str:
    trained, space = card_data.languages(run_dir), "" if say["limits_text"].endswith("。") else " "
    told = say["limits_languages"].format(languages=", ".join(trained))
    return f"{say['limits_text']}{space}{told}" if trained else str(say["limits_text"])


def _origin(base: str, meta: CheckpointMeta, config: LlamaConfig, say: dict[str, Any]) -> str:
    which = f"{'from' if base else 'random'}_{'trained' if meta.step else 'untrained'}"
    told = say[which].format(base=base, tokens=f"{meta.tokens:,}", steps=f"{meta.step:,}")
    size = {name: f"{number:,}" if isinstance(number, int) else number for name, number in vars(config).items()}
    return f"{told}{'' if told.endswith('。') else ' '}{say['shape'].format(**size)}"


def _proof_section(proof: dict[str, Any], say: dict[str, Any]) -> str:
    languages = [name for name in proof["prompts"] if name != "tokens"]
    count = sum(proof["prompts"][name] for name in languages)
    rounded = say["proof_rounded"] if proof["dtype"] == "bfloat16" else ""
    told = say["proof_tensors"].format(count=proof["tensors"]["count"], rounded=rounded, prompts=count)
    rows = [
        [entry["ours"], entry["theirs"], *(f"{entry['largest'][language]:.2e}" for language in languages)]
        for entry in proof["logits"]
    ]
    lines = [say["proof"], told, card_data.table([*say["proof_header"], *languages], rows)]
    lines += [say["proof_lack"].format(name=n, lack=lack) for n, lack in proof.get("not_compared", {}).items()]
    told = [tokenizer_check.summary(proof["tokenizer"])] if proof.get("tokenizer") else []
    told += [chat_files.summary(proof["chat_template"])] if proof.get("chat_template") else []
    lines += [f"{sentence[0].upper()}{sentence[1:]}." for sentence in told]
    return "\n\n".join([*lines, say["proof_end"]])


def _gguf_section(formats: dict[str, Any], say: dict[str, Any]) -> str:
    """Each file with what it costs beside the float weights."""
    rows = []
    for entry in formats.values():
        bits = [row for row in entry["bits_per_byte"] if row["level"] == "language" and "difference" in row]
        greedy = entry["greedy"]
        rows.append(
            [
                entry["file"],
                f"{entry['bytes'] / 1e6:,.1f}",
                ", ".join(f"{row['language']} {row['difference']['value']:+.4f}" for row in bits),
                f"{sum(e['answers_changed'] for e in entry['exams'])} / {sum(e['questions'] for e in entry['exams'])}",
                f"{sum(one['as_float'] for one in greedy)} / {sum(len(one['ids']) for one in greedy)}",
            ]
        )
    held = say["gguf_held"][next(iter(formats.values()))["held_out"]]
    told = say["gguf_told"].format(held=held)
    return "\n\n".join([say["gguf"], told, card_data.table(say["gguf_header"], rows)])


def _settings_section(run_dir: str, step: int, say: dict[str, Any] | None = None) -> str:
    """The settings that made the checkpoint, what it took, and settings that were others before."""
    say = say or words("en")
    text, changed = changes.settings_at(run_dir, step), changes.changes(run_dir, until=step)
    if not text:
        return f"{say['settings']}\n\n{say['settings_none']}"
    cost = card_data.cost(run_dir, say)
    settings = f"{say['settings_told']}\n\n```\n{_without_paths(text)}\n```"
    told = "\n\n".join([say["settings"], *([cost] if cost else []), settings])
    if not changed:
        return told
    rows = [(c.name, f"{c.step:,}", _without_paths(c.before), _without_paths(c.after)) for c in changed]
    return f"{told}\n\n{say['settings_changed']}\n\n{card_data.table(say['settings_header'], rows)}"


def _citation_section(run_dir: str, base: str, card: Card, say: dict[str, Any]) -> str:
    entries = "\n\n".join(card_rules.citations(run_dir, base, card))
    return f"{say['citation']}\n\n{say['citation_told']}\n\n```bibtex\n{entries}\n```"


def _without_paths(text: str) -> str:
    """Folders of the machine that trained are nobody's business: of an absolute path only the last part stays."""
    return re.sub(r"(['\"])(?:[a-z0-9]+:/)?/[^'\"\n]*/([^'\"/\n]+)\1", r"\1…/\2\1", text).rstrip()
