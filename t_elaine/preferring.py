"""The start's log-probabilities of every pair, computed once and kept in the run's folder; pairs held out.

A part of `assembly`: it joins pairs (data) to the step (training). The objective itself: `training/preference.py`.
"""

import dataclasses
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from t_elaine import paths
from t_elaine.checkpoints import adapters, layout
from t_elaine.data.loader import Loader
from t_elaine.data.pair_sets import PairSet, pair_sets
from t_elaine.data.rows import RowPlan
from t_elaine.data.store import Store, open_store
from t_elaine.errors import UserError
from t_elaine.model.lora import Lora
from t_elaine.parallel import agreement
from t_elaine.training import run_folder
from t_elaine.training.held_out import globally
from t_elaine.training.metrics import Record, by_group
from t_elaine.training.preference import Preference, losses, pair_figures
from t_elaine.training.start import Begun, Start
from t_elaine.training.step import Step, weights

if TYPE_CHECKING:
    from t_elaine.assembly import Run

FILE, RECORD = "reference.npz", "record"
Say = Callable[[str], None]
SAY_EVERY = 10.0  # seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """Pairs that are held out. reference: float32 [documents, 2] of each set."""

    sets: list[PairSet]
    reference: list[np.ndarray]


def check(preference: Preference | None, plan: RowPlan, start: Start | None, lora: Lora | None, z_loss: float) -> None:
    """Refuse stores that are not for the objective, and settings that have no meaning beside it."""
    names = ", ".join(source.name for source in plan.sources)
    if preference is None:
        if plan.pairs:
            what = f"{names}: stores of preferences, and the run learns from every trained token"
            raise UserError(what, "train.preference", "give dpo.gin, or train.preference = @Preference()")
        return
    if not plan.pairs:
        what = f"{names}: documents or conversations, and the run learns from preferences"
        raise UserError(
            what, "Mixture.stores", "prepare a task whose preprocessor is `preferences` (docs/preferences.md)"
        )
    if start is None or (start.checkpoint is None and start.adapter is None):
        mend = "give Start.checkpoint: an imported model or a run"
        raise UserError("preferences are learned by comparison with the start, and there is none", "Start", mend)
    if lora is not None and lora.dropout:
        what = f"dropout is {lora.dropout}: an answer would be compared with what other adapters give it"
        raise UserError(what, "Lora.dropout", "give 0.0")
    if z_loss:
        raise UserError(f"z_loss is {z_loss}, which a loss over pairs does not have", "train.z_loss", "give 0.0")


def with_reference(run: "Run", begun: Begun, start: Start | None, say: Say) -> "Run":
    """The run with the start's sums in its batches, and its held-out pairs; read from its folder, or computed now.

    Raises:
        UserError: the file in the folder is another start's or other stores', is damaged, or is gone.
    """
    if run.preference is None or begun.step >= run.loop.steps:
        return run
    stores = [open_store(folder) for folder in run.data.stores]
    trained = pair_sets(stores, run.data, run.groups, run.data.split)
    held = pair_sets(stores, run.data, run.groups, "validation") if run.data.split != "validation" else []
    path, wanted = paths.join(run.folder, FILE), identity(run, begun, start, stores)
    there = agreement.from_main("there" if paths.exists(path) else "") == "there"
    if there:
        tables = read(path, wanted, [*trained, *held])
        say(f"the start's log-probabilities of {sum(map(len, tables)):,} pairs: read from {path}")
    elif begun.resumed:
        mend = "put it back, or begin another RUN_DIR: the weights of a run that has begun are not its start's"
        raise UserError("the start's log-probabilities are gone", path, mend)
    else:
        tables = compute(run, begun, [*trained, *held], say)
        if run_folder.is_main():
            write(path, wanted, [*trained, *held], tables)
        agreement.wait_for_all("reference")
    plan = dataclasses.replace(run.feed.loader.plan, reference=_by_block(run.feed.loader.plan, trained, tables))
    loader = Loader(plan, run.feed.shape[0], run.feed.shape[1], run.feed.slots)
    judged = Judged(sets=held, reference=tables[len(trained) :])
    return dataclasses.replace(run, feed=dataclasses.replace(run.feed, loader=loader), judged=judged)


def _by_block(plan: RowPlan, sets: list[PairSet], tables: list[np.ndarray]) -> list[np.ndarray]:
    """Tables of the stores → one for each of the plan's blocks."""
    named = {found.store: table for found, table in zip(sets, tables, strict=False)}
    parts: list[np.ndarray] = []
    for source, after in zip(plan.sources, [*(s.first_block for s in plan.sources[1:]), len(plan.blocks)], strict=True):
        blocks = plan.blocks[source.first_block : after]
        cuts = np.cumsum([len(block.offsets) - 1 for block in blocks])[:-1]
        parts += np.split(named[source.name], cuts) if blocks else []
    return parts


def identity(run: "Run", begun: Begun, start: Start | None, stores: list[Store]) -> dict[str, Any]:
    """What the sums hang on. `parent` is None where it can no more be told: a run that goes on does without it."""
    shards = {store.name: json.dumps(sorted(store.digests().items())) for store in stores}
    return {
        "parent": _parent(begun, start),
        "stores": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in shards.items()},
        "sequence_length": run.data.sequence_length,
        "overlong": run.data.overlong,
        "dtype": run.compute.dtype,
    }


