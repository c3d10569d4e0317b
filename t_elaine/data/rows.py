"""The plan of a run's rows: row k is a function of (manifests, weights, seed, k), and of nothing that ran before.

`open_mixture` checks the stores against each other and against the settings. Batches, hosts and devices: `loader.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from t_elaine import paths
from t_elaine.data.filling import Block, Pieces, empty_batch, fill, join
from t_elaine.data.mixture import Mixture, rows_per_batch
from t_elaine.data.order import source_seed
from t_elaine.data.packing import SplitRows, WholeRows
from t_elaine.data.pair_rows import PairRows, lay_reference
from t_elaine.data.remote import LazyTokens, TokenCache
from t_elaine.data.shares import Shares, make_shares
from t_elaine.data.store import open_store
from t_elaine.data.weights import SourceSize, phase_weights
from t_elaine.errors import UserError

Batch = dict[str, np.ndarray]


class StoreLike(Protocol):
    """What the plan needs of `t_elaine.data.store.Store`."""

    @property
    def name(self) -> str: ...
    @property
    def groups(self) -> Sequence[tuple[str, str]]: ...
    @property
    def vocabulary(self) -> Mapping[str, Any]: ...
    @property
    def pairs(self) -> bool: ...
    def batches(self, split: str) -> Sequence[Block]: ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """A store as the plan reads it. first_block: where its blocks begin in the plan's list."""

    name: str
    languages: tuple[str, ...]
    rows: SplitRows | WholeRows
    first_block: int


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """From row `first_row` on. `before` int64 [S]: rows that each source gave until then; `weights`: of the tokens."""

    first_row: int
    before: np.ndarray
    shares: Shares
    weights: tuple[float, ...]
    origin: str


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """All rows of a run.

    Attributes:
        groups: (language, category) pairs that the arrays `groups` of a batch count.
        vocabulary: the stores' common vocabulary.json.
        pairs: the stores hold preferences: rows have the array `reference` too (`pair_rows`).
        reference: float32 [documents, 2] for each block, what that array is filled with; None: zeros.
    """

    mixture: Mixture
    sources: tuple[Source, ...]
    phases: tuple[PhasePlan, ...]
    blocks: Sequence[Block]
    groups: list[tuple[str, str]]
    vocabulary: Mapping[str, Any]
    rows_per_batch: int
    pairs: bool = False
    reference: Sequence[np.ndarray] | None = None

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers int64 [n] → (source int64 [n], which of its rows int64 [n])."""
        source, number = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        starts = np.array([p.first_row for p in self.phases])
        phase = np.searchsorted(starts, rows, side="right") - 1
        for i in np.unique(phase).tolist():
            plan, at = self.phases[i], np.flatnonzero(phase == i)
            source[at], number[at] = plan.shares.assign(rows[at] - plan.first_row)
            number[at] += plan.before[source[at]]
        return source, number

    def counts(self, row: int) -> np.ndarray:
        """Rows that each source gives before row `row`: int64 [S]."""
        plan = next(p for p in reversed(self.phases) if p.first_row <= row)
        return plan.before + plan.shares.counts(row - plan.first_row)

    def pieces(self, rows: np.ndarray) -> Pieces:
        """Pieces of the rows `rows`, the i-th of which stands in row i of a batch."""
        source, number = self.locate(rows)
        found: list[Pieces] = []
        for i in np.unique(source).tolist():
            at = np.flatnonzero(source == i)
            found += self.source_pieces(i, number[at], at)
        return join(found)

    def source_pieces(self, source: int, numbers: np.ndarray, rows: np.ndarray) -> list[Pieces]:
        """Pieces of the rows `numbers` of one source, to stand in rows `rows` of a batch."""
        shift = self.sources[source].first_block
        parts = self.sources[source].rows.pieces(numbers, rows)
        return [replace(part, block=np.where(part.block >= 0, part.block + shift, -1)) for part in parts]

    def rows(self, rows: np.ndarray) -> Batch:
        """The rows `rows` (int64 [n]) as arrays [n, T] (see `filling.fill`)."""
        return self.filled(self.pieces(rows), len(rows))

    def filled(self, pieces: Pieces, count: int) -> Batch:
        """The arrays [count, T] of rows that are made of these pieces."""
        batch = empty_batch(count, self.mixture.sequence_length)
        fill(batch, pieces, self.blocks, pad_id(self.vocabulary))
        if self.pairs:
            lay_reference(batch, pieces, self.reference)
        return batch

    def ask(self, rows: np.ndarray) -> None:
        """Begin to read the tokens of rows that come later, where they lie in an object store."""
        if not self.is_remote:
            return
        pieces = self.pieces(rows)
        columns = (pieces.block.tolist(), pieces.start.tolist(), (pieces.start + pieces.length).tolist())
        for block, start, stop in zip(*columns, strict=True):
            if block >= 0 and isinstance(tokens := self.blocks[block].tokens, LazyTokens):
                tokens.ask(start, stop)

    @property
    def is_remote(self) -> bool:
        """True if any store lies in an object store."""
        return any(paths.is_remote(folder) for folder in self.mixture.stores)

    def row(self, k: int) -> Batch:
        """Row k as arrays [T]."""
        return {name: array[0] for name, array in self.rows(np.array([k])).items()}

    def describe(self, row: int) -> dict[str, Any]:
        """What rows 0 … row-1 hold, computed: tokens, share, epochs by source; tokens by language of the store."""
        counts = self.counts(row)
        tokens = [float(n) * s.rows.tokens_per_row for n, s in zip(counts, self.sources, strict=True)]
        phase = next(p for p in reversed(self.phases) if p.first_row <= row)
        sources, languages = {}, dict[str, float]()
        for i, source in enumerate(self.sources):
            sources[source.name] = {
                "rows": int(counts[i]),
                "tokens": round(tokens[i]),
                "share": tokens[i] / sum(tokens) if row else 0.0,
                "weight": phase.weights[i],
                "epochs": float(counts[i]) / source.rows.rows_per_epoch if source.rows.tokens else 0.0,
                "dropped": source.rows.dropped,
                "truncated": source.rows.truncated,
            }
            language = "+".join(source.languages)
            languages[language] = languages.get(language, 0.0) + tokens[i]
        shares = {k: v / sum(tokens) if row else 0.0 for k, v in languages.items()}
        return {"row": row, "tokens": round(sum(tokens)), "weights_from": phase.origin, "sources": sources} | {
            "languages": shares
        }


def open_mixture(mixture: Mixture) -> RowPlan:
    """Open the stores of a mixture and plan its rows.

    Raises:
        UserError: a store that is missing, of another format or vocabulary; weights that do not fit the stores; a batch
            that is no whole number of rows.
    """
    if not mixture.stores:
        raise UserError("the mixture names no store", "Mixture.stores", "list the folders that prepare wrote")
    cache = TokenCache(int(mixture.cache_gb * 1e9))
    return plan_rows(mixture, [open_store(folder, cache) for folder in mixture.stores])


def plan_rows(mixture: Mixture, stores: Sequence[StoreLike]) -> RowPlan:
    """The plan over stores that are already open (or that a test has made up)."""
    batch_rows = rows_per_batch(mixture)
    check_stores(stores)
    pairs = check_pairs(stores, mixture)
    groups = list(dict.fromkeys((language, category) for s in stores for language, category in s.groups))
    blocks: list[Block] = []
    sources = []
    for store in stores:
        own = store.batches(mixture.split)
        sources.append(
            Source(
                name=store.name,
                languages=tuple(dict.fromkeys(language for language, _ in store.groups)),
                rows=_source_rows(mixture, store, own, groups),
                first_block=len(blocks),
            )
        )
        blocks.extend(own)
    return RowPlan(
        mixture=mixture,
        sources=tuple(sources),
        phases=tuple(_plan_phases(mixture, sources)),
        blocks=blocks,
        groups=groups,
        vocabulary=stores[0].vocabulary,
        rows_per_batch=batch_rows,
        pairs=pairs,
    )


def _source_rows(
    mixture: Mixture, store: StoreLike, blocks: Sequence[Block], groups: list[tuple[str, str]]
) -> SplitRows | WholeRows:
    numbers = np.array([groups.index((language, category)) for language, category in store.groups], np.int32)
    seed, length = source_seed(mixture.seed, store.name), mixture.sequence_length
    if mixture.packing == "whole":
        truncate = mixture.overlong == "truncate"
        kind = PairRows if store.pairs else WholeRows
        return kind(blocks, numbers, seed=seed, length=length, window_tokens=mixture.window_tokens, truncate=truncate)
    return SplitRows(blocks, numbers, seed=seed, length=length, window_tokens=mixture.window_tokens)


def _plan_phases(mixture: Mixture, sources: Sequence[Source]) -> Iterator[PhasePlan]:
    sizes = [
        SourceSize(name=s.name, tokens=s.rows.tokens, languages=s.languages, tokens_per_row=s.rows.tokens_per_row)
        for s in sources
    ]
    before, last = np.zeros(len(sources), np.int64), None
    for first_row, weights, origin in phase_weights(mixture, sizes):
        if last is not None:
            before = last.before + last.shares.counts(first_row - last.first_row)
        # Weights count tokens, shares count rows: a padded row brings fewer tokens.
        by_row = [w / s.rows.tokens_per_row if w else 0.0 for w, s in zip(weights, sources, strict=True)]
        shares = make_shares(by_row, [s.name for s in sources])
        last = PhasePlan(first_row=first_row, before=before, shares=shares, weights=tuple(weights), origin=origin)
        yield last


def check_stores(stores: Sequence[StoreLike]) -> None:
    """Refuse two stores of one name, and stores of different vocabularies."""
    first = stores[0]
    names: set[str] = set()
    for store in stores:
        if store.name in names:
            what = f"two stores are called {store.name!r}"
            raise UserError(what, "Mixture.stores", "name each store once; prepare one of them under another name")
        names.add(store.name)
        if store.vocabulary["sha256"] != first.vocabulary["sha256"]:
            what = (
                f"stores {first.name!r} and {store.name!r} were made with different vocabularies "
                f"(sha256 {first.vocabulary['sha256'][:12]}…, {store.vocabulary['sha256'][:12]}…)"
            )
            raise UserError(what, "Mixture.stores", f"prepare {store.name!r} again with the vocabulary of the model")


def check_pairs(stores: Sequence[StoreLike], mixture: Mixture) -> bool:
    """Whether the stores hold preferences. UserError: only some of them do, or they would be cut into rows."""
    pairs = [store.name for store in stores if store.pairs]
    others = [store.name for store in stores if not store.pairs]
    if pairs and others:
        what = f"store {pairs[0]!r} holds preferences, {others[0]!r} does not"
        raise UserError(what, "Mixture.stores", "train on preferences in a run of their own (dpo.gin)")
    if pairs and mixture.packing != "whole":
        what = f"store {pairs[0]!r} holds preferences, whose two dialogues share a row, undivided"
        raise UserError(f"{what}; packing is {mixture.packing!r}", "Mixture.packing", "give 'whole' (dpo.gin does)")
    return bool(pairs)


def pad_id(vocabulary: Mapping[str, Any]) -> int:
    """Token id that fills padding: the vocabulary's pad, else its end of text, else 0. Never an input that counts."""
    ids = (vocabulary.get("pad"), vocabulary.get("eos"), 0)
    return next(int(i) for i in ids if i is not None)
