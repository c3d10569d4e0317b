"""The model that a run started from, as the small files beside the run tell it: its name and its terms."""

import re
from dataclasses import dataclass
from typing import Any

from t_elaine import parentage, paths


@dataclass(frozen=True, kw_only=True)
class Parent:
    """`name`: on the hub with its commit, of a folder its last part; `licence`: lines of its card; `terms`: files."""

    name: str
    licence: list[str]
    terms: list[str]


def read_parent(run_dir: str, origin: dict[str, Any]) -> Parent | None:
    """What RUN_DIR/parent/ holds, `origin` its origin.json; None without it: the first weights were random."""
    if not paths.listing(parentage.folder(run_dir)):
        return None
    name = str(origin.get("origin", "")).rstrip("/")
    return Parent(
        name=name if re.fullmatch(r"[^/]+/[^/@]+@\w+", name) else name.rpartition("/")[2],
        licence=parentage.licence_lines(run_dir),
        terms=parentage.terms(run_dir),
    )
