"""Which exam items stand in texts: an index of the items' passages, and what of them is found in an iterator of texts.

Every passage of data/item_passages.py counts but those found in more than a few items of their suite, which are
boilerplate. It reads no store, asks no model, and sees verbatim copies only (docs/contamination.md).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from t_elaine.data.exam_items import ExamItems
from t_elaine.data.folding import fold, spread
from t_elaine.data.grams import ALL, CHARACTERS, WORDS, Grams, Hashed, find, hashed, letter_sums, make_grams, only
from t_elaine.data.item_passages import Passages, Sizes, measure, passages
from t_elaine.errors import UserError

FORMAT = 1  # of what is found: raise it when folding or passages change
_BATCH_CHARACTERS = 500_000
_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """When an exam item counts as standing in a text.

    Attributes:
        words: n of the n-grams of items in languages with spaces.
        characters: n of the n-grams of items that are mostly Chinese or Japanese characters.
        question_words: questions shorter than n are taken whole if they have so many words.
        question_characters: the same in characters.
        common: n-grams in more items of a suite than this are boilerplate and do not count.
        share: an item is seen if more than this share of its question is covered; 0: one n-gram is enough.
    """

    words: int = 13
    characters: int = 30
    question_words: int = 8
    question_characters: int = 17
    common: int = 3
    share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Table:
    """Grams of one width; gram g is the passages [offsets[g], offsets[g+1]), each of an item's units [first, last)."""

    grams: Grams
    offsets: np.ndarray
    item: np.ndarray
    first: np.ndarray
    last: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Index:
    """The passages of suites, ready to be looked for.

    Attributes:
        suites: names and digests, in order; items of all suites are numbered through.
        suite, question, whole: int64 [items]: number of its suite; units of its question; of all of it.
        offsets: int64 [items+1], where an item's units lie in an array over all items' units.
        told: bool [items], False where nothing of the item can be told: too short, or boilerplate alone.
    """

    settings: Overlap
    suites: tuple[tuple[str, str], ...]
    ids: tuple[str, ...]
    suite: np.ndarray
    question: np.ndarray
    whole: np.ndarray
    offsets: np.ndarray
    told: np.ndarray
    tables: tuple[Table, ...]


@dataclass(kw_only=True)
class Hits:
    """What was found. `covered`: bool over all items' units; `documents`: int64 [items], texts that hold an item."""

    covered: np.ndarray
    documents: np.ndarray
    examples: dict[int, list[str]] = field(default_factory=dict)
    texts: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Places:
    """Hits in some texts: passage by passage, the text it is in and the units [first, last) of the item it covers."""

    text: np.ndarray
    item: np.ndarray
    first: np.ndarray
    last: np.ndarray


def check(settings: Overlap) -> None:
    """Raise UserError for settings that make no sense."""
    if min(settings.words, settings.characters, settings.question_words, settings.question_characters) < 4:
        raise UserError("n-grams of exams have at least 4 words or characters", "Overlap", "13 words, 30 characters")
    if settings.common < 1 or not 0 <= settings.share < 1:
        raise UserError("common is at least 1, share between 0 and 1", "Overlap", "common 3, share 0.0")


