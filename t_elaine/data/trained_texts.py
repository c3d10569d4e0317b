"""The texts of token stores and files, looked through for exam items by several processes, and what they held kept.

Stores hold tokens: their documents are written out through the store's own vocabulary. What is found is kept by digests
of the store's manifest, of the suite and of the settings, so that a store is read once for a suite.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine import paths
from t_elaine.data import overlap
from t_elaine.data.doc_batch import DocBatch
from t_elaine.data.exam_items import ExamItems
from t_elaine.data.formats import Rejected, read
from t_elaine.data.lines import Piece
from t_elaine.data.overlap import Hits, Index, Overlap
from t_elaine.data.sources import Source
from t_elaine.data.store import MANIFEST, open_store
from t_elaine.data.vocabulary import Vocabulary, load_vocabulary
from t_elaine.data.workers import begin_worker
from t_elaine.errors import UserError

_DECODED = 1_000_000  # tokens written out at a time


class Absent(UserError):
    """Texts that a model was trained on are not at hand."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Texts that a model was trained on: a store's folder, or a file with a field `text`; `digest` of its content."""

    name: str
    path: str
    digest: str
    is_store: bool


@dataclass(frozen=True, kw_only=True)
class Work:
    """One file of texts for one process: every record batch of a store's file, or a part of a file of rows."""

    place: Place
    file: str
    part: int = 0
    parts: int = 1


def open_place(path: str) -> Place:
    """A store, or a .jsonl file (.gz, .zst) of texts.

    Raises:
        UserError: neither.
    """
    if paths.exists(paths.join(path, MANIFEST)):
        store = open_store(path)
        return Place(name=store.name, path=path, digest=paths.file_sha256(paths.join(path, MANIFEST)), is_store=True)
    if Path(path).is_file():
        return Place(name=Path(path).name, path=path, digest=paths.file_sha256(path), is_store=False)
    raise UserError(
        f"neither a store nor a file of texts: {path}", "trained_on", "give folders of stores or .jsonl files"
    )


