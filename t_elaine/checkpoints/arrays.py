"""How arrays lie in a checkpoint: Orbax's tree handler, stacked arrays cut by layer, and a place for the kill tests.

No step folders, no digests, no settings here.
"""

import dataclasses
import math
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from etils.epath import gpath
from orbax.checkpoint.checkpoint_args import register_with_handler

from t_elaine import paths
from t_elaine.checkpoints import produced
from t_elaine.faults import fault_point

STACKED = "layers"
SMALLEST_CHUNK = 1 << 20  # norms and tiny models: many little chunks would only cost time


def orbax_path(folder: str) -> epath.Path:
    """A folder as Orbax takes it. For gs:// etils would load TensorFlow wherever that is installed; fsspec will do."""
    if paths.is_remote(folder):
        gpath._is_tf_installed = lambda: False
        return epath.Path(folder)
    return epath.Path(os.path.abspath(folder))


class TreeHandler(ocp.PyTreeCheckpointHandler):
    """Orbax's tree handler, uncompressed: float weights do not shrink, and export reads them at the disk's speed."""

    def __init__(self) -> None:
        super().__init__(use_compression=False, type_handler_registry=produced.registry())

    def finalize(self, directory: Any) -> None:
        """All arrays are on disk, the folder has not its final name yet."""
        fault_point("checkpoint.mid_save")
        super().finalize(directory)


@register_with_handler(TreeHandler, for_save=True)
@dataclasses.dataclass
class TreeSave(ocp.args.PyTreeSave):
    """Arguments of a save, for `TreeHandler`."""


@register_with_handler(TreeHandler, for_restore=True)
@dataclasses.dataclass
class TreeRestore(ocp.args.PyTreeRestore):
    """Arguments of a restore, for `TreeHandler`."""


def save_args(tree: Any) -> Any:
    """A tree of `SaveArgs`: anything under a key `layers` gets one chunk a layer (and a device's piece of it)."""

    def args(path: tuple[Any, ...], leaf: Any) -> ocp.SaveArgs:
        stacked = any(getattr(key, "key", None) == STACKED for key in path) and np.ndim(leaf) > 0
        if not stacked:
            return ocp.SaveArgs()
        piece = leaf.sharding.shard_shape(leaf.shape) if isinstance(leaf, jax.Array) else leaf.shape
        layer_bytes = math.prod(piece[1:]) * np.dtype(leaf.dtype).itemsize
        return ocp.SaveArgs(chunk_byte_size=max(layer_bytes, SMALLEST_CHUNK), shard_axes=(0,))

    return jax.tree_util.tree_map_with_path(args, tree)


def named(tree: Any, is_leaf: Any = None) -> dict[str, Any]:
    """A nested dict as {"layers/attention/q": leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
