"""Bindings that a later file or flag overrides on purpose: found, and told in a few lines. Refuses nothing."""

import textwrap
from collections.abc import Sequence

from t_elaine.config.gin_files import MacroUse, Statement, show

# gin's own constant for "must be given by a later file or a flag".
REQUIRED = MacroUse("gin.REQUIRED")
WIDTH = 110
LONGEST = 40
MOST = 8
# Command → where it writes its settings down.
HELD_IN = {
    "train": "config.gin in the run folder will hold all settings",
    "sweep": "config.gin in each run's folder will hold all settings",
}


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


def tell(statements: Sequence[Statement], command: str = "") -> list[str]:
    """Lines for a terminal: for each file that overrides, and for the flags, how many settings, and old value → new.

    At most `MOST` lines, unless more files than that override: of what does not fit the number alone is told. The
    flags stand last and are told most fully.

    Args:
        statements: of all files and flags.
        command: says where all settings can be read, if the command writes them down.
    """
    by_source: dict[str, list[str]] = {}
    for before, after in find(statements):
        changed = f"{after.key} {short(before.value)} → {short(after.value)}"
        by_source.setdefault(after.source if after.line else "flags", []).append(changed)
    whole = [line for source, changes in by_source.items() for line in _paragraph(source, changes, len(changes))]
    if len(whole) <= MOST:
        return whole
    told = [HELD_IN[command]] if command in HELD_IN else []
    for i, (source, changes) in reversed(list(enumerate(by_source.items()))):
        room = max(1, MOST - len(told) - i)  # the i files before want a line each
        paragraphs = (_paragraph(source, changes, count) for count in range(len(changes), -1, -1))
        told = [*next((lines for lines in paragraphs if len(lines) <= room), [source]), *told]
    return told


def _paragraph(source: str, changes: Sequence[str], count: int) -> list[str]:
    """The first `count` changes of a source, and how many they are in all."""
    shown = [*changes[:count], *([f"and {len(changes) - count} more"] if 0 < count < len(changes) else [])]
    text = f"{source}: {len(changes)} overridden" + (f": {'; '.join(shown)}" if shown else "")
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def short(value: object) -> str:
    """A value as typed, its end cut off where it is long; the run's config.gin holds it whole."""
    text = show(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
