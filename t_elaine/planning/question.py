"""What a plan is made for: a model, how it is computed, a batch, a topology, and what estimates rest on."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import AbstractMesh, AxisType

from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.model.lora import Lora
from t_elaine.parallel.mesh import AXES
from t_elaine.planning.assumptions import Assumptions, Rates
from t_elaine.planning.topology import Topology
from t_elaine.training.fit import Need, need
from t_elaine.training.metrics import flops_per_token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What a plan is made for.

    Args:
        model: its shape.
        compute: how it is computed.
        topology: where.
        mesh: axis → devices along it.
        shape: (A, B, T) of the global batch.
        steps: of the run.
        token_budget: tokens of the run, in place of steps × batch; None: those.
        price: of one chip and hour, in any currency; None: not told.
        groups: groups of the per-group loss that are assumed.
        first_moment_dtype: of AdamW.
        averaged: whether a running average of what is trained is kept beside it.
        lora: adapters beside a frozen model; None: the model is trained.
        options: XLA's.
        assumed: what estimates rest on.
        rates: the same with the chip's own figures filled in.
    """

    model: LlamaConfig
    compute: ComputeConfig
    topology: Topology
    mesh: Mapping[str, int]
    shape: tuple[int, int, int]
    steps: int
    token_budget: int | None = None
    price: float | None = None
    groups: int = 18
    first_moment_dtype: str = "float32"
    averaged: bool = False
    lora: Lora | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    assumed: Assumptions
    rates: Rates

    @property
    def tokens(self) -> int:
        """Of a step."""
        return math.prod(self.shape)

    @property
    def run_tokens(self) -> int:
        """Of the whole run."""
        return self.token_budget or self.steps * self.tokens

    @property
    def tokens_a_device(self) -> float:
        """Of a step."""
        return self.tokens / self.topology.devices

    @property
    def rows(self) -> int:
        """Of a microbatch, on one device (or the devices that share its rows)."""
        return self.shape[1] // (self.mesh["replica"] * self.mesh["fsdp"])

    @property
    def model_flops(self) -> float:
        """Of one device in a step, recomputation not counted, causal attention's masked half taken off."""
        total = flops_per_token(self.model, self.shape[2], self.lora is not None) * self.tokens_a_device
        return total - self.attention_flops

    @property
    def attention_flops(self) -> float:
        """The part of causal attention in it: 6·L·H·h·T a token (train's log counts the whole square)."""
        a_token = 6.0 * self.model.layers * self.model.q_heads * self.model.head_dim * self.shape[2]
        return a_token * self.tokens_a_device

    def needs(self) -> Need:
        """Bytes on one device, from shapes alone."""
        mesh: Any = AbstractMesh(tuple(self.mesh.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
        A, _, T = self.shape
        further: dict[str, Any] = {"first_moment_dtype": self.first_moment_dtype, "microbatches": A, "lora": self.lora}
        return need(self.model, self.compute, mesh, self.rows, T, averaged=self.averaged, **further)

    def but(self, **changes: Any) -> "Question":
        """The same question with other settings of `compute`."""
        return dataclasses.replace(self, compute=dataclasses.replace(self.compute, **changes))
