"""What a model card must have, what this run's lacks, and the command that makes it. Writes cards that lack nothing.

A checkpoint that was never trained needs only its parent's name and licence; a draft is written with whatever is there,
and says on its first lines what it lacks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t_elaine import changes, parentage
from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.errors import UserError
from t_elaine.hf import card as cards
from t_elaine.hf import card_data, card_judged, card_merge, card_rules, hub, side_files
from t_elaine.hf.card_rules import Card
from t_elaine.model.config import LlamaConfig

NOTICE = "NOTICE"


@dataclass(frozen=True, kw_only=True)
class Lack:
    """A part that is missing, and how to make it."""

    part: str
    how: str


def lacks(run_dir: str, meta: CheckpointMeta, card: Card) -> list[Lack]:
    """The parts that a whole card of this checkpoint would lack.

    Args:
        run_dir: the run.
        meta: of the checkpoint.
        card: what no run records.
    """
    found = [*_parent(run_dir, meta, card)]
    return found + ([*_record(run_dir), *_judged(run_dir, meta)] if meta.step else [])


def _parent(run_dir: str, meta: CheckpointMeta, card: Card) -> Iterator[Lack]:
    base = card_data.origin(run_dir, meta)
    if base and not card_merge.bases(run_dir) and not hub.is_name(card.base_model or base.partition("@")[0]):
        yield Lack(part="base_model", how="--gin.Card.base_model=\"'owner/name'\", the parent's name on the hub")
    if not card_rules.licence_lines(run_dir, card):
        yield Lack(part="licence", how="--gin.Card.licence=\"'apache-2.0'\", or the line license: in the parent's card")
    if card_rules.rule(run_dir).notice and not any("LICEN" in name for name in parentage.terms(run_dir)):
        yield Lack(part="the text of the parent's licence", how="put its LICENSE into RUN_DIR/parent/")


def _record(run_dir: str) -> Iterator[Lack]:
    stores = side_files.data_record(run_dir).values()
    sources = [source for store in stores for source in store.get("sources", [])]
    if not stores or not all(store.get("trained_on") for store in stores) or not sources:
        yield Lack(part="training data with licences", how="t-elaine prepare, and train on stores that it made")
    if not side_files.record(run_dir, "mixture.json").get("sources"):
        yield Lack(part="realised token shares", how="t-elaine train writes mixture.json")
    if not changes.settings_at(run_dir, 0):
        yield Lack(part="recipe", how="t-elaine train writes config.gin")
    if not side_files.record(run_dir, "chip_hours.json"):
        yield Lack(part="chip-hours", how="t-elaine train writes chip_hours.json")


def _judged(run_dir: str, meta: CheckpointMeta) -> Iterator[Lack]:
    judged, base = card_judged.results(run_dir, meta), card_data.origin(run_dir, meta)
    command = f"t-elaine evaluate --checkpoint=RUN_DIR/checkpoints/{meta.step}"
    if not any(found["exams"] or found.get("generated") for found in judged):
        yield Lack(part="evaluation", how=f"{command} --exams=samples/en,samples/ja,samples/zh")
    if base and not any(card_judged.beside_parent(found) for found in judged):
        yield Lack(part="forgetting", how=f"{command} --parent=PARENT --stores=STORE_OF_GENERAL_TEXT")
    if not any(card_judged.looked_for(found) for found in judged):
        yield Lack(part="contamination", how=f"{command} --trained_on=STORES (evaluate.contamination is on)")


def told(found: list[Lack]) -> str:
    """The parts with their commands, a line each."""
    return "\n".join(f"  {lack.part}: {lack.how}" for lack in found)


def check(run_dir: str, meta: CheckpointMeta, card: Card, run: str) -> list[Lack]:
    """What is missing; a name that the licence does not allow is refused before anything is written.

    Raises:
        UserError: such a name, or a file of citations that is not there.
    """
    card_rules.title(run_dir, run, card)
    card_rules.citations(run_dir, "", card)
    return lacks(run_dir, meta, card)


def check_push(run_dir: str, meta: CheckpointMeta, card: Card, name: str, public: bool) -> None:
    """Refuse to upload a model without a whole card; a draft may go into a private repository.

    Args:
        run_dir: the run.
        meta: of the checkpoint.
        card: what no run records.
        name: owner/name on the hub.
        public: whether everybody may see it.

    Raises:
        UserError: the card lacks parts, or the parent's licence does not allow the name.
    """
    card_rules.check_name(run_dir, name.partition("/")[2], "--push")
    found = lacks(run_dir, meta, card)
    if not found or (card.draft and not public):
        return
    mend = "make them first; with --gin.Card.draft=True a card marked as a draft goes into a private repository"
    raise UserError(f"the model card lacks {len(found)} parts:\n{told(found)}", f"--push={name}", mend)


def write(
    folder: Path, run_dir: str, meta: CheckpointMeta, config: LlamaConfig, proof: dict[str, Any], card: Card
) -> list[Lack]:
    """Write the card in three languages and the notice that the parent's licence asks for; what it lacks.

    No card is written where it lacks a part and is no draft.
    """
    found = lacks(run_dir, meta, card)
    notice = card_rules.rule(run_dir).notice
    kept = [path for path in folder.iterdir() if path.name.upper().startswith(NOTICE)]
    if notice and not any(notice.partition(" is ")[0] in path.read_text(encoding="utf-8") for path in kept):
        with open(folder / NOTICE, "a", encoding="utf-8") as file:
            file.write(f"{notice}\n")
    if found and not card.draft:
        return found
    parts = tuple(lack.part for lack in found)
    for language, name in cards.FILES.items():
        text = cards.model_card(run_dir, meta, config, proof, card, language, parts)
        (folder / name).write_text(text, encoding="utf-8")
    return found
