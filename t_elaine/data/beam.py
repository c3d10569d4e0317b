"""Runs the shards of prepare as an Apache Beam pipeline, for a corpus that outgrows one machine.

Each shard is the work of `prepare_shard`, whoever runs it, so stores equal those of the local runner byte for byte, and
either runner goes on with what the other left. Workers must see the sources, the vocabulary and the stores' folder
under the same paths: no file is sent through Beam, and no object store is written to.
"""

import contextlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from t_elaine.data.preparation import Shard, finished, prepare_shard
from t_elaine.data.store import write_json
from t_elaine.errors import NO_ROOM, UserError

# Beam's "DirectRunner" first tries to fetch a program from the network; this is what it falls back to.
IN_PROCESS = "--runner=FnApiRunner"
_FAILURES = "part-*.failed.json"
_SHARED = "the workers must share this folder with this machine under this very path, for instance over NFS"


def load() -> Any:
    """The module apache_beam.

    Raises:
        UserError: it is not installed.
    """
    try:
        import apache_beam
    except ImportError as error:
        mend = "pip install 't-elaine[beam]' (docs/data.md), or prepare.runner = 'local'"
        raise UserError(f"Apache Beam does not import: {error}", "prepare.runner = 'beam'", mend) from error
    return apache_beam


def over_beam(shards: Sequence[Shard], options: Sequence[str] = ()) -> Iterator[Shard]:
    """Make the shards in one Beam pipeline; yield them when it has ended.

    Args:
        options: Beam's own flags, as its documentation writes them; without "--runner=…" all is done in this process.

    Raises:
        UserError: what `prepare_shard` raises; Beam refuses the options; shards are not where they should be.
    """
    if not shards:
        return
    shards = [_absolute(shard) for shard in shards]
    for folder in {shard.folder for shard in shards}:
        for failure in Path(folder).glob(_FAILURES):
            failure.unlink()
    _run(shards, options)
    missing = [shard for shard in shards if finished(shard) is None]
    if missing:
        for path in (shard.path("failed.json") for shard in shards):
            if path.is_file():
                failed = json.loads(path.read_text(encoding="utf-8"))
                raise UserError(failed["what"], failed["where"], failed["mend"])
        what = f"the Beam job has ended, and {len(missing)} of {len(shards)} shards are not there"
        raise UserError(what, missing[0].folder, _SHARED)
    yield from shards


def _absolute(shard: Shard) -> Shard:
    """Workers have another working folder. Files of sources stay as written: the quarantine names them so."""
    return replace(shard, folder=os.path.abspath(shard.folder), vocabulary=os.path.abspath(shard.vocabulary))


def _run(shards: Sequence[Shard], options: Sequence[str]) -> None:
    beam = load()
    pipeline = _pipeline(beam, options)
    # Reshuffle keeps the runner from giving all shards to one worker.
    made = pipeline | "Shards" >> beam.Create(shards) | "Spread" >> beam.Reshuffle()
    _ = made | "Prepare" >> beam.Map(prepare_apart)
    state = pipeline.run().wait_until_finish()
    if state != beam.runners.runner.PipelineState.DONE:
        mend = "look at the runner's own log; run the same command again: finished shards are kept"
        raise UserError(f"the Beam job ended as {state}", shards[0].folder, mend)


def _pipeline(beam: Any, options: Sequence[str]) -> Any:
    given = list(options)
    if not any(option.startswith("--runner") for option in given):
        given.append(IN_PROCESS)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):  # argparse prints its whole usage there, and exits
            parsed = beam.options.pipeline_options.PipelineOptions(given)
            parsed.get_all_options()
            return beam.Pipeline(options=parsed)
    except (ValueError, SystemExit) as error:
        why = (told.getvalue().strip().splitlines() or [str(error)])[-1]
        mend = "Beam's own flags, as in ('--runner=FlinkRunner', '--flink_master=localhost:8081')"
        raise UserError(f"Beam refuses its options: {why}", f"prepare.beam_options = {tuple(options)}", mend) from error


def prepare_apart(shard: Shard) -> int:
    """Make a shard in a folder of its own, then move it to its place, the report last; returns the shard's index.

    Beam may run an element again while an earlier attempt is still at work, on another machine too, where process ids
    repeat. Whole files of equal content take each other's place at any moment, so attempts do not disturb each other.

    A `UserError` is written beside the shards instead of raised: Beam would try again, and show a person a traceback.
    Shards that begin after it are left out.
    """
    folder = Path(shard.folder)
    if finished(shard) is not None or any(folder.glob(_FAILURES)):
        return shard.index
    apart = replace(shard, folder=str(folder / f".attempt-{uuid.uuid4().hex}.tmp"))
    try:
        os.mkdir(apart.folder)
    except FileNotFoundError as error:
        raise UserError("the stores' folder is not on this worker", shard.folder, _SHARED) from error
    try:
        report = prepare_shard(apart)
        for kind in [*(f"{split}.arrow" for split in report["sha256"]), "quarantine.jsonl", "report.json"]:
            os.replace(apart.path(kind), shard.path(kind))
    except UserError as error:
        _give_up(shard, apart, error)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        mend = "free some space and run the same command again: finished shards are kept, the store there is untouched"
        _give_up(shard, apart, UserError("the disk is full", shard.folder, mend))
    finally:
        shutil.rmtree(apart.folder, ignore_errors=True)
    return shard.index


def _give_up(shard: Shard, apart: Shard, error: UserError) -> None:
    """Keep the message for the command, and the quarantine that it may name."""
    where = error.where.replace(apart.folder, shard.folder)
    message = apart.path("failed.json")
    for path in Path(apart.folder).glob("*.arrow"):
        path.unlink()  # on a full disk it makes room for the message
    write_json(message, {"what": error.what, "where": where, "mend": error.mend})
    for kind in ("quarantine.jsonl", "failed.json"):
        if apart.path(kind).is_file():
            os.replace(apart.path(kind), shard.path(kind))
