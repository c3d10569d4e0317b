"""A model that gets more ids than it had: new rows in its tables, padded for meshes, cut to their number on export.

New rows are the mean of the old ones, which bounds how far the old ids' probabilities move (Hewitt 2021,
https://nlp.stanford.edu/~johnhew/vocab-expansion.html). Nothing is written here.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from t_elaine.errors import UserError
from t_elaine.hf.importing import Source
from t_elaine.hf.mapping import Weight
from t_elaine.model.config import LlamaConfig

TABLES = ("embed/table", "head/table")
ROWS = 8192


def grown_config(config: LlamaConfig, size: int, multiple: int) -> LlamaConfig:
    """The model with room for `size` ids, their number rounded up to a multiple.

    Raises:
        UserError: the multiple is none, or the model has that many ids already.
    """
    if multiple < 1 or size <= config.vocab_size:
        what = f"a vocabulary of {size} ids in multiples of {multiple}, where the model has {config.vocab_size} rows"
        raise UserError(what, "import_hf.grow", "give a multiple of at least 1, and --vocabulary= with more ids")
    return dataclasses.replace(config, vocab_size=-(-size // multiple) * multiple)


def grown(source: Source, old: LlamaConfig, new: LlamaConfig) -> Source:
    """The parameters of the larger model: the old ones, and mean rows behind those of the tables."""

    @functools.cache
    def mean(weight: Weight) -> np.ndarray:
        total = np.zeros(old.embed, np.float64)
        for start in range(0, old.vocab_size, ROWS):
            part = slice(start, min(start + ROWS, old.vocab_size))
            total += source(weight, None, _box(weight, part, slice(None))).sum(axis=_axis(weight), dtype=np.float64)
        return (total / old.vocab_size).astype(np.float32)

    def get(weight: Weight, layer: int | None, box: Sequence[slice] | None = None) -> np.ndarray:
        if weight.path not in TABLES:
            return source(weight, layer, box)
        axis = _axis(weight)
        box = [slice(None)] * 2 if box is None else list(box)
        start, stop, _ = box[axis].indices(new.vocab_size)
        kept = slice(min(start, old.vocab_size), min(stop, old.vocab_size))
        parts = [source(weight, layer, _box(weight, kept, box[1 - axis]))] if kept.start < kept.stop else []
        if (more := stop - max(start, old.vocab_size)) > 0:
            parts.append(np.repeat(np.expand_dims(mean(weight)[box[1 - axis]], axis), more, axis=axis))
        return np.concatenate(parts, axis=axis)

    return get


def at_true_size(source: Source, size: int) -> Source:
    """The parameters of a padded model without the rows past `size`."""

    def get(weight: Weight, layer: int | None, box: Sequence[slice] | None = None) -> np.ndarray:
        if weight.path not in TABLES:
            return source(weight, layer, box)
        axis = _axis(weight)
        box = [slice(None)] * 2 if box is None else list(box)
        return source(weight, layer, _box(weight, slice(*box[axis].indices(size)), box[1 - axis]))

    return get


def _axis(weight: Weight) -> int:
    return weight.ours.split().index("V")


def _box(weight: Weight, ids: slice, rest: slice) -> list[slice]:
    return [ids, rest] if _axis(weight) == 0 else [rest, ids]
