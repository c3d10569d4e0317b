"""From a task to a whole store: what is to be made, whether it is made already, and how finished shards become a store.

Work goes on in `.<name>.partial` beside the store and is renamed when its manifest is written, so a reader never meets
half a store and the old one stays until the new one is whole. Shards themselves are made in data/preparation.py.
"""

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine import paths
from t_elaine.data import aside, exam_filter
from t_elaine.data.chat_choice import checked, choose
from t_elaine.data.identity import Making, known_digests, made_by, same_or_refuse, without_times
from t_elaine.data.preparation import Shard, labels, plan_pieces
from t_elaine.data.sources import check_source
from t_elaine.data.store import (
    MANIFEST,
    DocBatch,
    Row,
    ShardWriter,
    read_manifest,
    read_shard,
    write_json,
    write_manifest,
)
from t_elaine.data.texts import Task
from t_elaine.data.vocabulary import Vocabulary, save_vocabulary
from t_elaine.errors import UserError
from t_elaine.faults import fault_point


@dataclass(frozen=True, kw_only=True)
class Work:
    """A store in the making: `final` is its folder, `partial` where the work goes on, `made_by` its identity."""

    task: Task
    making: Making
    vocabulary: Vocabulary
    final: Path
    partial: Path
    made_by: dict[str, Any]
    shards: tuple[Shard, ...]


def plan_work(task: Task, making: Making, vocabulary: Vocabulary, stores: Path, overwrite: bool) -> Work | None:
    """Decide what is to be done for a task; None: the store is there, whole, and of this very making.

    The caller is `holding` the store.

    Raises:
        UserError: the store there is of another making (the difference is printed), a source lacks a licence, or a
            setting is wrong.
    """
    for source in task.sources:
        check_source(source, making.allowed_licences)
    if not 0 <= making.validation_share < 1 or not 0 <= making.max_rejected_share <= 1:
        raise UserError("shares lie between 0 and 1", "prepare.validation_share, max_rejected_share", "0.01 is 1 %")
    if making.shards < 0:
        raise UserError(f"shards is {making.shards}", "prepare.shards", "give a number of shards, or 0: by size")
    if making.template and task.preprocessors:  # not asked for, it may be bad where there are no conversations
        checked(making.template, vocabulary)
    final, partial = stores / task.name, stores / f".{task.name}.partial"
    _finish_commit(final, partial)
    pieces = plan_pieces(task, making.data_root, making.shards)
    identity = made_by(task, making, vocabulary, pieces, known_digests(final, partial))
    if final.is_dir() and not overwrite:
        same_or_refuse(read_manifest(final)["made_by"], identity, final)
        return None
    _begin(partial, identity)
    shards = tuple(_shard(task, making, vocabulary, partial, i, len(pieces), part) for i, part in enumerate(pieces))
    return Work(
        task=task,
        making=making,
        vocabulary=vocabulary,
        final=final,
        partial=partial,
        made_by=identity,
        shards=shards,
    )


@contextmanager
def holding(stores: Path, name: str) -> Iterator[None]:
    """Keep other processes from this store; the kernel lets go when the process ends, however it ends."""
    paths.make_folder(stores)
    path = stores / f".{name}.lock"
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed the file between our two calls.
            if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError) as error:
            raise UserError(f"another prepare is at work on {name}", str(stores), "wait until it ends") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _shard(
    task: Task, making: Making, vocabulary: Vocabulary, partial: Path, index: int, count: int, pieces: Any
) -> Shard:
    return Shard(
        task=task,
        index=index,
        count=count,
        pieces=pieces,
        folder=str(partial),
        vocabulary=str(vocabulary.path),
        vocabulary_sha256=vocabulary.sha256,
        before=tuple(vocabulary.special_id(name) for name in making.before),
        after=tuple(vocabulary.special_id(name) for name in making.after),
        validation_share=making.validation_share,
        max_rejected_share=making.max_rejected_share,
        exams=making.exams,
        template=making.template,
    )


def _begin(partial: Path, identity: dict[str, Any]) -> None:
    """Go on with the work of an earlier run of this very making, else start anew."""
    path = partial / "made_by.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != without_times(identity):
        print(f"{partial.name}: unfinished work for other settings or sources is thrown away")
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    _clear(partial.glob(".*.tmp"))
    write_json(partial / "sources.json", identity["files"])
    write_json(path, without_times(identity))