def look_through(
    places: Sequence[Place],
    suites: Sequence[ExamItems],
    settings: Overlap,
    cache: str,
    workers: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """What of each suite stands in each place.

    Args:
        places: of different digests; the same texts twice count once.
        suites: exams.
        settings: of the index.
        cache: folder in which what is found is kept, local or in an object store; "": nowhere.
        workers: processes; 0: one for each core; 1: this process.
        say: takes messages.

    Returns:
        place's name → suite's name → {"documents", "bytes", "untold": items that are too short, "items": {id:
        {"question": covered share, "whole": covered share, "seen": bool, "documents", "examples": ids of some (of
        private sources hashes), "covered": [first, last, …] units, "units": [of the question, of all]}}}.
    """
    found: dict[str, dict[str, Any]] = {}
    for place in places:
        known = {suite.name: _kept(cache, place, suite, settings) for suite in suites}
        missing = [suite for suite in suites if known[suite.name] is None]
        if missing:
            index = kept_index(tuple(missing), settings)
            _check_there(place)
            say(f"looking for {len(index.ids)} exam questions in {place.name}")
            hits = _scan(place, index, workers or os.cpu_count() or 1)
            for suite, part in zip(missing, by_suite(index, hits), strict=True):
                known[suite.name] = part
                _keep(cache, place, suite, settings, part)
        found[place.name] = {suite.name: known[suite.name] for suite in suites}
    return found


def _check_there(place: Place) -> None:
    """Refuse a store that is no more, or is another now."""
    manifest = paths.join(place.path, MANIFEST)
    if place.is_store and not paths.exists(manifest):
        raise Absent(f"the store {place.name} is not there any more", place.path, "give --trained_on")
    if place.is_store and paths.file_sha256(manifest) != place.digest:
        raise Absent(f"the store {place.name} was made anew since", place.path, "give --trained_on")


def by_suite(index: Index, hits: Hits) -> list[dict[str, Any]]:
    """What was found, suite by suite, as plain data."""
    question, whole, seen = overlap.shares(index, hits)
    made = []
    for number in range(len(index.suites)):
        members = index.suite == number
        items = {}
        for i in np.flatnonzero(members & (hits.documents > 0)).tolist():
            covered = hits.covered[index.offsets[i] : index.offsets[i + 1]]
            edges = np.flatnonzero(np.diff(np.concatenate([[False], covered, [False]])))
            items[index.ids[i]] = {
                "question": round(float(question[i]), 4),
                "whole": round(float(whole[i]), 4),
                "seen": bool(seen[i]),
                "documents": int(hits.documents[i]),
                "examples": hits.examples[i],
                "covered": edges.tolist(),
                "units": [int(index.question[i]), int(index.whole[i])],
            }
        untold = int((~index.told[members]).sum())
        made.append({"documents": hits.texts, "bytes": hits.bytes, "untold": untold, "items": items})
    return made


# --- what was found before


def _file(cache: str, place: Place, suite: ExamItems, settings: Overlap) -> str:
    content = json.dumps([overlap.FORMAT, place.digest, suite.digest, asdict(settings)], sort_keys=True)
    return paths.join(cache, f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.json")


def _kept(cache: str, place: Place, suite: ExamItems, settings: Overlap) -> dict[str, Any] | None:
    path = _file(cache, place, suite, settings)
    if not cache or not paths.exists(path):
        return None
    try:
        found = json.loads(paths.read_text(path))["found"]
    except (ValueError, KeyError, TypeError):
        return None  # cut short: it is found again
    return dict(found)


def _keep(cache: str, place: Place, suite: ExamItems, settings: Overlap, found: dict[str, Any]) -> None:
    if cache:
        paths.make_folder(cache)
        about = {"store": place.name, "store_digest": place.digest, "suite": suite.name, "suite_digest": suite.digest}
        content = {**about, "settings": asdict(settings), "found": found}
        paths.write_text(_file(cache, place, suite, settings), json.dumps(content, ensure_ascii=False) + "\n")


# --- looking


@functools.lru_cache(maxsize=1)
def kept_index(suites: tuple[ExamItems, ...], settings: Overlap) -> Index:
    """The index of suites, made once for all places."""
    return overlap.build_index(suites, settings)


def _scan(place: Place, index: Index, cores: int) -> Hits:
    works = _works(place, cores)
    if cores == 1 or len(works) == 1:
        return _look(works, index)
    # One task a process, so that the index is sent to each of them once.
    share = -(-len(works) // cores)
    tasks = [works[first : first + share] for first in range(0, len(works), share)]
    pool = ProcessPoolExecutor(len(tasks), mp_context=get_context("spawn"), initializer=begin_worker)
    try:
        return overlap.merge(index, pool.map(functools.partial(_look, index=index), tasks))
    except KeyboardInterrupt:
        for worker in active_children():
            worker.kill()  # whoever ends this command does not wait for them
        raise
    except BrokenProcessPool as error:
        mend = "give evaluate.contamination = False, or more memory"
        raise UserError("a process that looked for exam questions was killed", place.path, mend) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _works(place: Place, cores: int) -> list[Work]:
    if not place.is_store:
        return [Work(place=place, file=place.path, part=part, parts=cores) for part in range(cores)]
    store = open_store(place.path)
    shards = [shard for shard in store.manifest["shards"] if shard["split"] == "train"]
    # Few shards are shared by their record batches.
    parts = max(1, -(-cores // max(1, len(shards))))
    return [
        Work(place=place, file=shard["file"], part=part, parts=parts) for shard in shards for part in range(parts)
    ] or [Work(place=place, file="")]


def _look(works: Sequence[Work], index: Index) -> Hits:
    return overlap.merge(index, (overlap.scan(index, _documents(work)) for work in works))


def _documents(work: Work) -> Iterator[tuple[str, str]]:
    if not work.place.is_store:
        yield from _of_file(work)
        return
    store = open_store(work.place.path)
    vocabulary = load_vocabulary(paths.join(work.place.path, "vocabulary"))
    pieces = pieces_of(vocabulary)
    private = {name for name, terms in store.manifest.get("licences", {}).items() if terms["private"]}
    for i, batch in enumerate(store.file_batches(work.file) if work.file else ()):
        if i % work.parts == work.part:
            yield from written_out(batch, pieces, private)


def pieces_of(vocabulary: Vocabulary) -> list[bytes]:
    """The bytes of every id; a special token ends a line, so that it joins nothing."""
    pieces = list(vocabulary.pieces)
    for special in vocabulary.special_ids:
        pieces[special] = b"\n"
    return pieces


def written_out(batch: DocBatch, pieces: Sequence[bytes], private: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """(id, text) of a record batch's documents; of private sources the text's hash in place of the id."""
    ids, first = batch.ids(), 0
    if private:
        sources, hashes = batch.sources(), batch.text_hash.tolist()
        ids = [f"{hashes[i]:016x}" if sources[i] in private else name for i, name in enumerate(ids)]
    while first < batch.docs:
        last = int(np.searchsorted(batch.offsets, batch.offsets[first] + _DECODED, side="right")) - 1
        last = min(batch.docs, max(first + 1, last))
        tokens = batch.tokens[batch.offsets[first] : batch.offsets[last]].tolist()
        base = int(batch.offsets[first])
        for i in range(first, last):
            part = tokens[int(batch.offsets[i]) - base : int(batch.offsets[i + 1]) - base]
            yield ids[i], b"".join([pieces[token] for token in part]).decode("utf-8", "replace")
        first = last


def _of_file(work: Work) -> Iterator[tuple[str, str]]:
    source = Source(name=work.place.name, files=(work.file,), language="", category="", licence="", url="")
    for n, record in enumerate(read(source, Piece(file=work.file, part=work.part, parts=work.parts))):
        if isinstance(record, Rejected) or not isinstance(record[1].get("text"), str):
            # A text that is passed over would be an exam question that nobody had seen.
            what = record.reason if isinstance(record, Rejected) else f"no text: its fields are {', '.join(record[1])}"
            shown = record.shown if isinstance(record, Rejected) else str(record[1])
            mend = "give each record a field `text`, or prepare a store of the file and name that"
            raise UserError(f"a record of the file has {what}: {shown[:60]}", work.file, mend)
        yield str(record[1].get("id") or f"{work.place.name}:{work.part}:{n}"), record[1]["text"]
