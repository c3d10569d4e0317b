"""Processes agreeing on small things: waiting for each other, comparing a text, sharing process 0's.

With one process each of these does nothing. They use device collectives, so all processes must call them in one order;
a process that is gone ends the others through `line`.
"""

import hashlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from t_elaine.errors import UserError


def wait_for_all(name: str) -> None:
    """Return when all processes have come here."""
    if jax.process_count() > 1:
        with jax.transfer_guard("allow"):
            multihost_utils.sync_global_devices(name)


def from_main(text: str) -> str:
    """Process 0's text, on all (at most 4 kB of UTF-8)."""
    if jax.process_count() == 1:
        return text
    buffer = np.zeros(4096, np.uint8)
    raw = text.encode()
    buffer[: len(raw)] = np.frombuffer(raw, np.uint8)
    with jax.transfer_guard("allow"):
        return bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer))).rstrip(b"\0").decode()


def unlike_main(text: str) -> list[int]:
    """The processes whose text is not process 0's; the same list on all."""
    if jax.process_count() == 1:
        return []
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    with jax.transfer_guard("allow"):
        found = np.asarray(multihost_utils.process_allgather(digest))
    return [process for process, other in enumerate(found) if (other != found[0]).any()]


def anywhere(wrong: bool) -> list[int]:
    """The processes where something is wrong; the same list on all."""
    if jax.process_count() == 1:
        return [0] if wrong else []
    with jax.transfer_guard("allow"):
        found = np.asarray(multihost_utils.process_allgather(np.asarray(wrong)))
    return [int(process) for process in np.flatnonzero(found)]


def check_same(what: str, text: str, where: str, mend: str) -> None:
    """Raise UserError, on all processes, where one's text is not process 0's; it names them."""
    others = unlike_main(text)
    if others:
        told = ", ".join(map(str, others[:16]))
        raise UserError(f"{what} of process(es) {told} are not those of process 0", where, mend)
