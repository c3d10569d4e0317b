"""From settings to the step that is compiled: made here for `train` and `plan` alike, so that both compile the same.

Opens no data, takes no device and compiles nothing.
"""

from collections.abc import Mapping

import numpy as np
from jax.sharding import Mesh

from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.training.optimizer import AdamW, Schedule, learning_rate
from t_elaine.training.step import Step, make_step


def build_step(
    model: LlamaConfig,
    compute: ComputeConfig,
    optimizer: AdamW | None,
    schedule: Schedule | None,
    steps: int,
    mesh: Mesh,
    groups: int,
    byte_lengths: np.ndarray,
    compiler_options: Mapping[str, str] | None = None,
) -> Step:
    """The jitted step of a run.

    Args:
        model: the model.
        compute: how it is computed, as `capability.usable` gave it.
        optimizer: None: AdamW's defaults.
        schedule: None: its defaults.
        steps: of the whole run, which the schedule ends with.
        mesh: devices, which need not be there.
        groups: number of (language, category) groups.
        byte_lengths: int32 [V].
        compiler_options: XLA options.
    """
    rate = learning_rate(schedule or Schedule(), steps)
    return make_step(
        model, compute, optimizer or AdamW(), rate, mesh, groups, byte_lengths, compiler_options=compiler_options
    )
