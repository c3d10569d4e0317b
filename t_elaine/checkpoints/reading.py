"""Reading checkpoints: whole trees onto any mesh, or one layer of one tensor; never without its digests compared.

Nothing is written here, except that a caller may be told to set a damaged checkpoint aside.
"""

import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from t_elaine import paths
from t_elaine.checkpoints import layout, verify
from t_elaine.checkpoints.arrays import TreeHandler, TreeRestore, named, orbax_path
from t_elaine.checkpoints.layout import CheckpointMeta, read_meta, resolve
from t_elaine.errors import UserError
from t_elaine.parallel import agreement

__all__ = [
    "Damaged",
    "check_model",
    "read_meta",
    "read_tensor",
    "resolve",
    "restore",
    "restore_newest",
    "tensor_reader",
    "tensors",
]

What = Literal["params", "state"]


class Damaged(UserError):
    """A checkpoint whose files or numbers are not what was written; an older one may be good."""


def tensors(run_dir: paths.PathLike, step: int, item: str = layout.PARAMS) -> dict[str, tuple[tuple[int, ...], str]]:
    """{path: (shape, dtype)} of every array of an item ("params" or "optimizer"), without reading one."""
    folder = paths.join(layout.step_dir(run_dir, step), item)
    if not paths.exists(folder):
        raise UserError(f"the checkpoint holds no {item}", folder, "take a checkpoint that train wrote")
    tree = TreeHandler().metadata(orbax_path(folder))
    return {name: (tuple(leaf.shape), str(np.dtype(leaf.dtype))) for name, leaf in named(tree).items()}


def read_tensor(
    run_dir: paths.PathLike, step: int, path: str, layer: int | None = None, item: str = layout.PARAMS
) -> np.ndarray:
    """One tensor, or one layer of a stacked one, straight from the files.

    Args:
        run_dir: the run folder.
        step: of the checkpoint.
        path: for example "layers/attention/q".
        layer: index into the first axis; only that layer's bytes are read.
        item: "params" or "optimizer".

    Raises:
        UserError: there is no such tensor. Digests are not compared here: call `verify.faults` once before.
    """
    return tensor_reader(run_dir, step, item)(path, layer, None)


def tensor_reader(
    run_dir: paths.PathLike, step: int, item: str = layout.PARAMS
) -> Callable[[str, int | None, Sequence[slice] | None], np.ndarray]:
    """A function like `read_tensor` for many reads: (path, layer, box) → array; each tensor is opened once.

    A box holds a slice for each axis (the layer's apart). On a local disk no more than its own bytes are read; an
    object store gives whole chunks, so ask it for whole tensors.
    """
    folder = paths.join(layout.step_dir(run_dir, step), item)
    base = folder if paths.is_remote(folder) else f"file://{os.path.abspath(folder)}"
    # Mapped files spare a copy of everything, and let a part of an uncompressed chunk be read alone.
    context = tensorstore.Context({"file_io_mode": {"mode": "memmap"}})

    @functools.cache
    def opened(path: str) -> Any:
        store = {"driver": "ocdbt", "base": base + "/", "path": path.replace("/", ".") + "/"}
        spec = {"driver": "zarr", "kvstore": store}
        try:
            return tensorstore.open(spec, open=True, read=True, context=context).result()
        except (ValueError, FileNotFoundError) as error:
            raise UserError(f"the checkpoint has no tensor {path!r} that can be read", folder) from error

    def read(path: str, layer: int | None, box: Sequence[slice] | None) -> np.ndarray:
        array = opened(path) if layer is None else opened(path)[layer]
        return np.asarray((array if box is None else array[tuple(box)]).read().result())

    return read


def restore(run_dir: paths.PathLike, step: int, target: Any, what: What = "params", check_digests: bool = True) -> Any:
    """Read a checkpoint onto the target's shardings: digests first, then shapes, then that every number is finite.

    Args:
        run_dir: the run folder.
        step: of the checkpoint.
        target: tree of `ShapeDtypeStruct`s with shardings: the parameters for what="params", a dict
            {"params": …, "optimizer": …} for what="state".
        what: "params" reads no optimizer state.
        check_digests: False only where the caller has compared them already.

    Raises:
        Damaged: a file is not what was written, or a parameter is not finite.
        UserError: a tensor is missing, is left over or has another shape.
    """
    folder = layout.step_dir(run_dir, step)
    trees = {layout.PARAMS: target} if what == "params" else target
    if check_digests:
        _check_digests(folder, (*trees, layout.META))
    for item, tree in trees.items():
        check_shapes(run_dir, step, tree, item)
    found = {item: _read_tree(paths.join(folder, item), tree) for item, tree in trees.items()}
    if not bool(jax.jit(_all_finite)(found[layout.PARAMS])):
        raise Damaged("a parameter of the checkpoint is not finite", folder, "take an older checkpoint")
    return found[layout.PARAMS] if what == "params" else found


