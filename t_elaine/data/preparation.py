"""One shard of a task's sources → one shard of its store: read, preprocess, tokenise, split off validation, write.

`prepare_shard` depends on nothing but its argument, and can be killed and repeated at any moment: what it finishes
stands under final names with a report beside it, written last. What becomes of the shards is the business of
data/assembly.py.
"""

import functools
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from t_elaine.data import aside, chat_tokens, exam_filter, preference_tokens
from t_elaine.data.chat import SYSTEM
from t_elaine.data.chat_choice import checked
from t_elaine.data.chat_templates import Template
from t_elaine.data.exam_filter import ExamFilter
from t_elaine.data.formats import SHOWN, Rejected, first_line, is_splittable
from t_elaine.data.lines import Piece
from t_elaine.data.sources import Source, find_files, text_hash, utf8_length
from t_elaine.data.store import Labels, Row, ShardWriter, write_json
from t_elaine.data.texts import Task, Text, texts
from t_elaine.data.vocabulary import Vocabulary, load_vocabulary
from t_elaine.errors import UserError
from t_elaine.faults import fault_point
from t_elaine.paths import file_sha256

SHARD_BYTES = 64_000_000
_BATCH_CHARACTERS = 1_000_000
_EARLY_LOOK = 1000  # documents of a shard after which too large a share of bad ones stops it


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What one call of `prepare_shard` needs; small, and the same in every process.

    Attributes:
        pieces: (index of the source within the task, piece of a file), in the order of the documents.
        before, after: ids put around every document.
        validation_share: share of the texts, by hash, that goes to the validation split.
        exams: exams whose items are looked for in every document; None: none.
        template: chat template of conversations (`chat_choice.choose`).
    """

    task: Task
    index: int
    count: int
    pieces: tuple[tuple[int, Piece], ...]
    folder: str
    vocabulary: str
    vocabulary_sha256: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    validation_share: float
    max_rejected_share: float
    exams: ExamFilter | None = None
    template: str = ""

    def path(self, kind: str) -> Path:
        return Path(self.folder) / f"part-{self.index:05d}.{kind}"


@dataclass(kw_only=True)
class Tally:
    """Counts of a shard: records set aside by reason, exam items, system turns that had no place, preferences."""

    rejected: Counter[str] = field(default_factory=Counter)
    overlaps: Counter[str] = field(default_factory=Counter)
    systems: int = 0
    pairs: int = 0


def plan_pieces(task: Task, data_root: str, shards: int) -> list[tuple[tuple[int, Piece], ...]]:
    """Divide a task's files into shards, the same on every machine: by bytes, in the order of sources and names.

    Args:
        shards: how many to aim for; 0: one for each SHARD_BYTES (compressed bytes count four times).
    """
    files = [(i, path) for i, source in enumerate(task.sources) for path in find_files(source, data_root)]
    weights = [_weight(task.sources[i], path) for i, path in files]
    target = max(sum(weights) / shards if shards else SHARD_BYTES, 1.0)
    planned: list[list[tuple[int, Piece]]] = [[]]
    filled = 0.0
    for (i, path), weight in zip(files, weights, strict=True):
        # What cannot be cut by bytes is read whole for each of its pieces: at most 16 of them.
        limit = 4096 if is_splittable(task.sources[i], path) else 16
        parts = min(max(round(weight / target), 1), limit)
        for part in range(parts):
            if planned[-1] and filled + weight / parts / 2 > target:
                planned.append([])
                filled = 0.0
            planned[-1].append((i, Piece(file=str(path), part=part, parts=parts)))
            filled += weight / parts
    return [tuple(pieces) for pieces in planned]


def _weight(source: Source, path: Path) -> float:
    if source.format == "tfds":
        return float(SHARD_BYTES)
    return path.stat().st_size * (4.0 if path.suffix in (".gz", ".zst", ".parquet") else 1.0)


def labels(task: Task) -> Labels:
    sources = task.sources
    return Labels(
        languages=tuple(dict.fromkeys(s.language for s in sources)),
        categories=tuple(dict.fromkeys(s.category for s in sources)),
        sources=tuple(s.name for s in sources),
    )


def finished(shard: Shard) -> dict[str, Any] | None:
    """The report of a shard that is already done, else None."""
    path = shard.path("report.json")
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    files = [f"{split}.arrow" for split in report["sha256"]] + ["quarantine.jsonl"]
    return report if all(shard.path(kind).is_file() for kind in files) else None


def prepare_shard(shard: Shard) -> dict[str, Any]:
    """Make part-NNNNN.{train,validation}.arrow and .quarantine.jsonl in `shard.folder`; the report is the marker.

    Returns:
        the report: documents kept, rejected by reason, sha256 of the files.

    Raises:
        UserError: a file cannot be read, or too many records are malformed.
    """
    done = finished(shard)
    if done is not None:
        return done
    vocabulary = _vocabulary(shard.vocabulary, shard.vocabulary_sha256)
    fault_point("prepare.before_write")
    splits = ("train", "validation") if shard.validation_share else ("train",)
    quarantine = shard.path("quarantine.jsonl")
    tally, documents = Tally(), 0
    with ExitStack() as held:
        writers = {
            split: held.enter_context(ShardWriter(shard.path(f"{split}.arrow"), labels(shard.task))) for split in splits
        }
        with open(quarantine, "w", encoding="utf-8", newline="\n") as sink:
            for source, batch in _free_of_exams(shard, tally, sink):
                tally.pairs += sum(bool(text.rejected) for text in batch)
                for row, split in _rows(batch, source, shard, vocabulary):
                    writers[split].add(row)
                documents += len(batch)
                fault_point("prepare.mid_write")
                sink.flush()
                _check_early(documents, tally.rejected, shard)
            sink.flush()
            os.fsync(sink.fileno())
        for writer in writers.values():
            writer.close()
    fault_point("prepare.before_report")
    digests = {split: file_sha256(writer.path) for split, writer in writers.items()}
    report = {"documents": documents, "rejected": dict(sorted(tally.rejected.items())), "sha256": digests}
    report |= {"exam_overlap": dict(tally.overlaps)} if shard.exams else {}
    report |= {"system_turns_left_out": tally.systems} if tally.systems else {}
    report |= {"pairs": tally.pairs} if tally.pairs else {}
    write_json(shard.path("report.json"), report)
    fault_point("prepare.after_report")
    return report


def _check_early(documents: int, reasons: Counter[str], shard: Shard) -> None:
    seen = documents + reasons.total()
    if seen >= _EARLY_LOOK and reasons.total() > shard.max_rejected_share * seen:
        # The shard as a whole might still pass, but not with these first thousand as a sample of it.
        raise aside.too_many(documents, reasons, shard.max_rejected_share, str(shard.path("quarantine.jsonl")))


@functools.lru_cache(maxsize=2)
def _vocabulary(path: str, sha256: str) -> Vocabulary:
    vocabulary = load_vocabulary(path)
    if vocabulary.sha256 != sha256:
        raise UserError("the vocabulary file changed while prepare was at work", path, "run prepare again")
    return vocabulary


def _free_of_exams(shard: Shard, tally: Tally, sink: TextIO) -> Iterator[tuple[Source, list[Text]]]:
    """`_batches` without documents that hold exam items, which go aside and are no malformed records."""
    for source, piece, batch in _batches(shard, tally, sink):
        if shard.exams is None or not batch:
            yield source, batch
            continue
        kept, dropped, counts = exam_filter.sort_out(shard.exams, batch)
        tally.overlaps.update(counts)
        first = first_line(source, piece) if dropped else 0
        for item in dropped:
            print(json.dumps(_set_aside(item, source, piece, first), ensure_ascii=True), file=sink)
        yield source, kept


def _spoken(item: Text | Rejected, shard: Shard, tally: Tally) -> Text | Rejected:
    """A conversation with the parts that the template makes of it; anything else as it is."""
    if isinstance(item, Rejected) or not item.turns:
        return item
    template = template_of(shard)
    try:
        parts, against = tuple(template.write(item.turns, False)), item.rejected_parts
        if item.rejected:
            parts = preference_tokens.last_answer(parts, item.turns)
            against = preference_tokens.last_answer(template.write(item.rejected, False), item.rejected)
    except ValueError as error:
        return Rejected(line=item.line, reason=str(error)[:SHOWN], shown=item.text[:SHOWN])
    tally.systems += item.turns[0].role == SYSTEM and not template.has_system
    return replace(item, parts=parts, rejected_parts=against)


def template_of(shard: Shard) -> Template:
    """The chat template of a shard's conversations."""
    return _template(shard.template, shard.vocabulary, shard.vocabulary_sha256)


