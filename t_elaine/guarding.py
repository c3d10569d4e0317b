"""The guard of a training run against forgetting: its parent's figures, kept in the run's folder, and the verdict.

A part of `assembly`: it joins held-out text (data) to the evaluator (training). The limits are `forgetting`'s.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from t_elaine import forgetting, paths
from t_elaine.checkpoints import layout, reading
from t_elaine.data.store import open_store
from t_elaine.data.validation import validation_rows
from t_elaine.errors import UserError
from t_elaine.forgetting import Forgetting, Group
from t_elaine.training import run_folder
from t_elaine.training.loop import Evaluator
from t_elaine.training.metrics import Record
from t_elaine.training.start import Begun
from t_elaine.training.step import weights

if TYPE_CHECKING:
    from t_elaine.assembly import Run

FILE = "parent_figures.json"
Say = Callable[[str], None]


def groups(trained: Sequence[Group], limits: Forgetting | None) -> list[Group]:
    """(language, category) of the texts trained on, then those that only the guard's stores have."""
    more = [tuple(group) for folder in (limits.stores if limits else ()) for group in open_store(folder).groups]
    return [*trained, *(group for group in dict.fromkeys(more) if group not in trained)]  # type: ignore[list-item]


def held_out_rows(run: "Run") -> list[dict[str, np.ndarray]]:
    """Rows [N,T] of the guard's own stores, as many tokens of each store and group as of those trained on."""
    limits = run.forgetting
    if limits is None or not limits.stores:
        return []
    stores = [open_store(folder) for folder in limits.stores if folder not in run.data.stores]
    for store in stores:
        if store.vocabulary["sha256"] != run.feed.vocabulary_sha256:
            mend = "prepare it with the vocabulary of the stores trained on"
            raise UserError("its vocabulary is not that of the stores trained on", str(store.folder), mend)
    tokens, length = run.loop.evaluate_tokens, run.data.sequence_length
    found = list(validation_rows(stores, length, run.groups, max_tokens=tokens)) if tokens and stores else []
    lacking = {store.name for store in stores} - {one.store for one in found}
    if lacking:
        mend = "prepare it with a larger validation_share"
        raise UserError(f"there is no held-out text in {', '.join(sorted(lacking))}", "Forgetting.stores", mend)
    return [{name: array[: max(1, tokens // length)] for name, array in one.rows.items()} for one in found]


def judge(run: "Run", begun: Begun, evaluators: Sequence[Evaluator], say: Say) -> Callable[[int, Record], str]:
    """What the loop asks after each evaluation: (updates done, record) → what was forgotten, "" if nothing.

    The parent's figures are those at step 0, kept in RUN_DIR/parent_figures.json; a run that goes on without them (its
    guard is new, or measures other text) has its parent evaluated first.

    Raises:
        UserError: nothing is evaluated; or the run was stopped at this step by the guard, whose limits are the same.
    """
    limits = run.forgetting
    if limits is None:
        return lambda done, record: ""
    if not evaluators:
        raise UserError(
            "no held-out text is evaluated, so nothing is guarded", "train.forgetting", "see Forgetting.stores"
        )
    if not run.loop.evaluate_every:
        say("warning: Loop.evaluate_every is 0: forgetting is looked for at the end alone")
    path, what = paths.join(run.folder, FILE), identity(run, limits)
    kept = read(path, what)
    if kept is None and begun.step:
        kept = {"identity": what, "from": begun.parent, "figures": of_parent(run, begun, evaluators, say)}
        _write(path, kept)
    if found := stopped_at(run, begun.step):
        what_then = f"the guard stopped the run at step {begun.step}: {forgetting.sentence(found)}"
        raise UserError(what_then, path, mend(found[0]))

    def look(done: int, record: Record) -> str:
        nonlocal kept
        if done == 0:
            kept = {"identity": what, "from": begun.parent, "figures": record["group"]}
            _write(path, kept)
            return ""
        assert kept is not None
        found = forgetting.exceeded(figures(record["group"]), figures(kept["figures"]), limits)
        if found:
            kept |= {"stopped_at": done, "exceeded": found}
            _write(path, kept)
            say(f"mend: {mend(found[0])}")
        return forgetting.sentence(found) if found else ""

    return look


def identity(run: "Run", limits: Forgetting) -> dict[str, Any]:
    """What the figures depend on beside the parent."""
    stores = {*run.data.stores, *limits.stores}
    digests = {open_store(folder).name: paths.file_sha256(paths.join(folder, "manifest.json")) for folder in stores}
    told = {"tokens": run.loop.evaluate_tokens, "sequence_length": run.data.sequence_length, "dtype": run.compute.dtype}
    return {"stores": dict(sorted(digests.items())), **told}


def read(path: str, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is kept at `path`, if it was measured on the same text."""
    if not paths.exists(path):
        return None
    try:
        kept = dict(json.loads(paths.read_text(path)))
        return kept if kept["identity"] == wanted and figures(kept["figures"]) else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        mend = "remove it: the parent is then evaluated again"
        raise UserError(f"the parent's figures are damaged: {error!r}", path, mend) from error


def figures(group: Mapping[str, Mapping[str, Any]]) -> dict[Group, float | None]:
    """(language, category) → bits per byte, of a record's "group"."""
    parts = {name: name.partition(", ") for name in group}
    return {(parts[name][0], parts[name][2]): one["bits_per_byte"] for name, one in group.items()}


def of_parent(run: "Run", begun: Begun, evaluators: Sequence[Evaluator], say: Say) -> Mapping[str, Any]:
    """The parent's figures, measured now: its parameters are read beside the run's own."""
    if begun.parent is None:
        mend = "start the run anew with the guard, or without it"
        raise UserError("the run began with random weights and was not guarded then", "train.forgetting", mend)
    here = weights(begun.state)
    if here is begun.state["params"]:
        folder, step = layout.resolve(begun.parent)
        say(f"evaluating the parent, {begun.parent}, for the guard against forgetting")
        here = reading.restore(folder, step, run.step.state_shapes["params"])
    else:  # adapters that add nothing to the frozen base are the parent
        here = {**here, "params": jax.tree.map(lambda leaf: leaf * 0, here["params"])}
    _, _, evaluate = evaluators[0]
    found: Mapping[str, Any] = evaluate(here)["group"]
    return found


def stopped_at(run: "Run", step: int) -> list[dict[str, Any]]:
    """What was past its limit where the guard stopped the run, if that was at this step and the limits still say so."""
    path = paths.join(run.folder, FILE)
    if run.forgetting is None or not paths.exists(path):
        return []
    kept = json.loads(paths.read_text(path))
    if kept.get("stopped_at") != step:
        return []
    child = {(one["language"], one["category"]): one["child"] for one in kept["exceeded"]}
    return forgetting.exceeded(child, figures(kept["figures"]), run.forgetting)


def told(run: "Run") -> str:
    """Why the guard stopped the run, for status.json."""
    if not run_folder.is_main():
        return "forgotten"
    return forgetting.sentence(json.loads(paths.read_text(paths.join(run.folder, FILE)))["exceeded"])


def mend(one: Mapping[str, Any]) -> str:
    """What can be done about a group that is past its limit."""
    setting = "general" if one["category"] == forgetting.GENERAL else "others"
    return f"lower the peak learning rate, add replay of such text, or raise Forgetting.{setting}; checkpoints are kept"


def _write(path: str, content: Mapping[str, Any]) -> None:
    if run_folder.is_main():
        paths.write_text(path, json.dumps(content, indent=1) + "\n")
