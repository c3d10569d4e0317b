"""What a run takes of the machines around its chips: RAM of each host, disk for checkpoints, the stores that it reads.

Arithmetic on shapes and settings; the sizes of stores are handed over.
"""

import math
from collections.abc import Mapping
from typing import Any

from t_elaine.planning.question import Question
from t_elaine.training.fit import HOST_RESERVE, state_bytes

Record = dict[str, Any]
TOKEN = 4  # bytes in a store


def machines(
    question: Question,
    *,
    every: int,
    keep: int,
    permanent_every: int | None,
    stores: Mapping[str, int | None],
    cache: int,
) -> Record:
    """Bytes, at most.

    Args:
        question: what is planned for.
        every: steps between checkpoints.
        keep: newest ones kept.
        permanent_every: steps between those that are never removed; None: none is.
        stores: folder → bytes of the shards on a disk; None where the store is not there or lies in an object store.
        cache: bytes that a host keeps of what it reads of stores in an object store; 0 where none lies there.
    """
    need, where = question.needs(), question.topology
    a_host, steps = where.devices // where.hosts, math.ceil(question.run_tokens / question.tokens)
    each = state_bytes(question.model, question.first_moment_dtype, question.lora, question.averaged)
    # The one that is being written is whole before the oldest goes.
    newest = min(keep + 1, math.ceil(steps / every))
    permanent = steps // permanent_every if permanent_every else 0
    known = [size for size in stores.values() if size is not None]
    return {
        "hosts": where.hosts,
        "devices_per_host": a_host,
        "restore_bytes": a_host * (need.parameters + need.moments),
        "program_bytes": HOST_RESERVE,
        "cache_bytes": cache,
        "checkpoint_bytes": each,
        "checkpoints": newest + permanent,
        "permanent": permanent,
        "disk_bytes": each * (newest + permanent),
        "stores": dict(stores),
        "stores_bytes": sum(known) if len(known) == len(stores) else None,
        "tokens_bytes": TOKEN * question.run_tokens,
    }
