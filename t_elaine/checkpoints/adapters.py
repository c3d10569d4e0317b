"""Checkpoints of adapters: which base they are for, and both read as the one model that training saw.

A run with adapters keeps them alone; its record names the base's checkpoint and that checkpoint's fingerprint. Nothing
is written here, and no optimizer state is read.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from t_elaine import paths
from t_elaine.checkpoints import layout, reading, verify
from t_elaine.checkpoints.arrays import named
from t_elaine.checkpoints.layout import CheckpointMeta, read_meta
from t_elaine.errors import UserError
from t_elaine.model import llama
from t_elaine.model import lora as adapting
from t_elaine.model.config import LlamaConfig, from_record
from t_elaine.model.lora import Lora, Matrix

CORNER = 8
# (path, layer, box) → the float32 values there; see `reading.tensor_reader`.
Reader = Callable[[str, int | None, Sequence[slice] | None], np.ndarray]


def fingerprint(run_dir: paths.PathLike, step: int) -> str:
    """What tells a checkpoint's parameters from all others: sha256 over the digests of their files, and of a base's."""
    files = verify.recorded(layout.step_dir(run_dir, step))
    own = {name: entry["sha256"] for name, entry in files.items() if name.startswith(f"{layout.PARAMS}/")}
    text = json.dumps([own, read_meta(run_dir, step).adapter], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sample(run_dir: paths.PathLike, step: int) -> str:
    """What tells a model from others wherever it lies: sha256 over a corner of every tensor, rounded to bfloat16.

    A checkpoint, its float32 or bfloat16 export, and what an import makes of that have the same; training changes it.
    """
    config, read = from_record(read_meta(run_dir, step).model), whole_reader(run_dir, step)
    digest = hashlib.sha256()
    for path, leaf in sorted(named(llama.parameter_shapes(config)).items()):
        layer = config.layers - 1 if path.startswith("layers/") else None
        shape = leaf.shape if layer is None else leaf.shape[1:]
        corner = read(path, layer, [slice(0, min(CORNER, size)) for size in shape])
        digest.update(f"{path} {leaf.shape} ".encode() + corner.astype(jnp.bfloat16).tobytes())
    return digest.hexdigest()


def record(base: tuple[str, int], lora: Lora) -> dict[str, Any]:
    """What a checkpoint of adapters says of them and of their base."""
    where = layout.step_dir(*base)
    where = where if paths.is_remote(where) else os.path.abspath(where)
    return {"lora": lora.record(), "base": where, "fingerprint": fingerprint(*base)}


def base_of(adapter: Mapping[str, Any], where: str, given: str | None = None) -> tuple[str, int]:
    """(run folder, step) of the base that a record names.

    Args:
        adapter: the record.
        where: whose it is, for messages.
        given: the base's place now; None: as recorded.

    Raises:
        UserError: it is not there, or is another model; both fingerprints are named.
    """
    place = given or adapter["base"]
    try:
        base = layout.resolve(place)
    except UserError as error:
        mend = "put the base back where it was, or leave a link there"
        raise UserError(f"the base of the adapters in {where} is not there: {error.what}", place, mend) from error
    found = fingerprint(*base)
    if found != adapter["fingerprint"]:
        what = f"the adapters in {where} are for a base with the fingerprint {adapter['fingerprint']}, "
        raise UserError(what + f"this one has {found}", place, "give the base that they were trained beside")
    return base


def lora_of(meta: CheckpointMeta) -> Lora | None:
    """The adapters' settings; None for a whole model."""
    return None if meta.adapter is None else adapting.from_record(meta.adapter["lora"])


def whole_reader(run_dir: paths.PathLike, step: int) -> Reader:
    """`reading.tensor_reader` of a checkpoint; of one with adapters, their base with them in it.

    Raises:
        UserError: the base is not there or not theirs. Digests are not compared here (`faults`).
    """
    meta, own = read_meta(run_dir, step), reading.tensor_reader(run_dir, step)
    lora = lora_of(meta)
    if meta.adapter is None or lora is None:
        return own
    base = base_of(meta.adapter, layout.step_dir(run_dir, step))
    return _merged(from_record(meta.model), lora, whole_reader(*base), own)


def faults(run_dir: paths.PathLike, step: int) -> list[str]:
    """What differs from the digests in parameters and record, a base's too."""
    meta = read_meta(run_dir, step)
    found = verify.faults(layout.step_dir(run_dir, step), (layout.PARAMS, layout.META))
    if meta.adapter is None:
        return found
    return found + faults(*base_of(meta.adapter, layout.step_dir(run_dir, step)))


def restore_whole(run_dir: paths.PathLike, step: int, target: Any) -> Any:
    """`reading.restore` of parameters; adapters come merged into their base, on the target's shardings.

    Raises:
        Damaged, UserError: as `reading.restore` and `base_of`.
    """
    meta = read_meta(run_dir, step)
    lora = lora_of(meta)
    if meta.adapter is None or lora is None:
        return reading.restore(run_dir, step, target)
    config = from_record(meta.model)
    whole = restore_whole(*base_of(meta.adapter, layout.step_dir(run_dir, step)), target)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, target)
    everywhere = NamedSharding(jax.tree.leaves(layouts)[0].mesh, PartitionSpec())
    shapes = adapting.adapter_shapes(config, lora)
    wanted = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere), shapes)
    own = reading.restore(run_dir, step, wanted)
    join = partial(adapting.merge, config, lora)
    return jax.jit(join, out_shardings=layouts, donate_argnums=0)(whole, own)


def _merged(config: LlamaConfig, lora: Lora, base: Reader, own: Reader) -> Reader:
    """A reader of the base with the adapters in it, a layer at a time."""
    matrices = {m.path: m for m in adapting.matrices(config)}
    has = {m.path for m in adapting.targets(config, lora)}
    names = ("down", "up", "magnitude") if lora.dora else ("down", "up")
    join = jax.jit(partial(adapting.merged, lora))

    def one(m: Matrix, layer: int, box: Sequence[slice] | None) -> np.ndarray:
        inputs, outputs = m.shapes(config)
        box = [slice(None)] * (len(inputs) + len(outputs)) if box is None else list(box)
        ins, outs = box[: len(inputs)], box[len(inputs) :]
        # Blocks and lengths run along all inputs, so these are read whole and cut afterwards.
        w = base(m.path, layer, [slice(None)] * len(inputs) + outs)
        adapter = {}
        for name in names if m.path in has else ():
            part = own(f"{m.path}/{name}", layer, None)
            if name != "down":
                ahead = part.shape[:-1]
                part = part.reshape(*ahead, *outputs)[(slice(None),) * len(ahead) + tuple(outs)].reshape(*ahead, -1)
            adapter[name] = jnp.asarray(part)
        found = np.asarray(join(jnp.asarray(w.reshape(m.rows, -1)), adapter))
        return found.reshape(w.shape)[tuple(ins)]

    def read(path: str, layer: int | None, box: Sequence[slice] | None) -> np.ndarray:
        if path in ("embed/table", "head/table"):
            return np.asarray(adapting.as_kept(jnp.asarray(base(path, layer, box)), lora.base, matrix=False))
        if path not in matrices:
            return base(path, layer, box)
        if layer is not None:
            return one(matrices[path], layer, box)
        layers, box = (range(config.layers), None) if box is None else (range(config.layers)[box[0]], box[1:])
        return np.stack([one(matrices[path], index, box) for index in layers])

    return read
