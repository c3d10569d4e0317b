"""Keeps documents that hold exam items out of a store, or counts them, while `prepare` makes it.

The items are found as in data/overlap.py, document by document: a dropped one is one that evaluation would name.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from t_elaine.data import overlap
from t_elaine.data.exam_items import ExamItems, find_suites, read_suite
from t_elaine.data.formats import SHOWN, Rejected
from t_elaine.data.overlap import Index, Overlap
from t_elaine.data.texts import Text
from t_elaine.errors import UserError

REASON = "holds exam questions"
DOCUMENTS = "documents"
MODES = ("drop", "count")
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class ExamFilter:
    """Which exams a store is kept free of. Small, and the same in every process.

    Attributes:
        suites: (file, name, digest of the items) of each suite.
        settings: when an item counts as found.
        mode: "drop" or "count".
    """

    suites: tuple[tuple[str, str, str], ...]
    settings: Overlap
    mode: str

    def describe(self) -> dict[str, Any]:
        """What a store's content depends on."""
        return {
            "mode": self.mode,
            "format": overlap.FORMAT,
            "settings": asdict(self.settings),
            "suites": {name: digest for _, name, digest in self.suites},
        }


def make_filter(places: Sequence[str], mode: str, settings: Overlap | None) -> ExamFilter | None:
    """The filter for exams in folders or files; None where none are given.

    Raises:
        UserError: an exam cannot be read, a setting makes no sense.
    """
    if mode not in MODES:
        raise UserError(f"exam_overlap is {mode!r}", "prepare.exam_overlap", "'drop' or 'count'")
    settings = settings or Overlap()
    overlap.check(settings)
    if not places:
        return None
    files = find_suites(places)
    stems = Counter(path.stem for path in files)
    names = [path.stem if stems[path.stem] == 1 else f"{path.parent.name}/{path.stem}" for path in files]
    if len(set(names)) < len(names):
        raise UserError("two exams have one name", ", ".join(places), "give each once, under a name of its own")
    digests = [read_suite(path, name).digest for path, name in zip(files, names, strict=True)]
    found = zip((str(path.resolve()) for path in files), names, digests, strict=True)
    return ExamFilter(suites=tuple(found), settings=settings, mode=mode)


@functools.lru_cache(maxsize=1)
def _index(found: ExamFilter) -> Index:
    suites: list[ExamItems] = []
    for file, name, digest in found.suites:
        suites.append(read_suite(Path(file), name))
        if suites[-1].digest != digest:
            raise UserError("an exam changed while prepare was at work", file, "run prepare again")
    return overlap.build_index(suites, found.settings)


def sort_out(found: ExamFilter, batch: Sequence[Text]) -> tuple[list[Text], list[Rejected], Counter[str]]:
    """Documents to keep, those to set aside, and how many hold items: of each suite, and (DOCUMENTS) of any."""
    index = _index(found)
    kept, aside, counts = [], [], Counter[str]()
    for text, items in zip(batch, overlap.items_in(index, [text.text for text in batch]), strict=True):
        if items:
            counts.update({index.suites[index.suite[item]][0] for item in items})
            counts[DOCUMENTS] += 1
        if items and found.mode == "drop":
            named = [f"{index.suites[index.suite[item]][0]} {index.ids[item]}" for item in items]
            more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
            reason = f"{REASON}: {', '.join(named[:_NAMED])}{more}"
            aside.append(Rejected(line=text.line, reason=reason, shown=text.text[:SHOWN]))
        else:
            kept.append(text)
    return kept, aside, counts


def total(reports: Sequence[dict[str, Any]], found: ExamFilter) -> dict[str, Any]:
    """What the manifest says: the mode, documents with items of any suite, and of each, from the shards' reports."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report["exam_overlap"])
    return {
        "mode": found.mode,
        "documents": counts[DOCUMENTS],
        "suites": {name: counts[name] for _, name, _ in found.suites},
    }


def told(manifest: dict[str, Any]) -> str:
    """A line on documents that hold exam items; "" where none were looked for."""
    found = manifest.get("exam_overlap")
    if not found:
        return ""
    suites = ", ".join(f"{count} of {name}" for name, count in found["suites"].items() if count)
    done = "dropped" if found["mode"] == "drop" else "kept"
    return f"{found['documents']} documents hold exam questions ({done}){': ' if suites else ''}{suites}"
