"""What a run reads, opened and checked: batches for the loop, fixed rows for the evaluators, digests for the record.

The data's side of `assembly`; it knows no optimizer and no loop.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t_elaine import columns, paths
from t_elaine.data import loader as loading
from t_elaine.data.mixture import Mixture, accumulation
from t_elaine.data.rows import RowPlan
from t_elaine.data.store import MANIFEST, Store, open_store, verify_stores
from t_elaine.data.validation import validation_rows
from t_elaine.errors import UserError
from t_elaine.parallel import agreement, sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """An opened mixture.

    Args:
        loader: batches of this host by step.
        shape: (A, B, T) of the global batch.
        sharding: of a global batch.
        slots: rows of B that this host holds.
        byte_lengths: int32 [V], 0 for special tokens and for ids beyond the vocabulary.
        vocabulary_sha256: of the stores.
    """

    loader: loading.Loader
    shape: tuple[int, int, int]
    sharding: Any
    slots: tuple[int, ...]
    byte_lengths: np.ndarray
    vocabulary_sha256: str

    def batches(self, first: int, last: int, ahead: int = 2) -> Generator[Any, None, None]:
        """Global batches of steps first … last-1 on the devices, made and copied up to `ahead` steps before their turn.

        The copy is made in the thread too: the loop itself then moves nothing between host and devices.
        """

        def make(step: int) -> Any:
            return loading.place(self.loader.batch(step), self.sharding, self.shape[1], self.slots)

        return loading.prefetch(make, first, last, ahead)


def open_feed(
    data: Mixture, rows_per_device: int, sharding: Any, vocab_size: int, verify: bool, say: Callable[[str], None]
) -> Feed:
    """Open stores and plan the rows for a mesh.

    Args:
        data: settings.
        rows_per_device: rows of a microbatch on one device.
        sharding: of a global batch [A,B,T]; its mesh says how many ways rows and sequences are cut.
        vocab_size: V of the model.
        verify: compare all files of the stores with their digests.
        say: takes messages.

    Raises:
        UserError: a store is missing, damaged or of another vocabulary; a batch does not divide.
    """
    shape = batch_shape(data, rows_per_device, sharding.mesh.shape)
    if data.conversations:
        check_conversations(data, say)
    plan = loading.open_mixture(data)
    if verify:
        compare(data.stores, say)
    size = int(plan.vocabulary["size"])
    if size > vocab_size:
        what = f"the stores' vocabulary has {size} ids, the model {vocab_size}"
        raise UserError(what, "LlamaConfig.vocab_size", "prepare the stores again with the model's own tokenizer")
    slots = loading.slots_of(sharding, shape)
    say(columns.wrapped(f"batch [A={shape[0]}, B={shape[1]}, T={shape[2]}]; shares of the tokens {_shares(plan)}"))
    for phase in () if data.priority else plan.phases[1:]:
        say(
            columns.wrapped(
                f"from token {phase.first_row * data.sequence_length:,} on: {_weights(plan, phase.weights)}"
            )
        )
    return Feed(
        loader=loading.Loader(plan, shape[0], shape[1], slots),
        shape=shape,
        sharding=sharding,
        slots=slots,
        byte_lengths=byte_lengths(data.stores[0], vocab_size),
        vocabulary_sha256=str(plan.vocabulary["sha256"]),
    )


def check_conversations(data: Mixture, say: Callable[[str], None] = print) -> None:
    """Refuse stores of plain documents alone; where they stand beside conversations (replay), name them.

    Raises:
        UserError: no store says which of its tokens are trained, or examples would be cut over rows.
    """
    plain = [store.name for store in map(open_store, data.stores) if not has_spans(store)]
    if data.packing != "whole":
        what = f"packing is {data.packing!r}, and the settings (sft.gin) are for conversations, which are trained whole"
        raise UserError(what, "Mixture.packing", "leave it at 'whole', or Mixture.conversations = False")
    if len(plain) == len(data.stores):
        what = f"{', '.join(plain)}: documents, and the settings (sft.gin) are for conversations"
        mend = "text: cpt.gin, or Mixture.conversations = False; conversations: prepare them as docs/chat.md says"
        raise UserError(what, "Mixture.stores", mend)
    if plain:
        say(
            columns.wrapped(
                f"warning: no conversations in {', '.join(plain)}: every token of their documents is trained"
            )
        )


def _shares(plan: RowPlan) -> str:
    return f"(from {plan.phases[0].origin}): {_weights(plan, plan.phases[0].weights)}"


def _weights(plan: RowPlan, weights: Sequence[float]) -> str:
    return ", ".join(f"{source.name} {weight:.3f}" for source, weight in zip(plan.sources, weights, strict=True))


def compare(folders: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Compare the stores' files with their digests. Hosts that see the very same files share the reading.

    A host that finds a damaged one tells the others as it ends (`parallel.line`), before any of them trains.

    Raises:
        UserError: a file is damaged or missing.
    """
    for folder in filter(paths.is_remote, folders):
        say(f"{folder} is compared by the sizes of its files alone: their digests would take reading it whole")
    local = [folder for folder in folders if not paths.is_remote(folder)]
    # A copy on a host's own disk has another inode or another time of its last change.
    seen = [os.stat(paths.join(folder, name)) for folder in local for name in open_store(folder).digests()]
    text = json.dumps([(file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns) for file in seen])
    shared = not agreement.unlike_main(text)
    verify_stores(local, share=(jax.process_index(), jax.process_count()) if shared else (0, 1))


