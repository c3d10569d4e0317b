"""The probe of an imported model: fixed rows of ids and the loss that an independent program gives them.

Before its first step, training computes the loss of the same rows; a gap means that the import, the settings or the
model's code are wrong. Rows are cut from the proof's prompts, so they need no file of their own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine.errors import UserError
from t_elaine.hf import reference
from t_elaine.hf.prompts import PROMPTS

LENGTH = 128
AGREEMENT = 1e-3


def probe_rows(encode: Callable[[list[str]], list[np.ndarray]], bos: int | None) -> list[np.ndarray]:
    """One row of 129 ids (or as many as the texts give) for each language, beginning with BOS where there is one."""
    start = [] if bos is None else [np.array([bos])]
    rows = [np.concatenate([*start, *encode(["\n".join(group)])]) for group in PROMPTS.values()]
    length = min(LENGTH + 1, *(len(row) for row in rows))
    return [row[:length].astype(np.int64) for row in rows]


def make_probe(folder: Path, rows: list[np.ndarray], transformers: bool) -> dict[str, Any]:
    """What probe.json holds: the rows, their mean loss in nats a token, and by which program.

    Args:
        folder: the Hugging Face folder.
        rows: ids [T+1]; the first id of a row is no target.
        transformers: take the loss from transformers; numpy's is kept beside it.

    Raises:
        UserError: the two programs disagree by more than 0.001: the folder means different things to different readers.
    """
    model = reference.NumpyModel(folder)
    losses = {model.name: reference.mean_loss(model.logits(rows), rows)}
    name = model.name
    if transformers:
        name, run = reference.transformers_logits(folder)
        losses[name] = reference.mean_loss(run(rows), rows)
    if abs(losses[name] - losses[model.name]) > AGREEMENT:
        what = f"{name} gives these files the loss {losses[name]:.4f}, {model.name} {losses[model.name]:.4f}"
        raise UserError(what, str(folder), "check config.json: RoPE, norm epsilon and heads are read differently")
    return {"rows": [row.tolist() for row in rows], "loss": losses[name], "reference": name, "losses": losses}
