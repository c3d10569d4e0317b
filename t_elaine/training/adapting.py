"""Where a run with adapters begins: its base, read piece by piece into the dtype it is kept in, and its adapters.

A run without adapters begins by `start`; this only sees to it that neither goes on as the other.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t_elaine.checkpoints import adapters as reading_whole
from t_elaine.checkpoints import layout, reading
from t_elaine.checkpoints.adapters import Reader
from t_elaine.checkpoints.arrays import named
from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.errors import UserError
from t_elaine.model import lora as adapters
from t_elaine.model.config import LlamaConfig
from t_elaine.model.lora import Lora, Matrix
from t_elaine.model.quantised import KINDS, Quantised
from t_elaine.training import optimizer as optim
from t_elaine.training import start as starting
from t_elaine.training.start import Begun, Start
from t_elaine.training.step import State, init_state
from t_elaine.training.trained import BASE

Ranges = tuple[tuple[int, int], ...]
Say = Callable[[str], None]


def begin(
    run_dir: str,
    start: Start,
    config: LlamaConfig,
    shapes: State,
    vocabulary_sha256: str,
    seed: int,
    say: Say,
    lora: Lora | None = None,
) -> Begun:
    """`start.begin`, for runs with adapters too.

    Args:
        run_dir, start, config, shapes, vocabulary_sha256, seed, say: as there.
        lora: the adapters' settings; None: the whole model is trained.

    Raises:
        UserError: no base, another base than the adapters', other settings than the run was begun with.
    """
    newest = reading.newest_record(run_dir)
    if newest is not None:
        check_same(newest.adapter, lora, layout.step_dir(run_dir, newest.step))
    if lora is None:
        return starting.begin(run_dir, start, config, shapes, vocabulary_sha256, seed, say)
    if newest is None or newest.adapter is None:
        return anew(start, config, lora, shapes, vocabulary_sha256, seed, say)
    begun = starting.resume(run_dir, config, shapes, vocabulary_sha256, say)
    base = reading_whole.base_of(newest.adapter, run_dir)
    held = open_base(base, config, lora, shapes[BASE], say)
    return dataclasses.replace(begun, state=begun.state | {BASE: held}, adapter=newest.adapter)


def anew(
    start: Start, config: LlamaConfig, lora: Lora, shapes: State, vocabulary_sha256: str, seed: int, say: Say
) -> Begun:
    """A new run's base, and adapters that change nothing, or those of another run."""
    given = given_adapter(start, lora)
    if start.checkpoint is None and given is None:
        mend = "give Start.checkpoint: an imported model or a run whose weights stay as they are"
        raise UserError("adapters need a model to stand beside", "train.lora", mend)
    if given is None or given[2].adapter is None:
        base = layout.resolve(str(start.checkpoint))
    else:
        base = reading_whole.base_of(given[2].adapter, layout.step_dir(*given[:2]), start.checkpoint)
    meta = layout.read_meta(*base)
    reading.check_model(meta, layout.step_dir(*base), dataclasses.asdict(config), vocabulary_sha256)
    held = open_base(base, config, lora, shapes[BASE], say)
    where = jax.tree.map(lambda leaf: leaf.sharding, {k: v for k, v in shapes.items() if k != BASE})
    moment = jax.tree.leaves(shapes["opt_state"]["mu"])[0].dtype
    if given is None:
        make = jax.jit(partial(adapters.init, config, lora), out_shardings=where["params"])
        own = make(held, jax.random.key(seed))
    else:
        own = reading.restore(*given[:2], shapes["params"])
        say(f"adapters from {layout.step_dir(*given[:2])}")
    fresh = partial(init_state, first_moment_dtype=moment, extras=optim.extras_of(shapes["opt_state"]))
    state = jax.jit(fresh, out_shardings=where, donate_argnums=0)(own)
    parent, adapter = layout.step_dir(*base), reading_whole.record(base, lora)
    altered = given is not None or lora.base in KINDS
    return Begun(state | {BASE: held}, 0, parent, False, adapter, altered)


def given_adapter(start: Start, lora: Lora) -> tuple[str, int, CheckpointMeta] | None:
    """The checkpoint whose adapters a new run takes over."""
    if start.adapter is None:
        return None
    run_dir, step = layout.resolve(start.adapter)
    meta = layout.read_meta(run_dir, step)
    if meta.adapter is None:
        raise UserError(
            "this checkpoint holds a whole model, no adapters", start.adapter, "give it as Start.checkpoint"
        )
    check_same(meta.adapter, lora, layout.step_dir(run_dir, step), free=("dropout", "base"))
    return run_dir, step, meta


def check_same(
    adapter: Mapping[str, Any] | None, lora: Lora | None, where: str, free: tuple[str, ...] = ("dropout",)
) -> None:
    """Refuse to go on with adapters of other settings, or to train a whole model where adapters were; and back.

    Args:
        adapter: the checkpoint's record of them; None: it is of a whole model.
        lora: the settings now.
        where: the checkpoint.
        free: settings that may differ.
    """
    if (adapter is None) != (lora is None):
        there, here = ("the whole model", "adapters")[:: 1 if adapter is None else -1]
        raise UserError(
            f"{there} was trained here, {here} would be now", where, "take another RUN_DIR or the same lora"
        )
    if adapter is None or lora is None:
        return
    named = lambda held: {**held, "targets": adapters.target_names(held["targets"])}  # noqa: E731
    old, new = named(adapter["lora"]), named(lora.record())
    differ = [key for key in new if key not in free and old[key] != new[key]]
    lines = [f"{key}: {old[key]} there, {new[key]} here" for key in differ]
    if lines:
        raise UserError(
            f"the adapters are of other settings ({'; '.join(lines)})", where, "give the settings they have"
        )


