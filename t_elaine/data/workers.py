"""Runs the making of stores: shards of all tasks over processes, a progress bar, reports as tables.

Processes are spawned, never forked, and import neither JAX nor settings. One worker works in this process itself.
Whatever can map a function over shards may take the processes' place: data/beam.py does.
"""

import functools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from t_elaine.data import aside, exam_filter, showing
from t_elaine.data import tasks as registry
from t_elaine.data.assembly import Work, holding, plan_work, seal
from t_elaine.data.identity import Making
from t_elaine.data.preparation import Shard, finished, prepare_shard
from t_elaine.data.store import open_store, read_manifest, write_json
from t_elaine.data.texts import Task
from t_elaine.data.uploading import staging_folder, upload_store
from t_elaine.data.vocabulary import Vocabulary
from t_elaine.errors import NO_ROOM, UserError
from t_elaine.paths import is_remote, join, write_text

STAGING = "~/.cache/t-elaine/prepare"
Mapper = Callable[[list[Shard]], Iterator[Shard]]
"""Makes shards and yields each of them when it is finished."""


def prepare_named(
    names: Sequence[str],
    vocabulary: Vocabulary,
    stores: str,
    making: Making,
    *,
    workers: int = 0,
    mapper: Mapper | None = None,
    overwrite: bool = False,
    staging: str = STAGING,
    show: int = 0,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Prepare the tasks behind names of tasks and mixtures, write the mixtures' weights, print the report.

    Stores in an object store are made in the local folder `staging`, stay there, and are then uploaded.

    Raises:
        UserError: as `prepare_stores`; a name that is not known; the object store refuses.
    """
    if workers < 0:
        raise UserError(f"workers is {workers}", "prepare.workers", "give 0 (one for each core) or more")
    if show < 0:
        raise UserError(f"show is {show}", "prepare.show", "give a number of documents, or 0: none")
    found = [registry.find(name) for name in names]
    wanted = {task.name: task for some, _ in found for task in some}
    if not wanted:
        raise UserError("prepare was given no task", "prepare.tasks", 'name tasks or mixtures: ("samples",)')
    console, folder = console or Console(), staging_folder(stores, staging) if is_remote(stores) else Path(stores)
    how: dict[str, Any] = {"workers": workers, "mapper": mapper, "overwrite": overwrite, "console": console}
    manifests = prepare_stores(list(wanted.values()), vocabulary, folder, making, **how)
    for name, (_, weights) in zip(names, found, strict=True):
        if weights is not None:
            path = write_mixture(name, weights, folder)
            console.print(f"weights of {name}: {path}", highlight=False, soft_wrap=True)
    report(manifests, console, folder)
    for task in wanted if show else ():
        showing.show(str(folder / task), show, console)
    repeated = duplicates_between([folder / name for name in wanted]) if len(wanted) > 1 else 0
    if repeated:
        console.print(f"{repeated} documents repeat the text of a document in another store", highlight=False)
    if is_remote(stores):
        say = functools.partial(console.print, highlight=False, soft_wrap=True)
        for task in wanted:
            upload_store(folder / task, join(stores, task), overwrite, say)
        for path in sorted((folder / "mixtures").glob("*.json")):
            write_text(join(stores, "mixtures", path.name), path.read_text(encoding="utf-8"))
        say(f"the stores lie in {stores}; {folder} may be removed")
    return manifests


def prepare_stores(
    tasks: Sequence[Task],
    vocabulary: Vocabulary,
    stores: Path,
    making: Making,
    *,
    workers: int = 0,
    mapper: Mapper | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Make a store for each task in the folder `stores`; what is there already and unchanged is left alone.

    Args:
        workers: processes; 0: one for each core.
        mapper: runs the shards instead of processes of this machine.
        overwrite: make stores anew even where one is there.

    Returns:
        the manifests, in the order of the tasks.

    Raises:
        UserError: what a person can mend; finished shards are kept for the next run.
    """
    console = console or Console()
    with ExitStack() as held:
        for task in tasks:
            held.enter_context(holding(stores, task.name))
        plans = {task.name: plan_work(task, making, vocabulary, stores, overwrite) for task in tasks}
        works = [work for work in plans.values() if work is not None]
        for name, work in plans.items():
            if work is None:
                console.print(f"{name}: up to date, nothing to do", highlight=False)
        if works:
            _make(works, mapper or functools.partial(_map, workers=workers or os.cpu_count() or 1), console)
    return [read_manifest(stores / task.name) for task in tasks]


def _make(works: list[Work], mapper: Mapper, console: Console) -> None:
    waiting = [shard for work in works for shard in work.shards if finished(shard) is None]
    total = sum(len(work.shards) for work in works)
    if len(waiting) < total:
        console.print(f"resumed: {total - len(waiting)} of {total} shards were done before", highlight=False)
    left = {work.task.name: work for work in works}
    try:
        with _progress(console, total, total - len(waiting)) as advance:
            for done in mapper(waiting):
                advance(done)
                _seal_if_complete(left, done.task.name)
            for name in list(left):
                _seal_if_complete(left, name)
    except UserError as error:
        for work in works:
            error = aside.kept(error, work.partial, _aside_file(work))
        raise error
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        mend = "free some space and run the same command again: finished shards are kept, the store there is untouched"
        raise UserError("the disk is full", str(works[0].partial.parent), mend) from error


def _seal_if_complete(left: dict[str, Work], name: str) -> None:
    work = left.get(name)
    if work is None:
        return
    reports = [report for shard in work.shards if (report := finished(shard)) is not None]
    if len(reports) == len(work.shards):
        seal(left.pop(name), reports)
        _aside_file(work).unlink(missing_ok=True)


def _aside_file(work: Work) -> Path:
    """Beside the stores: what was set aside where that was too much for a store to be made."""
    return work.final.with_name(f"{work.task.name}.quarantine.jsonl")


def mapper_of(runner: str, beam_options: Sequence[str]) -> Mapper | None:
    """What runs the shards; None: processes of this machine.

    Raises:
        UserError: there is no such runner, or its package is not installed.
    """
    if runner == "beam":
        from t_elaine.data import beam

        beam.load()  # before the sources are read, which may take long
        return functools.partial(beam.over_beam, options=beam_options)
    if runner != "local":
        raise UserError(
            f"there is no runner {runner!r}",
            "prepare.runner",
            "'local' or 'beam'; Beam's runner is named in beam_options",
        )
    if beam_options:
        raise UserError(
            "Beam's options are given to the local runner", "prepare.beam_options", "prepare.runner = 'beam'"
        )
    return None


def _map(shards: list[Shard], workers: int) -> Iterator[Shard]:
    """Shards as they are finished."""
    if workers == 1 or len(shards) <= 1:
        for shard in shards:
            prepare_shard(shard)
            yield shard
        return
    pool = ProcessPoolExecutor(min(workers, len(shards)), mp_context=get_context("spawn"), initializer=begin_worker)
    try:
        futures = {pool.submit(prepare_shard, shard): shard for shard in shards}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    except (KeyboardInterrupt, GeneratorExit):
        for worker in active_children():
            worker.kill()  # their shards are done again: whoever ends this command does not wait for them
        raise
    except BrokenProcessPool as error:
        mend = "run the same command again, with fewer workers if memory was short: finished shards are kept"
        raise UserError("a worker process was killed", shards[0].folder, mend) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def begin_worker() -> None:
    """Leave Ctrl-C and SIGTERM to the parent, and end with it: an orphan would wait for work for ever."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


@contextmanager
def _progress(console: Console, total: int, done: int) -> Iterator[Any]:
    """A bar with time left on a terminal, else a plain line at most every ten seconds."""
    if console.is_terminal:
        columns = (TextColumn("prepare"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("left  {task.fields[shard]}"), console=console) as bar:
            item = bar.add_task("prepare", total=total, completed=done, shard="")
            yield lambda shard: bar.update(item, advance=1, shard=f"{shard.task.name} {shard.index + 1}/{shard.count}")
        return
    began = told = time.monotonic()
    count = done

    def line(shard: Shard) -> None:
        nonlocal count, told
        count += 1
        now = time.monotonic()
        if now - told >= 10 or count == total:
            told = now
            left = (now - began) / max(count - done, 1) * (total - count)
            print(f"prepare: {count} of {total} shards, about {left:.0f} s left", file=console.file, flush=True)

    yield line


def write_mixture(name: str, weights: dict[str, float], stores: Path) -> Path:
    """STORES/mixtures/<name>.json: the default weights, so that training needs no SeqIO."""
    folder = stores / "mixtures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    write_json(path, {"mixture": name, "weights": weights})
    return path


def duplicates_between(folders: Sequence[Path]) -> int:
    """How many documents of these stores repeat the text of a document of an earlier store."""
    seen = np.zeros(0, np.uint64)
    repeated = 0
    for folder in folders:
        store = open_store(folder)
        found = [b.text_hash for split in ("train", "validation") for b in store.batches(split)]
        hashes = np.concatenate(found or [np.zeros(0, np.uint64)])
        repeated += int(np.isin(hashes, seen).sum())
        seen = np.union1d(seen, hashes)
    return repeated


def report(manifests: Sequence[dict[str, Any]], console: Console, stores: Path) -> None:
    """Print documents, tokens, bytes and bytes per token by language and category, and what was set aside."""
    totals: dict[tuple[str, str], list[int]] = {}
    for count in (count for manifest in manifests for count in manifest["counts"]):
        row = totals.setdefault((count["language"], count["category"]), [0, 0, 0])
        for i, key in enumerate(("documents", "tokens", "bytes")):
            row[i] += count[key]
    table = Table("language", "category")
    for title in ("documents", "tokens", "bytes", "bytes/token"):
        table.add_column(title, justify="right")
    for (language, category), row in sorted(totals.items()):
        table.add_row(language, category, *_figures(row))
    table.add_section()
    table.add_row("all", "", *_figures([sum(column) for column in zip(*totals.values(), strict=True)]))
    console.print(table)
    for manifest in manifests:
        repeated = manifest["duplicates"]
        if lacking := without_held_out(manifest):
            console.print(f"{manifest['name']}: {lacking}", highlight=False)
        if template := manifest["made_by"].get("template"):
            left_out = manifest.get("system_turns_left_out", 0)
            told = f"; {left_out} system turns left out: it has no place for them" if left_out else ""
            console.print(f"{manifest['name']}: chat template {template['name']}{told}", highlight=False)
        if overlapping := exam_filter.told(manifest):
            console.print(f"{manifest['name']}: {overlapping}", highlight=False)
        if reasons := manifest["quarantine"]:
            file = stores / manifest["name"] / "quarantine.jsonl"
            first = f"{manifest['name']}: {sum(reasons.values())} records set aside, in {file}:"
            for line in (first, *(f"  {line}" for line in aside.told(reasons, [file]))):
                console.print(line, highlight=False, markup=False, soft_wrap=True)
        if repeated["texts"]:
            what = "dropped" if repeated["dropped"] else "kept; drop_duplicates=True drops them"
            console.print(f"{manifest['name']}: {repeated['texts']} repeated texts ({what})", highlight=False)


def without_held_out(manifest: dict[str, Any]) -> str:
    """A warning where a share of the texts was to be held out and, in some language, none was; "" else."""
    share = manifest["made_by"]["validation_share"]
    documents: dict[str, Counter[str]] = {}
    for count in manifest["counts"]:
        documents.setdefault(count["language"], Counter())[count["split"]] += count["documents"]
    lacking = [
        f"{name} ({splits.total()} documents)"
        for name, splits in documents.items()
        if splits.total() and not splits["validation"]
    ]
    if not share or not lacking:
        return ""
    return f"warning: validation_share {share} held out no text in {', '.join(lacking)}; a larger share would"


def _figures(row: list[int]) -> list[str]:
    documents, tokens, size = row
    return [f"{documents:,}", f"{tokens:,}", f"{size:,}", f"{size / tokens:.2f}" if tokens else "-"]