@functools.lru_cache(maxsize=2)
def _template(name: str, vocabulary: str, sha256: str) -> Template:
    return checked(name, _vocabulary(vocabulary, sha256))


def _batches(shard: Shard, tally: Tally, sink: TextIO) -> Iterator[tuple[Source, Piece, list[Text]]]:
    """Documents in batches of about a million characters, so that the tokenizer works in one go; bad ones go aside."""
    for index, piece in shard.pieces:
        source = shard.task.sources[index]
        batch: list[Text] = []
        size = 0
        first: int | None = None
        for item in texts(shard.task, source, piece):
            item = _spoken(item, shard, tally)
            if isinstance(item, Rejected):
                first = first_line(source, piece) if first is None else first
                aside.count(tally.rejected, item.reason, source.private)
                print(json.dumps(_set_aside(item, source, piece, first), ensure_ascii=True), file=sink)
                continue
            batch.append(item)
            size += len(item.text)
            if size >= _BATCH_CHARACTERS:
                yield source, piece, batch
                batch, size = [], 0
        if batch:
            yield source, piece, batch
    # A shard of bad records only must be looked at too.
    if shard.pieces:
        index, piece = shard.pieces[-1]
        yield shard.task.sources[index], piece, []


def _set_aside(item: Rejected, source: Source, piece: Piece, first: int) -> dict[str, Any]:
    entry = {"source": source.name, "file": piece.file, "line": first + item.line}
    if not source.private:
        return entry | {"reason": item.reason, "shown": item.shown}
    entry["reason"] = item.reason.partition(":")[0]
    return entry | {
        "length": len(item.shown),
        "hash": f"{text_hash(item.shown.encode('utf-8', 'replace').decode()):016x}",
    }