def open_base(base: tuple[str, int], config: LlamaConfig, lora: Lora, shapes: Any, say: Say) -> Any:
    """The frozen base on the devices, its files compared with their digests first."""
    where = layout.step_dir(*base)
    if found := reading_whole.faults(*base):
        raise UserError(f"the base is damaged: {found[0]}", where, "take another checkpoint, or import the model again")
    held = load(reading_whole.whole_reader(*base), config, lora.base, shapes, where)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(held))
    say(f"base {where}: frozen, {size / 2**30:.2f} GiB as {lora.base}")
    return held


def load(read: Reader, config: LlamaConfig, kept: str, shapes: Any, where: str) -> Any:
    """A base from float32 tensors, a layer at a time: beside its pieces no more than one layer of a matrix is held.

    Args:
        read: the parent's tensors.
        config: the model.
        kept: the dtype, see `Lora.base`.
        shapes: `ShapeDtypeStruct`s with shardings.
        where: the parent, for messages.
    """
    matrices = {m.path: m for m in adapters.matrices(config)}
    is_whole = lambda leaf: isinstance(leaf, Quantised)  # noqa: E731
    tree: dict[str, Any] = {}
    for path, leaf in named(shapes, is_leaf=is_whole).items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        if path in matrices:
            node[last] = _matrix(read, matrices[path], config, kept, leaf, where)
        else:
            node[last] = _plain(read, path, leaf, where)
    return tree


def _finite(values: np.ndarray, path: str, where: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise UserError(f"{path} holds numbers that are not finite", where, "take another checkpoint")
    return values


def _plain(read: Reader, path: str, leaf: Any, where: str) -> jax.Array:
    """A table, a norm or a bias."""
    stacked = path.startswith("layers/")

    def piece(index: Any) -> np.ndarray:
        if not stacked:
            return _finite(read(path, None, index), path, where).astype(leaf.dtype)
        layers = range(leaf.shape[0])[index[0]]
        return np.stack([_finite(read(path, n, index[1:]), path, where) for n in layers]).astype(leaf.dtype)

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, piece)


def _matrix(read: Reader, m: Matrix, config: LlamaConfig, kept: str, leaf: Any, where: str) -> Any:
    """A matrix of all layers. Inputs are read whole, since blocks run along them; outputs, the pieces of this host."""
    parts = {"codes": leaf.codes, "scales": leaf.scales} if kept in KINDS else {"all": leaf}
    pieces = {
        (name, ranges): np.empty([b - a for a, b in ranges], part.dtype)
        for name, part in parts.items()
        for ranges in _ranges(part)
    }
    keep = jax.jit(lambda w: adapters.kept_as(w, kept, matrix=True))
    for layer in range(config.layers):
        for columns in {ranges[2] for _, ranges in pieces}:
            values = _finite(_columns(read, m, config, layer, columns), m.path, where)
            found = keep(jnp.asarray(values))
            made = {"codes": found.codes, "scales": found.scales} if kept in KINDS else {"all": found}
            made = {name: np.asarray(array) for name, array in made.items()}
            for (name, ranges), piece in pieces.items():
                if ranges[2] == columns:
                    piece[layer] = made[name][slice(*ranges[1])]

    def placed(name: str, part: Any) -> jax.Array:
        piece = lambda index: pieces[name, _bounds(index, part.shape)]  # noqa: E731
        return jax.make_array_from_callback(part.shape, part.sharding, piece)

    whole = {name: placed(name, part) for name, part in parts.items()}
    return Quantised(**whole, kind=kept) if kept in KINDS else whole["all"]


def _ranges(part: Any) -> Iterator[Ranges]:
    """The pieces that this host's devices hold, each once. (Layers are never split.)"""
    indices = part.sharding.addressable_devices_indices_map(part.shape).values()
    yield from dict.fromkeys(_bounds(index, part.shape) for index in indices)


def _bounds(index: Any, shape: tuple[int, ...]) -> Ranges:
    return tuple(cut.indices(size)[:2] for cut, size in zip(index, shape, strict=True))


def _columns(read: Reader, m: Matrix, config: LlamaConfig, layer: int, columns: tuple[int, int]) -> np.ndarray:
    """[in, columns] of one layer, reading no other heads than it needs."""
    inputs, outputs = m.shapes(config)
    inner = outputs[-1] if len(outputs) > 1 else 1
    first, last = columns[0] // inner, -(-columns[1] // inner)
    box = [slice(None)] * len(inputs) + [slice(first, last)] + [slice(None)] * (len(outputs) - 1)
    found = read(m.path, layer, box).reshape(m.rows, -1)
    return found[:, columns[0] - first * inner : columns[1] - first * inner]
