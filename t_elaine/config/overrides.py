"""Bindings that a later file or flag overrides on purpose: found, and told in a few lines. Refuses nothing."""

import textwrap
from collections.abc import Sequence

from t_elaine.config.gin_files import MacroUse, Statement, show

# gin's own constant for "must be given by a later file or a flag".
REQUIRED = MacroUse("gin.REQUIRED")
WIDTH = 110
LONGEST = 40


def find(statements: Sequence[Statement]) -> list[tuple[Statement, Statement]]:
    """(before, after) of each binding whose value a later one changes, in the order of the later ones."""
    last: dict[str, Statement] = {}
    found = []
    for statement in statements:
        before = last.get(statement.key)
        if before is not None and before.value != statement.value and before.value != REQUIRED:
            found.append((before, statement))
        last[statement.key] = statement
    return found


def tell(statements: Sequence[Statement]) -> list[str]:
    """Lines for a terminal, one paragraph for each file that overrides and one for the flags: name, old value → new."""
    by_source: dict[str, list[str]] = {}
    for before, after in find(statements):
        changed = f"{after.key} {short(before.value)} → {short(after.value)}"
        by_source.setdefault(after.source if after.line else "flags", []).append(changed)
    lines = []
    for source, changes in by_source.items():
        text = f"{source}: {len(changes)} overridden: " + "; ".join(changes)
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return lines


def short(value: object) -> str:
    """A value as typed, its end cut off where it is long; the run's config.gin holds it whole."""
    text = show(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