def _rows(batch: list[Text], source: Source, shard: Shard, vocabulary: Vocabulary) -> Iterator[tuple[Row, str]]:
    limit = int(shard.validation_share * 2**64)
    for text, (tokens, trained) in zip(batch, _tokens(batch, shard, vocabulary), strict=True):
        identity = text_hash(text.text)
        row = Row(
            tokens=tokens,
            id=text.id,
            language=source.language,
            category=source.category,
            source=source.name,
            bytes=utf8_length(text.text),
            text_hash=identity,
            trained=trained,
        )
        yield row, "validation" if identity < limit else "train"


def _tokens(
    batch: list[Text], shard: Shard, vocabulary: Vocabulary
) -> Iterator[tuple[np.ndarray, list[tuple[int, int]] | None]]:
    """Ids with framing, every one trained; of conversations and pairs ids as the template has them, and ranges."""
    before, after = np.array(shard.before, np.uint32), np.array(shard.after, np.uint32)
    plain = iter(vocabulary.encode_batch([text.text for text in batch if not text.parts]))
    spoken = [text.parts for text in batch if text.parts and not text.rejected]
    compared = [(text.parts, text.rejected_parts) for text in batch if text.rejected]
    apart = bool(spoken or compared) and template_of(shard).apart
    conversations = chat_tokens.encode(spoken, vocabulary, apart) if spoken else iter(())
    pairs = preference_tokens.encode(compared, vocabulary, apart) if compared else iter(())
    for text in batch:
        if text.parts:
            yield next(pairs if text.rejected else conversations)
        else:
            tokens = next(plain)
            yield np.concatenate([before, tokens, after]) if len(before) or len(after) else tokens, None
