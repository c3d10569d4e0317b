"""What a run measures without training on it: held-out text and pairs, and the probe that its start must pass.

A part of `assembly`: it joins held-out rows (data) to the evaluators (training).
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from t_elaine import feeding, guarding, preferring
from t_elaine.training import held_out
from t_elaine.training.loop import Evaluator
from t_elaine.training.metrics import Record
from t_elaine.training.start import Begun
from t_elaine.training.step import weights

if TYPE_CHECKING:
    from t_elaine.assembly import Run

Say = Callable[[str], None]


def evaluators(run: "Run", say: Say) -> list[Evaluator]:
    """Held-out loss and bits-per-byte on the stores' validation split; of stores of preferences what pairs tell."""
    rows = guarding.held_out_rows(run)
    if run.preference is None:
        rows = feeding.held_out_rows(run.data, run.groups, run.loop.evaluate_tokens, say) + rows
    found = []
    if rows:
        joined, guarded = held_out.join_rows(rows), run.forgetting is not None
        found.append(held_out.held_out_figures(run.step, joined, run.feed.shape[1], run.groups, guarded))
    if (pairs := preferring.held_out(run, say)) is not None:
        found.append(pairs)  # the guard's texts then stand under "group" alone
    if not found:
        return []
    return [("validation", run.loop.evaluate_every, lambda params: merged(figures(params) for figures in found))]


def merged(records: Iterable[Record]) -> Record:
    """One record; of figures that several have, the last one's."""
    return functools.reduce(operator.or_, records)


def probe(run: "Run", begun: Begun, say: Say) -> None:
    """Before step 1: the sharded model must have the loss that the reference model had on the probe's rows."""
    parent = str(begun.parent).rpartition("/checkpoints/")[0]
    found = held_out.read_probe(parent)
    if found is None:
        say(f"{parent} holds no probe.json: the start's loss is not compared with a reference")
        return
    groups = len(run.groups)
    largest = math.inf if begun.altered else held_out.LARGEST_GAP
    loss = held_out.check_probe(run.step, weights(begun.state), found, run.feed.shape[1], groups, parent, largest)
    say(f"loss on the probe rows {loss:.4f}; the reference model has {found[1]:.4f}")
