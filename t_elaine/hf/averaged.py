"""The running average of a run's weights (`AdamW.average`), read in place of the weights themselves."""

from t_elaine.checkpoints import layout, reading, verify
from t_elaine.errors import UserError
from t_elaine.hf.importing import Source

PLACE = "opt_state/average/"


def average_source(run_dir: str, step: int) -> Source:
    """The average that a checkpoint holds, by the parameters' paths; its files' digests are compared first.

    Raises:
        UserError: it holds none, it is of adapters, or a file is damaged.
    """
    where = layout.step_dir(run_dir, step)
    if layout.read_meta(run_dir, step).adapter is not None:
        what = "the average is one of adapters, not of a model"
        raise UserError(what, where, "export without --average: adapters are merged as they are")
    if not any(path.startswith(PLACE) for path in reading.tensors(run_dir, step, layout.OPTIMIZER)):
        mend = "train with AdamW.average = 0.999 (a run may begin to keep one when it goes on), or leave --average out"
        raise UserError("the checkpoint keeps no average of its weights", where, mend)
    if faults := verify.faults(where, (layout.OPTIMIZER,)):
        raise UserError(f"the checkpoint is damaged: {faults[0]}", where, "export another checkpoint of this run")
    read = reading.tensor_reader(run_dir, step, layout.OPTIMIZER)
    return lambda weight, layer, box: read(f"{PLACE}{weight.path}", layer, box)
