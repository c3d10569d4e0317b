"""The parent's papers in a run folder: which files bind whoever uses the weights, and what its own card says of them.

Reads names and small files only; what is carried along, and where it is shown, others decide.
"""

import fnmatch
import re

from t_elaine import paths

LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*")
ORIGIN = "origin.json"
MERGE = "merge.json"
GROWN = "grown.json"  # of a model that was given rows for more ids


def is_legal(name: str) -> bool:
    """Whether a file is a licence, a notice or a policy of use."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in LEGAL)


def folder(run_dir: str) -> str:
    """Where a run keeps its parent's small files."""
    return paths.join(run_dir, "parent")


def terms(run_dir: str) -> list[str]:
    """Names of the parent's licences, notices and policies."""
    return [name for name in paths.listing(folder(run_dir)) if is_legal(name)]


def licence_lines(run_dir: str) -> list[str]:
    """The licence lines of the parent's own card, if it has them."""
    return licence_lines_in(folder(run_dir))


def licence_lines_in(place: str) -> list[str]:
    """The licence lines of the README.md of a folder."""
    card = paths.join(place, "README.md")
    if not paths.exists(card):
        return []
    front = re.match(r"---\n(.*?)\n---", paths.read_text(card), re.DOTALL)
    return re.findall(r"^license(?:_name|_link)?:.*$", front[1], re.MULTILINE) if front else []
