"""From settings to the step that is compiled: made here for `train` and `plan` alike, so that both compile the same.

Opens no data, takes no device and compiles nothing.
"""

from collections.abc import Mapping

import numpy as np
from jax.sharding import Mesh

from t_elaine.errors import UserError
from t_elaine.model.config import OFFLOAD, ComputeConfig, LlamaConfig
from t_elaine.model.lora import Lora
from t_elaine.training.optimizer import AdamW, Schedule, learning_rate
from t_elaine.training.preference import Preference
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
    z_loss: float = 0.0,
    lora: Lora | None = None,
    seed: int = 0,
    preference: Preference | None = None,
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
        z_loss: coefficient.
        lora: adapters beside a frozen model; None: the model is trained.
        seed: of the adapters' dropout.
        preference: learn from pairs of answers; None: from every trained token.

    Raises:
        UserError: tensors are to be kept in a host memory that the devices do not have.
    """
    check_offload(compute, mesh)
    rate = learning_rate(schedule or Schedule(), steps)
    return make_step(
        model,
        compute,
        optimizer or AdamW(),
        rate,
        mesh,
        groups,
        byte_lengths,
        compiler_options=compiler_options,
        z_loss=z_loss,
        lora=lora,
        seed=seed,
        preference=preference,
    )


def check_offload(compute: ComputeConfig, mesh: Mesh) -> None:
    """Refuse to keep tensors in the host's memory where the devices cannot reach it."""
    if not compute.offloaded:
        return
    device = (mesh.local_devices or list(mesh.devices.flat))[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if OFFLOAD not in kinds:
        raise UserError(
            f"{', '.join(compute.offloaded)} cannot be kept in the host's memory: {device.device_kind} knows "
            f"{', '.join(kinds)}, not {OFFLOAD}",
            "ComputeConfig.offloaded",
            "save these tensors on the device (ComputeConfig.saved) or recompute them (leave them out of both)",
        )
