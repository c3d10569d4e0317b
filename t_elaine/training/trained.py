"""What of a model a run trains: all of it, or adapters beside a frozen base; trees of shapes, axes and roles.

Makes no arrays and reads none (`adapting` does).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from t_elaine.model import llama
from t_elaine.model.config import LlamaConfig
from t_elaine.model.lora import Lora, adapter_axes, adapter_roles, adapter_shapes, base_axes, base_shapes, combine
from t_elaine.model.quantised import Quantised
from t_elaine.parallel import sharding as layouts

Rules = Mapping[str, tuple[str, ...]]
PARAMS, BASE, DROPOUT = "params", "base", "dropout"  # keys of a state: trained, frozen; of a batch: keys of its dropout


class Trained(NamedTuple):
    """The parts of one model.

    Args:
        config: the model.
        lora: how its adapters are; None: the whole model is trained.
    """

    config: LlamaConfig
    lora: Lora | None = None

    def shapes(self) -> Any:
        """Of what is trained, float32."""
        return llama.parameter_shapes(self.config) if self.lora is None else adapter_shapes(self.config, self.lora)

    def axes(self) -> Any:
        """Their logical axes."""
        return llama.parameter_axes(self.config) if self.lora is None else adapter_axes(self.config, self.lora)

    def roles(self) -> Any:
        """What they are for."""
        return llama.parameter_roles(self.config) if self.lora is None else adapter_roles(self.config, self.lora)

    def frozen_shapes(self) -> Any:
        """Of what is frozen, as it is kept; None where nothing is."""
        return None if self.lora is None else base_shapes(self.config, self.lora.base)

    def shardings(self, mesh: Any, rules: Rules) -> Any:
        """Of what is trained."""
        return layouts.shardings(self.axes(), mesh, rules, self.shapes())

    def frozen_shardings(self, mesh: Any, rules: Rules) -> Any:
        """Of what is frozen: as the parameters that it is of. Scales whose inputs do not divide are not split there."""
        if self.lora is None:
            return None
        axes, shapes = base_axes(self.config, self.lora.base), self.frozen_shapes()
        is_one = lambda leaf: isinstance(leaf, Quantised)  # noqa: E731
        axes = jax.tree.map(
            lambda leaf, shape: leaf if not is_one(leaf) else _scales(leaf, shape, mesh, rules),
            axes,
            shapes,
            is_leaf=lambda leaf: is_one(leaf) or isinstance(leaf, tuple),
        )
        return layouts.shardings(axes, mesh, rules, shapes)

    def whole(self, params: Any, base: Any, key: jax.Array | None) -> Any:
        """The parameters that `llama.hidden` takes; `key` is the dropout's, uint32 [2]."""
        return params if self.lora is None else combine(self.config, self.lora, base, params, key)

    def keys(self, seed: int, step: jax.Array, count: int) -> dict[str, jax.Array]:
        """What a batch of `count` microbatches needs for its dropout: uint32 [A,2] by seed, step and place."""
        if self.lora is None or not self.lora.dropout:
            return {}
        key = jax.random.fold_in(jax.random.key(seed), step)
        return {DROPOUT: jax.random.key_data(jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count)))}


def _scales(axes: Quantised, shapes: Quantised, mesh: Mesh, rules: Rules) -> Quantised:
    layer, rows, columns = axes.scales
    pieces = 1
    for axis in rules[rows]:
        pieces *= mesh.shape[axis]
    fits = shapes.scales.shape[1] % pieces == 0
    return Quantised(axes.codes, (layer, rows if fits else None, columns), axes.kind)
