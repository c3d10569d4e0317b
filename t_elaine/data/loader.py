"""Batches: what one host needs of one step, laid out as [A, B, T] arrays.

No iterator exists, so there is no state to save: a resume asks for its step. Row s·A·B + a·B + b stands in microbatch
a, slot b of step s, so a step holds the same rows however it is accumulated and divided among hosts. Which slots a host
holds follows from the sharding, not from its process number. What a row holds: `rows.py`.
"""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

from t_elaine.data.rows import Batch, RowPlan, open_mixture
from t_elaine.errors import UserError

__all__ = ["Batch", "Loader", "RowPlan", "open_mixture", "place", "prefetch", "slots_of"]

Made = TypeVar("Made")
AHEAD = 8  # steps whose tokens are asked for before their turn, where stores lie in an object store


class Loader:
    """What one host needs of each step. `batch` is a pure function of the step; the object keeps only caches.

    Attributes:
        groups: (language, category) pairs that `groups` of a batch counts.
    """

    def __init__(self, plan: RowPlan, accumulation: int, rows_per_microbatch: int, slots: Sequence[int]) -> None:
        """accumulation: A; rows_per_microbatch: B, of all hosts; slots: which of 0 … B-1 this host holds."""
        if accumulation * rows_per_microbatch != plan.rows_per_batch:
            what = (
                f"{accumulation} microbatches of {rows_per_microbatch} rows are not the {plan.rows_per_batch} rows of "
                f"batch_tokens {plan.mixture.batch_tokens} / sequence_length {plan.mixture.sequence_length}"
            )
            raise UserError(what, "Mixture.batch_tokens", "derive the accumulation with data.mixture.accumulation")
        if not slots or not all(0 <= slot < rows_per_microbatch for slot in slots):
            raise ValueError(f"slots {list(slots)} are not among 0 … {rows_per_microbatch - 1}")
        self.plan, self.groups, self.slots = plan, plan.groups, tuple(slots)
        self._shape = (accumulation, len(slots), plan.mixture.sequence_length)
        self._asked = -1
        starts = np.arange(accumulation, dtype=np.int64) * rows_per_microbatch
        self._rows = (starts[:, None] + np.array(slots, np.int64)[None, :]).reshape(-1)

    def batch(self, step: int) -> Batch:
        """Arrays [A, len(slots), T] of step `step` (from 0): tokens, targets, segments, positions, weights, groups."""
        known = range(step, self._asked + 1) if step <= self._asked <= step + AHEAD else ()
        for later in range(step, step + AHEAD + 1):
            if later not in known:
                self.plan.ask(self._rows + later * self.plan.rows_per_batch)
        self._asked = step + AHEAD
        rows = self.plan.rows(self._rows + step * self.plan.rows_per_batch)
        return {name: array.reshape(self._shape) for name, array in rows.items()}

    def describe(self, step: int) -> dict[str, Any]:
        """What steps 0 … step-1 hold, of all hosts (see `RowPlan.describe`)."""
        return {"step": step} | self.plan.describe(step * self.plan.rows_per_batch)


def slots_of(
    sharding: jax.sharding.Sharding, global_shape: Sequence[int], devices: Sequence[jax.Device] | None = None
) -> tuple[int, ...]:
    """The slots (indices of the batch axis) that this host's devices hold.

    Args:
        sharding: of a batch's arrays.
        global_shape: (A, B, T) or (B, T).
        devices: whose slots; None: the addressable ones.
    """
    held = set(sharding.addressable_devices if devices is None else devices)
    axis = len(global_shape) - 2
    found: set[int] = set()
    for device, index in sharding.devices_indices_map(tuple(global_shape)).items():
        if device in held and index is not None:
            found.update(range(*index[axis].indices(global_shape[axis])))
    return tuple(sorted(found))


def place(
    batch: Batch, sharding: jax.sharding.Sharding, rows_per_microbatch: int, slots: Sequence[int]
) -> dict[str, jax.Array]:
    """This host's arrays [A, len(slots), T] → global arrays [A, B, T]. The sequence axis may be sharded too."""
    where = {slot: i for i, slot in enumerate(slots)}

    def globally(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            wanted = [where[slot] for slot in range(*index[1].indices(rows_per_microbatch))]
            return array[index[0], wanted, index[2]]

        shape = (array.shape[0], rows_per_microbatch, array.shape[2])
        return jax.make_array_from_callback(shape, sharding, part)

    return {name: globally(array) for name, array in batch.items()}


def prefetch(
    make: Callable[[int], Made], start_step: int, stop_step: int | None = None, depth: int = 2
) -> Generator[Made, None, None]:
    """make(start_step), make(start_step + 1), … (below stop_step), made up to `depth` steps ahead in a thread.

    An exception is raised where its step is asked for. Closing the generator ends the thread.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
    steps = itertools.count(start_step) if stop_step is None else iter(range(start_step, stop_step))
    try:
        waiting = deque(pool.submit(make, step) for step in itertools.islice(steps, depth))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(make, step) for step in itertools.islice(steps, 1))
            yield made
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