# --- sealing


def seal(work: Work, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """All shards are made: settle duplicates, gather validation and quarantine, write the manifest, give the name.

    Returns:
        the manifest.
    """
    reasons: Counter[str] = Counter()
    for report in reports:
        reasons.update(report["rejected"])
    documents = sum(report["documents"] for report in reports)
    systems = sum(report.get("system_turns_left_out", 0) for report in reports)
    if reasons.total() > work.making.max_rejected_share * (documents + reasons.total()):
        raise aside.too_many(documents, reasons, work.making.max_rejected_share, str(work.partial / aside.FILES))
    if not documents:
        raise UserError(f"task {work.task.name!r} yields no document", str(work.partial), "look at its sources")
    pairs = sum(report.get("pairs", 0) for report in reports)
    if pairs not in (0, documents):
        what = (
            f"of the {documents} documents of task {work.task.name!r}, {pairs} are preferences and the others are not"
        )
        raise UserError(what, str(work.partial), "make a task of each kind: they are trained by different runs")
    keep, duplicates = _duplicates(work)
    groups = sorted({(s.language, s.category) for s in work.task.sources})
    files = [*_train_files(work, keep, reports), *_validation_file(work, keep)]
    _join_quarantine(work)
    save_vocabulary(work.vocabulary, work.partial / "vocabulary")
    shards = [_entry(path, split, digest) for path, split, digest in files]
    manifest = {
        "name": work.task.name,
        "groups": groups,
        "vocabulary": work.vocabulary.describe(),
        "framing": {**work.made_by["framing"], "ids": [list(work.shards[0].before), list(work.shards[0].after)]},
        "licences": {s.name: {"licence": s.licence, "url": s.url, "private": s.private} for s in work.task.sources},
        "counts": _counts([path for path, _, _ in files], groups, {p: split for p, split, _ in files}),
        "duplicates": {"texts": duplicates, "dropped": work.making.drop_duplicates},
        "quarantine": dict(sorted(reasons.items())),
        **({"pairs": True} if pairs else {}),
        **_template_source(work),
        **({"system_turns_left_out": systems} if systems else {}),
        **({"exam_overlap": exam_filter.total(reports, work.making.exams)} if work.making.exams else {}),
        "shards": shards,
        "files": _other_digests(work.partial),
        "made_by": without_times(work.made_by),
    }
    fault_point("prepare.before_marker")
    write_manifest(work.partial, manifest)
    fault_point("prepare.after_marker")
    _finish_commit(work.final, work.partial)
    return read_manifest(work.final)


def _template_source(work: Work) -> dict[str, str]:
    """Of a template in a file its source, which is nowhere else when the model is asked or exported."""
    given = work.making.template
    named = "template" in work.made_by and given.endswith(".jinja")
    return {"chat_template": choose(given, work.vocabulary).source} if named else {}


def _parts(work: Work, split: str) -> list[Path]:
    return [path for shard in work.shards if (path := shard.path(f"{split}.arrow")).is_file()]


def _duplicates(work: Work) -> tuple[dict[Path, np.ndarray], int]:
    """Which documents to keep, by shard file, and how many repeat the text of an earlier one (by its 64-bit hash)."""
    paths = [path for split in ("train", "validation") for path in _parts(work, split)]
    hashes = [np.concatenate([b.text_hash for b in read_shard(path, [])] or [np.zeros(0, np.uint64)]) for path in paths]
    joined = np.concatenate(hashes)
    first = np.zeros(len(joined), bool)
    first[np.unique(joined, return_index=True)[1]] = True
    keep = first if work.making.drop_duplicates else np.ones(len(joined), bool)
    ends = np.cumsum([len(h) for h in hashes])[:-1]
    return dict(zip(paths, np.split(keep, ends), strict=True)), int((~first).sum())


def _train_files(
    work: Work, keep: dict[Path, np.ndarray], reports: list[dict[str, Any]]
) -> list[tuple[Path, str, str]]:
    files = []
    for shard, report in zip(work.shards, reports, strict=True):
        part = shard.path("train.arrow")
        path = work.partial / f"train-{shard.index:05d}-of-{shard.count:05d}.arrow"
        path.unlink(missing_ok=True)
        if keep[part].all():
            _link(part, path)
            files.append((path, "train", report["sha256"]["train"]))
        else:
            _copy_rows([part], path, work, keep)
            files.append((path, "train", paths.file_sha256(path)))
    return files


def _link(part: Path, path: Path) -> None:
    try:
        os.link(part, path)
    except OSError:  # a file system without hard links
        shutil.copyfile(part, path)


def _validation_file(work: Work, keep: dict[Path, np.ndarray]) -> list[tuple[Path, str, str]]:
    if not work.making.validation_share:
        return []
    path = work.partial / "validation-00000-of-00001.arrow"
    _copy_rows(_parts(work, "validation"), path, work, keep)
    return [(path, "validation", paths.file_sha256(path))]


def _copy_rows(parts: list[Path], path: Path, work: Work, keep: dict[Path, np.ndarray]) -> None:
    groups = sorted({(s.language, s.category) for s in work.task.sources})
    with ShardWriter(path, labels(work.task)) as writer:
        for part in parts:
            place = 0
            for batch in read_shard(part, groups):
                for row in _rows(batch, np.flatnonzero(keep[part][place : place + batch.docs]), groups):
                    writer.add(row)
                place += batch.docs
        writer.close()


def _rows(batch: DocBatch, indices: np.ndarray, groups: list[tuple[str, str]]) -> Iterator[Row]:
    ids, sources = batch.ids(), batch.sources()
    for i in indices.tolist():
        language, category = groups[batch.group[i]]
        yield Row(
            tokens=batch.tokens[batch.offsets[i] : batch.offsets[i + 1]],
            id=ids[i],
            language=language,
            category=category,
            source=sources[i],
            bytes=int(batch.bytes[i]),
            text_hash=int(batch.text_hash[i]),
            trained=batch.spans(i),
        )


def _join_quarantine(work: Work) -> None:
    with open(work.partial / "quarantine.jsonl", "wb") as whole:
        for shard in work.shards:
            with open(shard.path("quarantine.jsonl"), "rb") as part:
                shutil.copyfileobj(part, whole)
        whole.flush()
        os.fsync(whole.fileno())


def _entry(path: Path, split: str, digest: str) -> dict[str, Any]:
    batches = list(read_shard(path, []))
    return {
        "file": path.name,
        "split": split,
        "size": path.stat().st_size,
        "sha256": digest,
        "documents": sum(b.docs for b in batches),
        "tokens": sum(len(b.tokens) for b in batches),
    }


def _counts(files: list[Path], groups: list[tuple[str, str]], splits: dict[Path, str]) -> list[dict[str, Any]]:
    """Documents, tokens (framing included) and bytes by split, language and category, counted in the files."""
    totals = {split: np.zeros((len(groups), 3), np.int64) for split in splits.values()}
    for path in files:
        for batch in read_shard(path, groups):
            table = totals[splits[path]]
            np.add.at(table[:, 0], batch.group, 1)
            np.add.at(table[:, 1], batch.group, np.diff(batch.offsets))
            np.add.at(table[:, 2], batch.group, batch.bytes)
    return [
        {"split": split, "language": a, "category": b, "documents": int(d), "tokens": int(t), "bytes": int(n)}
        for split, table in totals.items()
        for (a, b), (d, t, n) in zip(groups, table, strict=True)
    ]


def _other_digests(folder: Path) -> dict[str, str]:
    files = [folder / "quarantine.jsonl", *sorted((folder / "vocabulary").iterdir())]
    return {str(path.relative_to(folder)): paths.file_sha256(path) for path in files}


def _clear(leftovers: Iterable[Path]) -> None:
    """Remove files, and folders in which a shard was made apart."""
    for leftover in list(leftovers):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _finish_commit(final: Path, partial: Path) -> None:
    """If `partial` is a whole store, clear it of parts and give it its name; the store before it goes last."""
    old = final.with_name(f".{final.name}.old")
    if (partial / MANIFEST).is_file():
        _clear([*partial.glob("part-*"), *partial.glob(".*.tmp"), partial / "made_by.json"])
        if final.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(final, old)
            fault_point("prepare.between_renames")
        os.rename(partial, final)
    if final.is_dir():
        shutil.rmtree(old, ignore_errors=True)