def build_index(suites: Sequence[ExamItems], settings: Overlap | None = None, mask: int = ALL) -> Index:
    """The index of suites.

    Args:
        suites: of different names.
        settings: lengths and thresholds.
        mask: of a hash's bits that are looked at, fewer in tests of collisions.
    """
    settings = settings or Overlap()
    check(settings)
    items = [item for suite in suites for item in suite.items]
    suite = np.repeat(np.arange(len(suites)), [len(s.items) for s in suites])
    measured = measure(items)
    tables: list[Table] = []
    for sizes in _sizes(settings):
        found = passages(measured, sizes)
        for width in (sizes.n, sizes.n // 2, sizes.n // 4):
            chosen = (found.units == sizes.n) if width == sizes.n else _of_width(found.units, width, sizes.n)
            if chosen.any():
                tables.append(_table(found, chosen, width, suite, settings.common, mask))
    told = np.zeros(len(items), bool)
    for table in tables:
        told[table.item] = True
    return Index(
        settings=settings,
        suites=tuple((s.name, s.digest) for s in suites),
        ids=tuple(item.id for item in items),
        suite=suite,
        question=measured.question,
        whole=measured.whole,
        offsets=np.concatenate([[0], np.cumsum(measured.whole)]),
        told=told,
        tables=tuple(table for table in tables if len(table.item)),
    )


def _sizes(settings: Overlap) -> tuple[Sizes, Sizes]:
    words, characters = settings.words, settings.characters
    return (
        Sizes(unit=WORDS, n=words, question=settings.question_words, item=max(1, words // 4)),
        Sizes(unit=CHARACTERS, n=characters, question=settings.question_characters, item=max(1, characters // 4)),
    )


def _of_width(units: np.ndarray, width: int, n: int) -> np.ndarray:
    """Which passages shorter than n are looked up by their first `width` units: half of n, else a quarter."""
    return (units < n) & (units >= width) & ((width == n // 2) | (units < n // 2))


def _table(found: Passages, chosen: np.ndarray, width: int, suite: np.ndarray, common: int, mask: int) -> Table:
    cut = {name: getattr(found, name)[chosen] for name in ("starts", "stops", "item", "first", "last")}
    grams, of = make_grams(found.text, width, cut["starts"], cut["stops"], mask)
    holders = _pairs(of, cut["item"], len(suite))
    if (found.units[chosen] != found.units[chosen][0]).any() or width < found.units[chosen][0]:
        # A whole item may stand inside longer ones too.
        gram, place = find(grams, found.text)
        inside = found.layout_item[np.searchsorted(found.text.letters.ends, place, side="right")]
        holders = np.union1d(holders, _pairs(gram, inside, len(suite)))
    suites = int(suite.max(initial=0)) + 1
    in_suite = (holders // len(suite)) * suites + suite[holders % len(suite)]
    counts = np.bincount(in_suite, minlength=suites * len(grams.hashes))
    counted = counts[of * suites + suite[cut["item"]]] <= common
    passage = _different(np.stack([of, cut["item"], cut["first"], cut["last"]])[:, counted])
    kept = np.bincount(passage[0], minlength=len(grams.hashes))
    return Table(
        grams=only(grams, found.text, kept > 0),
        offsets=np.concatenate([[0], np.cumsum(kept[kept > 0])]),
        item=passage[1],
        first=passage[2],
        last=passage[3],
    )


def _different(columns: np.ndarray) -> np.ndarray:
    """The different columns of int64 [4, n], ascending (np.unique over an axis takes ten times as long)."""
    columns = columns[:, np.lexsort(columns[::-1])]
    new = np.ones(columns.shape[1], bool)
    new[1:] = (columns[:, 1:] != columns[:, :-1]).any(axis=0)
    return columns[:, new]


def _pairs(gram: np.ndarray, item: np.ndarray, items: int) -> np.ndarray:
    return np.unique(gram * items + item)


# --- looking


def places(index: Index, texts: Sequence[str]) -> Places:
    """Every passage of an item that stands in one of the texts; one that spans two of them does not count."""
    letters = fold(texts)
    sums = letter_sums(letters)
    units: dict[str, Hashed] = {}
    parts = []
    # Every passage that is counted in characters holds a Chinese or Japanese one.
    for table in index.tables if letters.cjk.any() else (t for t in index.tables if t.grams.unit == WORDS):
        unit = table.grams.unit
        text = units[unit] = units.get(unit) or hashed(letters, unit, sums)
        gram, place = find(table.grams, text)
        counts = table.offsets[gram + 1] - table.offsets[gram]
        passage = spread(table.offsets[gram], counts)
        found = np.searchsorted(letters.ends, np.repeat(place, counts), side="right")
        parts.append((found, table.item[passage], table.first[passage], table.last[passage]))
    joined = [np.concatenate(part) for part in zip(*parts, strict=True)] if parts else [np.zeros(0, np.int64)] * 4
    return Places(text=joined[0], item=joined[1], first=joined[2], last=joined[3])


def no_hits(index: Index) -> Hits:
    """Before anything was looked at."""
    return Hits(covered=np.zeros(index.offsets[-1], bool), documents=np.zeros(len(index.ids), np.int64))


def scan(index: Index, documents: Iterable[tuple[str, str]]) -> Hits:
    """What of the items stands in documents, given as (id, text)."""
    hits = no_hits(index)
    for batch in batches(documents):
        found = places(index, [text for _, text in batch])
        spans = spread(index.offsets[found.item] + found.first, found.last - found.first)
        hits.covered[spans] = True
        pairs = np.unique(found.text * len(index.ids) + found.item)
        np.add.at(hits.documents, pairs % len(index.ids), 1)
        for pair in pairs.tolist():
            kept = hits.examples.setdefault(pair % len(index.ids), [])
            if len(kept) < _EXAMPLES:
                kept.append(batch[pair // len(index.ids)][0])
        hits.texts += len(batch)
        hits.bytes += sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for _, text in batch)
    return hits


def batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Documents in batches that fit the processor's cache."""
    batch: list[tuple[str, str]] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document[1])
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def merge(index: Index, parts: Iterable[Hits]) -> Hits:
    """The hits of several scans with one index, in their order."""
    hits = no_hits(index)
    for part in parts:
        hits.covered |= part.covered
        hits.documents += part.documents
        hits.texts += part.texts
        hits.bytes += part.bytes
        for item, ids in part.examples.items():
            kept = hits.examples.setdefault(item, [])
            kept += ids[: _EXAMPLES - len(kept)]
    return hits


def items_in(index: Index, texts: Sequence[str]) -> list[list[int]]:
    """For each text the items that are seen in it alone."""
    found = places(index, texts)
    pairs, which = np.unique(found.text * len(index.ids) + found.item, return_inverse=True)
    made: list[list[int]] = [[] for _ in texts]
    for i, pair in enumerate(pairs.tolist()):
        text, item = divmod(pair, len(index.ids))
        if index.settings.share:
            covered = np.zeros(int(index.whole[item]), bool)
            spans = which == i
            covered[spread(found.first[spans], found.last[spans] - found.first[spans])] = True
            if covered[: index.question[item]].mean() <= index.settings.share:
                continue
        made[text].append(item)
    return made


def shares(index: Index, hits: Hits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 [items]: covered share of the question, of the whole item; bool [items]: whether it is seen."""
    sums = np.concatenate([[0], np.cumsum(hits.covered)])
    start = index.offsets[:-1]
    question = (sums[start + index.question] - sums[start]) / np.maximum(index.question, 1)
    whole = (sums[index.offsets[1:]] - sums[start]) / np.maximum(index.whole, 1)
    seen = question > index.settings.share if index.settings.share else hits.documents > 0
    return question, whole, seen
