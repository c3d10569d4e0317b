"""Settings of a run that were changed on the way: read from what each start left in the run folder.

`config.gin` holds the settings in force last, `config.before-step-36.gin` those that trained up to step 36. Both have
one setting a line. Reads files only, and knows nothing of gin.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from t_elaine import paths

WHERE = ("RUN_DIR", "train.run_dir")  # say where a run lies, not what it is
UNSET = "its default"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One setting that another start of a run changed.

    Args:
        step: updates done with the value before; later ones had the other.
        name: of the setting.
        before: its value as text, `UNSET` where it had its default.
        after: likewise.
    """

    step: int
    name: str
    before: str
    after: str


def kept_steps(names: Sequence[str], stem: str, end: str) -> list[int]:
    """Steps N of the files `<stem>.before-step-N.<end>` among the names, ascending."""
    found = (re.fullmatch(rf"{re.escape(stem)}\.before-step-(\d+)\.{re.escape(end)}", name) for name in names)
    return sorted(int(match.group(1)) for match in found if match)


def kept_name(stem: str, step: int, end: str) -> str:
    """Name of the record that held up to a step."""
    return f"{stem}.before-step-{step}.{end}"


def history(run_dir: str) -> list[tuple[int, str]]:
    """(last step trained with them, settings) of each older start that trained something, ascending."""
    steps = [step for step in kept_steps(paths.listing(run_dir), "config", "gin") if step]
    return [(step, paths.read_text(paths.join(run_dir, kept_name("config", step, "gin")))) for step in steps]


def settings_at(run_dir: str, step: int) -> str:
    """The settings that made the update to a step; "" where none are recorded."""
    for last, text in history(run_dir):
        if step <= last:
            return text
    path = paths.join(run_dir, "config.gin")
    return paths.read_text(path) if paths.exists(path) else ""


def changes(run_dir: str, until: int | None = None) -> list[Change]:
    """Every change of settings before step `until` (None: ever), by step and name."""
    older = history(run_dir)
    newest = paths.join(run_dir, "config.gin")
    if not older or not paths.exists(newest):
        return []
    texts = [text for _, text in older] + [paths.read_text(newest)]
    return [
        change
        for (step, before), after in zip(older, texts[1:], strict=True)
        if until is None or step < until
        for change in differences(step, before, after)
    ]


def differences(step: int, before: str, after: str) -> list[Change]:
    """What two configurations set differently, by name; where the run lies does not count."""
    old, new = _values(before), _values(after)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [
        Change(step=step, name=name, before=old.get(name, UNSET), after=new.get(name, UNSET))
        for name in names
        if name not in WHERE
    ]


def _values(text: str) -> dict[str, str]:
    parts = (line.partition(" = ") for line in text.splitlines() if not line.startswith("#"))
    return {name.strip(): value.strip() for name, sign, value in parts if sign}


def sentence(found: Sequence[Change], most: int = 6) -> str:
    """The changes of one step in a line or two; "" for none."""
    if not found:
        return ""
    shown = "; ".join(f"{c.name} {_short(c.before)} → {_short(c.after)}" for c in found[:most])
    step = found[0].step
    rest = f"; and {len(found) - most} more (config.gin, {kept_name('config', step, 'gin')})"
    return f"settings changed from step {step} on: {shown}{rest if len(found) > most else ''}"


def _short(value: str, longest: int = 40) -> str:
    return value if len(value) <= longest else value[: longest - 1] + "…"
