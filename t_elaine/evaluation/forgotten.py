"""The guard against forgetting on a finished model: a result's bits per byte beside its parent's, held to limits.

The verdict stands in the result under "forgetting"; other limits ask no model anything.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console

from t_elaine import forgetting
from t_elaine.errors import UserError
from t_elaine.evaluation import runner
from t_elaine.evaluation.runner import Material
from t_elaine.forgetting import Figures, Forgetting


def check(limits: Forgetting | None, material: Material, models: int) -> None:
    """Raise UserError, before anything is scored, where there is nothing to hold against the limits."""
    if limits is None:
        return
    groups = {document.group for held in material.held for document in held}
    if models < 2 or not groups:
        what = "the guard compares held-out text with a parent's: " + ("no parent" if models < 2 else "no store")
        raise UserError(f"{what} is given", "evaluate.forgetting", "give --parent=… and --stores=FOLDER,…")
    general = {group[1] == forgetting.GENERAL for group in groups}
    if limits.general is None and limits.others is None:
        raise UserError("the guard has no limit", "evaluate.forgetting", "give Forgetting.general, as 0.02")
    if limits.general is not None and True not in general:
        mend = "give a store of general text (category general) with --stores, or Forgetting.general = None"
        raise UserError("there is a limit for general text, and no general text", "Forgetting.general", mend)
    if limits.others is not None and False not in general:
        mend = "give a store of other text with --stores, or Forgetting.others = None"
        raise UserError("there is a limit for other text, and no other text", "Forgetting.others", mend)


def judge(result: dict[str, Any], limits: Forgetting | None, path: str, console: Console) -> int:
    """The exit code: 0, or `forgetting.EXCEEDED` where a group is past its limit. The verdict is kept and told.

    Args:
        result: with a parent; it gets "forgetting".
        limits: None: no verdict; one that stands in the result stays.
        path: of the result's file.
        console: for the verdict.
    """
    if limits is None:
        return 0
    found = forgetting.exceeded(figures(result, "child"), figures(result, "parent"), limits)
    told = (
        forgetting.sentence(found)
        if found
        else f"forgetting: every guarded group is within its limit ({words(limits)})"
    )
    verdict = {"limits": {k: v for k, v in asdict(limits).items() if k != "stores"}, "exceeded": found, "told": told}
    if result.get("forgetting") != verdict:
        result["forgetting"] = verdict
        runner.save(path, result)
    console.print(told, style="bold red" if found else None, highlight=False, soft_wrap=True)
    return forgetting.EXCEEDED if found else 0


def figures(result: Mapping[str, Any], side: str) -> Figures:
    """(language, category) → bits per byte."""
    rows = [row for row in result["bits_per_byte"] if row["level"] == "category" and side in row]
    return {(row["language"], row["category"]): row[side]["value"] for row in rows}


def words(limits: Forgetting) -> str:
    """The limits, for a reader."""
    parts = [("general text", limits.general), ("others", limits.others)]
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in parts if value is not None)
