"""How much a model may lose against its parent on held-out text: the limits, and which groups are past them.

Open to all rooms: `evaluate` judges a finished model by it and `train` a running one. It measures nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t_elaine.errors import UserError

# The category of text that a model should not forget; it never counts as a language's gain.
GENERAL = "general"
# Exit code of a command whose model is past a limit: the work is done, and the answer is no.
EXCEEDED = 3

Group = tuple[str, str]
Figures = Mapping[Group, float | None]


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """How much worse than its parent a model may become; bits per byte of held-out text, each group by itself.

    Args:
        general: largest rise on general text (category "general") of a language, as a share of the parent's figure:
            0.02 is 2 %; None: no limit.
        others: the same of every other language and category; None: no limit.
        stores: stores whose held-out text `train` measures as well, beside those trained on; `evaluate` has its own.
    """

    general: float | None = 0.02
    others: float | None = None
    stores: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("general", "others"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"{name} is {value}", f"Forgetting.{name}", "give a share such as 0.02, or None")

    def limit(self, group: Group) -> float | None:
        """Of a (language, category)."""
        return self.general if group[1] == GENERAL else self.others


def exceeded(child: Figures, parent: Figures, limits: Forgetting) -> list[dict[str, Any]]:
    """Groups past their limit, the worst first: {"language", "category", "child", "parent", "rise", "limit"}.

    A figure that is not finite is past any limit. Groups that the parent has no figure for are left out.
    """
    found = []
    for group, value in child.items():
        limit, before = limits.limit(group), parent.get(group)
        if limit is None or not before:
            continue
        rise = value / before - 1 if value is not None and math.isfinite(value) else math.inf
        if rise > limit:
            told = {"language": group[0], "category": group[1], "child": value, "parent": before}
            found.append({**told, "rise": round(rise, 6) if math.isfinite(rise) else None, "limit": limit})
    return sorted(found, key=lambda one: -math.inf if one["rise"] is None else one["limit"] - one["rise"])


def name(one: Mapping[str, Any]) -> str:
    """Of a group: general text, ja; or: ja, textbook."""
    language, category = one["language"], one["category"]
    return f"general text, {language}" if category == GENERAL else f"{language}, {category}"


def sentence(found: list[dict[str, Any]]) -> str:
    """What was lost: group, figure, the parent's, the limit; the worst group, and how many others."""
    worst = found[0]
    value = "not finite" if worst["rise"] is None else f"{worst['child']:.4f}"
    rise = "" if worst["rise"] is None else f", {100 * worst['rise']:.1f} % more"
    more = f"; {len(found) - 1} more past their limits: {'; '.join(map(name, found[1:]))}" if found[1:] else ""
    return (
        f"forgotten: {name(worst)}: {value} bits per byte, the parent has {worst['parent']:.4f}{rise}; "
        f"at most {100 * worst['limit']:.1f} % is allowed{more}"
    )
