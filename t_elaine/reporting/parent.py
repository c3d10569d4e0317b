"""The model that a run started from, as the small files beside the run tell it: its name and its terms."""

import fnmatch
import re
from dataclasses import dataclass
from typing import Any

from t_elaine import paths

LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*")


@dataclass(frozen=True, kw_only=True)
class Parent:
    """`name`: on the hub with its commit, of a folder its last part; `licence`: lines of its card; `terms`: files."""

    name: str
    licence: list[str]
    terms: list[str]


def read_parent(run_dir: str, origin: dict[str, Any]) -> Parent | None:
    """What RUN_DIR/parent/ holds, `origin` its origin.json; None without it: the first weights were random."""
    folder = paths.join(run_dir, "parent")
    names = paths.listing(folder)
    if not names:
        return None
    name = str(origin.get("origin", "")).rstrip("/")
    card = paths.read_text(paths.join(folder, "README.md")) if "README.md" in names else ""
    front = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    return Parent(
        name=name if re.fullmatch(r"[^/]+/[^/@]+@\w+", name) else name.rpartition("/")[2],
        licence=re.findall(r"^license(?:_name|_link)?:.*$", front[1], re.MULTILINE) if front else [],
        terms=[name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in LEGAL)],
    )
