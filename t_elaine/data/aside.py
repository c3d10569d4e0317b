"""Records that were set aside, told to a person: how many for which reason, with a file and line of each.

The entries of quarantine.jsonl are written by data/preparation.py.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from t_elaine.errors import UserError

PREPROCESSOR = "preprocessor"  # what the reasons begin with that a preprocessor gives
KINDS = 40  # of one shard: a preprocessor that says something else of each record must not fill the manifest
OTHERS = "other reasons"
TOLD = 5
FILES = "part-*.quarantine.jsonl"  # of shards


def kind(reason: str, private: bool = False) -> str:
    """What records are counted by: a reason up to its colon; what follows is particular to the record.

    Of a preprocessor's ValueError its own words count, up to their first colon; of a private source nothing does.
    """
    head, _, rest = reason.partition(":")
    said = rest.partition(": ")[2].partition(":")[0].strip()  # after the exception's name
    return said if head == PREPROCESSOR and said and not private else head


def count(tally: Counter[str], reason: str, private: bool) -> None:
    """Count a record by the kind of its reason."""
    found = kind(reason, private)
    tally[found if found in tally or len(tally) < KINDS else OTHERS] += 1


def too_many(documents: int, reasons: Counter[str], allowed: float, where: str) -> UserError:
    """The error that stops a run. `where`: the shards' files of what was set aside, as a pattern."""
    bad, seen = reasons.total(), documents + reasons.total()
    files = sorted(Path(where).parent.glob(Path(where).name))
    what = f"{bad} of {seen} records ({bad / seen:.1%}) are malformed, {allowed:.1%} are allowed:"
    lines = [what, *(f"  {line}" for line in told(reasons, files))]
    return UserError(
        "\n".join(lines), where, "mend the sources (file and line stand there), or raise max_rejected_share"
    )


def told(reasons: Mapping[str, int], files: Iterable[Path]) -> list[str]:
    """A line for each of the few most frequent reasons, with a record that it was given for; then how many others."""
    every = Counter(reasons).most_common()
    first, rest = every[:TOLD], every[TOLD:]
    examples = _examples([reason for reason, _ in first], files)
    lines = [f"{number} × {reason}{examples.get(reason, '')}" for reason, number in first]
    return [*lines, *([f"{sum(number for _, number in rest)} for {len(rest)} more reasons"] if rest else [])]


def _examples(kinds: Collection[str], files: Iterable[Path]) -> dict[str, str]:
    """kind → ", such as FILE:LINE" and what its reason says beyond the kind."""
    found: dict[str, str] = {}
    for entry in _entries(files):
        one = next((k for k in (kind(entry["reason"]), entry["reason"].partition(":")[0]) if k in kinds), None)
        if one is not None and one not in found:
            particular = entry["reason"].partition(f"{one}:")[2].strip()
            found[one] = f", such as {entry['file']}:{entry['line']}{f' ({particular})' if particular else ''}"
            if len(found) == len(kinds):
                break
    return found


def _entries(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        with open(file, encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def kept(error: UserError, partial: Path, target: Path) -> UserError:
    """The error, naming a file that stays in sight: what it says of a store in the making is put together in `target`.

    Args:
        error: of a run; one that names no file of records set aside is returned as it is.
        partial: the hidden folder in which the store was made.
        target: file to write.
    """
    where = Path(error.where)
    if where.parent.resolve() != partial.resolve() or not where.match(FILES):
        return error
    texts = [file.read_bytes() for file in sorted(where.parent.glob(where.name))]
    target.write_bytes(b"".join(texts))
    return UserError(error.what, str(target), error.mend)