def batch_shape(data: Mixture, rows_per_device: int, axes: Mapping[str, int]) -> tuple[int, int, int]:
    """(A, B, T) of the global batch.

    Args:
        data: settings; no store is opened.
        rows_per_device: rows of a microbatch on one device.
        axes: mesh axis → devices along it.

    Raises:
        UserError: a batch or a row does not divide.
    """
    ways = math.prod(axes[name] for name in sharding.RULES["batch"])
    if data.sequence_length % axes["context"]:
        what = f"sequence_length {data.sequence_length} does not divide by MeshConfig.context = {axes['context']}"
        raise UserError(what, "Mixture.sequence_length, MeshConfig.context", "make one a multiple of the other")
    return accumulation(data, rows_per_device, ways), ways * rows_per_device, data.sequence_length


def byte_lengths(store: str, vocab_size: int) -> np.ndarray:
    """int32 [V]: UTF-8 bytes of each token from the store's vocabulary, 0 beyond its end."""
    path = paths.join(store, "vocabulary", "byte_lengths.npy")
    try:
        with paths.open_file(path) as handle:
            found = np.load(io.BytesIO(handle.read()), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"the token lengths cannot be read: {error}", path, "prepare the store again") from error
    return np.pad(found.astype(np.int32), (0, vocab_size - len(found)))


def held_out_rows(
    data: Mixture, groups: Sequence[tuple[str, str]], tokens: int, say: Callable[[str], None] = print
) -> list[dict[str, np.ndarray]]:
    """Rows [N,T] of the stores' validation split, at most `tokens` of each store and group (but one row); may be empty.

    A document longer than that is read only so far: one long paper must not take the time of a hundred steps. Stores
    without held-out text are named through `say`: else a run's page would lack them without a word.
    """
    if not tokens:
        return []
    stores = [open_store(folder) for folder in data.stores]
    sets = list(validation_rows(stores, data.sequence_length, groups, max_tokens=tokens))
    lacking = [store.name for store in stores if store.name not in {found.store for found in sets}]
    if lacking:
        what = "no store has held-out text" if not sets else f"no held-out text in {', '.join(lacking)}"
        line = f"warning: {what}, so its loss is not measured while training; prepare with a larger validation_share"
        say(columns.wrapped(line))
    most = max(1, tokens // data.sequence_length)
    return [{name: array[:most] for name, array in found.rows.items()} for found in sets]


def data_record(data: Mixture) -> dict[str, Any]:
    """What the stores are, by name: folder, sha256 of the manifest, vocabulary, shards with their sha256.

    And what an export says of them where the stores are no more: framing, sources with their licences, training tokens
    by language and category.
    """
    record = {}
    for folder in data.stores:
        store = open_store(folder)
        record[store.name] = {
            "folder": os.fspath(folder),
            "manifest_sha256": paths.file_sha256(paths.join(folder, MANIFEST)),
            "vocabulary_sha256": store.vocabulary["sha256"],
            "shards": store.digests(),
            **origin(store.manifest),
            **_template(store),
        }
    return record


def _template(store: Store) -> dict[str, Any]:
    """{"template": {"name", "sha256"}} of a store of conversations: what the model will know questions by.

    Of a .jinja file `source` too: nobody else has it.
    """
    found = store.manifest.get("made_by", {}).get("template")
    if not found or not has_spans(store):
        return {}
    source = store.manifest.get("chat_template")
    return {"template": {**found, "source": source} if source else found}


def has_spans(store: Store) -> bool:
    """Whether a store says which of its tokens are trained, as one of conversations does."""
    first = next(iter(store.batches("train")), None)
    return first is not None and first.trained is not None


def origin(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of where its texts come from, as far as it does. A private source gives its hash alone."""
    told = {key: manifest[key] for key in ("framing",) if key in manifest}
    sources = []
    for source in manifest.get("made_by", {}).get("task", {}).get("sources", []):
        kept = {key: source[key] for key in ("name", "language", "category", "licence", "url", "private")}
        if kept["private"]:
            kept |= {"name": hashlib.sha256(kept["name"].encode()).hexdigest()[:12], "licence": "private", "url": ""}
        sources.append(kept)
    trained = [
        {key: count[key] for key in ("language", "category", "documents", "tokens", "bytes")}
        for count in manifest.get("counts", [])
        if count["split"] == "train"
    ]
    return told | {"sources": sources, "trained_on": trained}