def restore_newest(
    run_dir: str, target: Any, what: What = "params", say: Callable[[str], None] = print
) -> tuple[Any, CheckpointMeta]:
    """The newest complete checkpoint that is sound; each damaged one is named and passed over.

    Raises:
        UserError: none is left, or one is sound but of another shape.
    """
    steps = layout.agreed_steps(run_dir)
    for step in reversed(steps):
        try:
            return restore(run_dir, step, target, what), read_meta(run_dir, step)
        except Damaged as fault:
            say(f"checkpoint {step} is damaged, going one back: {fault.what}")
    there = ", ".join(map(str, steps)) or "none"
    where = layout.checkpoints_dir(run_dir)
    raise UserError(f"no sound checkpoint is left (there: {there})", where, "start anew in another RUN_DIR")


def newest_record(run_dir: paths.PathLike) -> CheckpointMeta | None:
    """The record of the newest checkpoint whose record is as it was written; None where none is."""
    for step in reversed(layout.agreed_steps(run_dir)):
        try:
            if not verify.faults(layout.step_dir(run_dir, step), (layout.META,)):
                return read_meta(run_dir, step)
        except UserError:
            continue  # `restore_newest` says what is wrong with it
    return None


def check_shapes(run_dir: paths.PathLike, step: int, target: Any, item: str) -> None:
    """Compare names and shapes with the target's before anything is read. Raises UserError with both."""
    here, wanted = tensors(run_dir, step, item), named(target)
    where = layout.step_dir(run_dir, step)
    mend = "give the model settings that the checkpoint was made with, or another checkpoint"
    for name in sorted(set(here) ^ set(wanted)):
        side = "has no tensor" if name in wanted else "has a tensor more,"
        raise UserError(f"the checkpoint's {item} {side} {name}: it is of another model", where, mend)
    for name, leaf in wanted.items():
        if here[name][0] != tuple(leaf.shape):
            raise UserError(f"{name} is {here[name][0]} in the checkpoint, {tuple(leaf.shape)} here", where, mend)


def check_model(meta: CheckpointMeta, where: str, model: dict[str, Any], vocabulary_sha256: str | None) -> None:
    """Refuse a checkpoint of another model or another vocabulary, naming both.

    Args:
        meta: the checkpoint's record.
        where: its folder, for the message.
        model: fields of the `LlamaConfig` in force.
        vocabulary_sha256: of the vocabulary in force; None: not compared.
    """
    model = json.loads(json.dumps(model))
    names = sorted({*meta.model, *model} - {"initializer_range"})  # only random starts use that one
    lines = [f"{n}: {meta.model.get(n)} there, {model.get(n)} here" for n in names if meta.model.get(n) != model.get(n)]
    if lines:
        what = f"the checkpoint is of another model ({'; '.join(lines)})"
        raise UserError(what, where, "give the model settings that belong to it")
    if vocabulary_sha256 is not None and meta.vocabulary_sha256 != vocabulary_sha256:
        what = f"the checkpoint was trained with vocabulary {meta.vocabulary_sha256[:16]}…, "
        what += f"the stores were made with {vocabulary_sha256[:16]}…"
        raise UserError(what, where, "prepare the stores again with the model's own tokenizer")


def _check_digests(folder: str, items: tuple[str, ...]) -> None:
    """Hosts share the reading; all come to the same answer, so that none restores what another refuses."""
    try:
        lines = verify.faults(folder, items, (jax.process_index(), jax.process_count()))
    except UserError as error:
        lines = [error.what]
    if where := agreement.anywhere(bool(lines)):
        what = "; ".join(lines[:3]) or f"process(es) {', '.join(map(str, where))} found a fault"
        raise Damaged(what, folder, "take another checkpoint")


def _read_tree(folder: str, target: Any) -> Any:
    checkpointer = ocp.Checkpointer(TreeHandler())
    arguments = ocp.checkpoint_utils.construct_restore_args(target)
    try:
        return checkpointer.restore(orbax_path(folder), args=TreeRestore(item=target, restore_args=arguments))
    except (ValueError, OSError, *paths.store_errors()) as error:  # type: ignore[misc]
        raise Damaged(f"it cannot be read: {error}", folder, "take another checkpoint") from error
    finally:
        checkpointer.close()


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