def _parent(begun: Begun, start: Start | None) -> str | None:
    """The fingerprint of what a run starts from: a model, or a base as it is kept with adapters beside it."""
    try:
        if begun.adapter is None:
            return adapters.fingerprint(*layout.resolve(str(begun.parent)))
        if begun.resumed:
            return None  # its base has been compared, and today's Start is not what it began with
        taken = start.adapter if start else None
        own = adapters.fingerprint(*layout.resolve(taken)) if taken else ""
    except UserError:
        if not begun.resumed:
            raise
        return None
    parts = [begun.adapter["fingerprint"], begun.adapter["lora"]["base"], own]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def compute(run: "Run", begun: Begun, sets: list[PairSet], say: Say) -> list[np.ndarray]:
    """float32 [documents, 2] of each set: the log-probability of both answers; NaN for pairs that are left out."""
    rows, done, said = sum(found.count for found in sets), 0, time.perf_counter()
    begin, tables = said, []
    say(f"the start's log-probabilities of {sum(len(found.group) for found in sets):,} pairs, in {rows:,} rows")
    for found in sets:

        def tell(count: int) -> None:
            nonlocal done, said
            done, now = done + count, time.perf_counter()
            if now - said > SAY_EVERY:
                said = now
                say(f"  {done:,} of {rows:,} rows, {(now - begin) / done * (rows - done):.0f} s left")

        tables.append(sums_of(run.step, weights(begun.state), found, run.feed.shape[1], tell=tell))
    say(f"  done in {time.perf_counter() - begin:.1f} s")
    return tables


def sums_of(
    step: Step,
    held: Any,
    found: PairSet,
    rows_at_once: int,
    most: int = 2**62,
    tell: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """What a model gives each pair's answers: float32 [documents, 2]; NaN for pairs that are not in the first rows."""
    where = NamedSharding(step.batch_sharding.mesh, PartitionSpec(*step.batch_sharding.spec[1:]))
    table = np.full((len(found.group), 2), np.nan, np.float32)
    for batch, pieces in found.batches(rows_at_once, most):
        on_devices = {name: globally(array, where) for name, array in batch.items()}
        given = np.asarray(step.answers(held, on_devices))
        found.by_document(np.where(np.isnan(given), -np.inf, given), pieces, table)
        tell(int(pieces.row.max()) + 1)
    return table


def write(path: str, record: Mapping[str, Any], sets: list[PairSet], tables: list[np.ndarray]) -> None:
    """Keep the tables, whole or not at all."""
    held: dict[str, Any] = {f"table{i}": table for i, table in enumerate(tables)}
    told = json.dumps({**record, "sets": [found.store for found in sets]}).encode()
    buffer = io.BytesIO()
    np.savez(buffer, **(held | {RECORD: np.frombuffer(told, np.uint8)}))
    paths.write_bytes(path, buffer.getvalue())


def read(path: str, wanted: Mapping[str, Any], sets: list[PairSet]) -> list[np.ndarray]:
    """The tables that are kept, if they are this start's and these stores'.

    Raises:
        UserError: they are not; both fingerprints are named. Or the file is damaged.
    """
    try:
        with paths.open_file(path) as handle, np.load(io.BytesIO(handle.read()), allow_pickle=False) as found:
            record = json.loads(found[RECORD].tobytes())
            tables = [found[f"table{i}"] for i in range(len(sets))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        mend = "remove it if the run has no checkpoint yet, else put a copy back"
        raise UserError(f"the start's log-probabilities cannot be read: {error}", path, mend) from error
    names = [name for name in ("parent", "stores", "sequence_length", "overlong") if wanted[name] is not None]
    differ = [
        f"{name}: {record.get(name)} there, {wanted[name]} here" for name in names if record.get(name) != wanted[name]
    ]
    if differ or [len(table) for table in tables] != [len(found.group) for found in sets]:
        mend = "take another RUN_DIR; or, if this run has no checkpoint yet, remove the file"
        raise UserError(f"these are the log-probabilities of another start: {'; '.join(differ)}", path, mend)
    return tables


def held_out(run: "Run", say: Say) -> Callable[[Any], Record] | None:
    """Evaluator of the held-out pairs: loss, rewards, margin and accuracy by language and category."""
    judged, preference = run.judged, run.preference
    if judged is None or preference is None or not run.loop.evaluate_tokens:
        return None
    if not judged.sets:
        say("warning: no store has held-out pairs; prepare with a larger validation_share")
        return None
    rows = max(1, run.loop.evaluate_tokens * len(run.groups) // run.data.sequence_length)

    def figures(params: Any) -> Record:
        total = np.zeros((7, len(run.groups)))
        for found, reference in zip(judged.sets, judged.reference, strict=True):
            table = sums_of(run.step, params, found, run.feed.shape[1], rows)
            total += pair_sums(preference, table, reference, found, len(run.groups))
        return by_group(total, run.groups, pair_figures)

    return figures


def pair_sums(
    preference: Preference, table: np.ndarray, reference: np.ndarray, found: PairSet, groups: int
) -> np.ndarray:
    """`PAIR_SUMS` [7,G], float64, of the pairs whose sums are there."""
    there = ~np.isnan(table).any(axis=1)
    table, reference, tokens = table[there].astype(np.float64), reference[there], found.tokens[there]
    rewards = preference.beta * (table - reference)
    nll, share = -table[:, 0], len(table) / max(1, tokens.sum())
    loss = np.asarray(losses(preference, rewards[:, 0] - rewards[:, 1])[0]) + preference.rpo_alpha * share * nll
    right, ones = rewards[:, 0] > rewards[:, 1], np.ones(len(table))
    values = np.stack([loss, rewards[:, 0], rewards[:, 1], right, ones, nll, tokens])
    sums = np.zeros((len(values), groups))
    np.add.at(sums.T, found.group[there], values.T)
    return sums
