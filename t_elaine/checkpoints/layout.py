"""Where a checkpoint lies and what stands beside the arrays: names, listing, and the small record `CheckpointMeta`.

    RUN_DIR/checkpoints/<step>/params/…      the parameters: one Orbax tree, stacked arrays chunked by one layer
                               optimizer/…   optimizer state and counters (absent in an imported model)
                               meta/metadata `CheckpointMeta` as JSON
                               digests.json  sha256 of every file; written last, so it marks the checkpoint complete

It neither writes nor reads arrays.
"""

import dataclasses
import json
import os
from typing import Any

from t_elaine import paths
from t_elaine.errors import UserError
from t_elaine.parallel import agreement

PARAMS, OPTIMIZER, META, DIGESTS = "params", "optimizer", "meta", "digests.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointMeta:
    """What a checkpoint says about itself.

    Args:
        step: updates done (a skipped one counts).
        tokens: target tokens trained on so far.
        row: the next row of the data plan.
        vocabulary_sha256: digest of the vocabulary the model was trained with.
        model: the fields of `LlamaConfig` as a plain dict.
        config_hash: sha256 of the run's operative settings.
        parent: what the run started from (a run folder, or a hub name with revision), None from scratch.
        has_optimizer: False for imported or merged models.
        adapter: where the parameters are adapters: their settings, their base's place and its fingerprint
            (`adapters.record`); None: a whole model.
    """

    step: int
    tokens: int
    row: int
    vocabulary_sha256: str
    model: dict[str, Any]
    config_hash: str
    parent: str | None = None
    has_optimizer: bool = True
    adapter: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


def meta_from_dict(values: dict[str, Any], where: str) -> CheckpointMeta:
    """The record from its JSON form; a missing or unknown field is a UserError that names it."""
    known = {field.name for field in dataclasses.fields(CheckpointMeta)}
    if set(values) - known or known - set(values) - {"parent", "has_optimizer", "adapter"}:
        odd = sorted((set(values) - known) | (known - set(values)))
        raise UserError(f"the checkpoint's record has other fields than expected: {', '.join(odd)}", where)
    return CheckpointMeta(**values)


def checkpoints_dir(run_dir: paths.PathLike) -> str:
    """The folder that holds a run's checkpoints."""
    return paths.join(run_dir, "checkpoints")


def step_dir(run_dir: paths.PathLike, step: int) -> str:
    """The folder of one checkpoint."""
    return paths.join(run_dir, "checkpoints", str(step))


def complete_steps(run_dir: paths.PathLike) -> list[int]:
    """Steps of the complete checkpoints (those with digests), oldest first."""
    names = [int(name) for name in paths.listing(checkpoints_dir(run_dir)) if name.isdecimal()]
    return sorted(step for step in names if paths.exists(paths.join(step_dir(run_dir, step), DIGESTS)))


def agreed_steps(run_dir: paths.PathLike) -> list[int]:
    """`complete_steps` as process 0 sees them: all processes must go on from the same (the newest 100 of them)."""
    return [int(step) for step in agreement.from_main(" ".join(map(str, complete_steps(run_dir)[-100:]))).split()]


def incomplete_steps(run_dir: paths.PathLike) -> list[int]:
    """Steps whose folder is there but was never sealed with digests (the process died in between)."""
    names = {int(name) for name in paths.listing(checkpoints_dir(run_dir)) if name.isdecimal()}
    return sorted(names - set(complete_steps(run_dir)))


def resolve(path: paths.PathLike) -> tuple[str, int]:
    """(run folder, step) meant by RUN_DIR (its newest complete checkpoint) or RUN_DIR/checkpoints/N.

    Raises:
        UserError: there is no such folder, or no complete checkpoint in it.
    """
    text = os.fspath(path).rstrip("/")
    head, _, name = text.rpartition("/")
    if name.isdecimal() and head.rpartition("/")[2] == "checkpoints":
        run_dir, step = head.rpartition("/")[0] or ".", int(name)
        if step not in complete_steps(run_dir):
            there = ", ".join(map(str, complete_steps(run_dir))) or "none"
            raise UserError(f"there is no complete checkpoint of step {step}", text, f"complete ones there: {there}")
        return run_dir, step
    if not paths.exists(text):
        raise UserError("there is no such run folder or checkpoint", text, "give RUN_DIR or RUN_DIR/checkpoints/STEP")
    steps = complete_steps(text)
    if not steps:
        mend = "give the folder of a run or of an imported model, or let the run reach its first checkpoint"
        raise UserError("this folder holds no complete checkpoint", text, mend)
    return text, steps[-1]


def read_meta(run_dir: paths.PathLike, step: int) -> CheckpointMeta:
    """The record of one checkpoint.

    Raises:
        UserError: the record is missing or is not JSON.
    """
    where = paths.join(step_dir(run_dir, step), META, "metadata")
    try:
        return meta_from_dict(json.loads(paths.read_text(where)), where)
    except FileNotFoundError as error:
        raise UserError("the checkpoint has no record", where, "take another checkpoint of the run") from error
    except ValueError as error:
        raise UserError(f"the checkpoint's record cannot be read: {error}", where, "take another checkpoint") from error
