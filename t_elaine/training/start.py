"""Where a run's state comes from, in one place: its own newest sound checkpoint, given weights, or random ones."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from t_elaine.checkpoints import adapters, layout, reading, writing
from t_elaine.errors import UserError
from t_elaine.model import llama
from t_elaine.model.config import LlamaConfig
from t_elaine.training import optimizer as optim
from t_elaine.training.step import State, init_state
from t_elaine.training.trained import BASE, PARAMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """What a new run begins with; a run that has checkpoints goes on from those.

    Args:
        checkpoint: run folder (or RUN_DIR/checkpoints/N) whose parameters are taken; None: random ones from the seed.
        adapter: for train.lora: run folder whose adapters are taken over; None: new ones, which change nothing.
    """

    checkpoint: str | None = None
    adapter: str | None = None


@dataclasses.dataclass(frozen=True)
class Begun:
    """A state on the devices and where it came from.

    Args:
        state: see `step.init_state`.
        step: updates done.
        parent: run folder that the weights came from first, None for random ones.
        resumed: True if the run went on from its own checkpoint.
        adapter: what checkpoints say of adapters and their base (`checkpoints.adapters.record`); None without any.
        altered: it computes something else than its parent: matrices in few bits, or adapters that were taken over.
    """

    state: State
    step: int
    parent: str | None
    resumed: bool
    adapter: dict[str, Any] | None = None
    altered: bool = False


def split_state(state: State) -> tuple[Any, dict[str, Any]]:
    """(what is trained, the rest of what changes), the two items of a checkpoint; a frozen base is in neither."""
    return state[PARAMS], {name: value for name, value in state.items() if name not in (PARAMS, BASE)}


def begin(
    run_dir: str,
    start: Start,
    config: LlamaConfig,
    shapes: State,
    vocabulary_sha256: str,
    seed: int,
    say: Callable[[str], None],
) -> Begun:
    """The state that training goes on from.

    Args:
        run_dir: the run's folder.
        start: for a new run.
        config: the model in force.
        shapes: of the state, with shardings (`Step.state_shapes`); a resumed run's moments are converted to theirs.
        vocabulary_sha256: of the stores.
        seed: of random weights.
        say: takes messages.

    Raises:
        UserError: a checkpoint of another model or vocabulary, or none that is sound.
    """
    if start.adapter is not None:
        raise UserError("adapters are given, and the whole model is trained", "Start.adapter", "set train.lora too")
    if layout.agreed_steps(run_dir):
        return resume(run_dir, config, shapes, vocabulary_sha256, say)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    moment = jax.tree.leaves(shapes["opt_state"]["mu"])[0].dtype
    fresh = partial(init_state, first_moment_dtype=moment, extras=optim.extras_of(shapes["opt_state"]))
    make = jax.jit(fresh, out_shardings=shardings, donate_argnums=0)
    if start.checkpoint is None:
        init = jax.jit(lambda key: llama.init(config, key), out_shardings=shardings["params"])
        return Begun(make(init(jax.random.key(seed))), 0, None, False)
    parent, step = _resolved(start.checkpoint, config, vocabulary_sha256)
    params = adapters.restore_whole(parent, step, shapes["params"])
    say(f"starting from {layout.step_dir(parent, step)}")
    return Begun(make(params), 0, layout.step_dir(parent, step), False)


def check_model(run_dir: str, start: Start, config: LlamaConfig, length: int, say: Callable[[str], None]) -> None:
    """Compare a new run's start with the model in force before anything is reckoned or compiled; `length`: of its rows.

    Raises:
        UserError: no such checkpoint, or one of another model.
    """
    if length > config.max_position:
        say(f"warning: rows of {length} tokens are longer than the model's context, {config.max_position}")
    if start.checkpoint is not None and not layout.complete_steps(run_dir):
        _resolved(start.checkpoint, config, None)


def _resolved(checkpoint: str, config: LlamaConfig, vocabulary_sha256: str | None) -> tuple[str, int]:
    """A start's run folder and step, compared with the model in force and with a vocabulary if one is given."""
    parent, step = layout.resolve(checkpoint)
    meta = layout.read_meta(parent, step)
    reading.check_model(meta, layout.step_dir(parent, step), dataclasses.asdict(config), vocabulary_sha256)
    return parent, step


def resume(
    run_dir: str,
    config: LlamaConfig,
    shapes: State,
    vocabulary_sha256: str,
    say: Callable[[str], None],
) -> Begun:
    """Go on from the newest sound checkpoint of a run; damaged newer ones are set aside, in RUN_DIR/damaged."""
    steps = layout.agreed_steps(run_dir)
    params, rest = split_state(shapes)
    # Whose it is comes from the newest sound record: a wrong model must not look like damage, nor damage like one.
    newest = reading.newest_record(run_dir)
    if newest is not None:
        where = layout.step_dir(run_dir, newest.step)
        reading.check_model(newest, where, dataclasses.asdict(config), vocabulary_sha256)
    saved = extras_in(run_dir, newest.step) if newest is not None else optim.extras_of(rest["opt_state"])
    target = {"params": params, "optimizer": {**rest, "opt_state": _with_extras(rest["opt_state"], params, saved)}}
    found, meta = reading.restore_newest(run_dir, target, "state", say)
    found["optimizer"]["opt_state"] = _wanted(found, optim.extras_of(rest["opt_state"]), say)
    if jax.process_index() == 0:
        for step in steps:
            if step > meta.step:
                say(f"checkpoint {step} was moved to {writing.set_aside(run_dir, step)}")
    say(f"going on from checkpoint {meta.step}: {meta.tokens:,} tokens seen, next row {meta.row:,}")
    return Begun({"params": found["params"], **found["optimizer"]}, meta.step, meta.parent, True)


def extras_in(run_dir: str, step: int) -> tuple[str, ...]:
    """What a checkpoint's optimizer holds beside its moments: its settings need not have been today's."""
    names = {path.split("/")[1] for path in reading.tensors(run_dir, step, layout.OPTIMIZER) if path.count("/")}
    return optim.extras_of(dict.fromkeys(names))


def _with_extras(opt_state: dict[str, Any], params: Any, extras: tuple[str, ...]) -> dict[str, Any]:
    """Shapes of an optimizer's state with these extras."""
    count = opt_state["count"]
    mean = jax.ShapeDtypeStruct((), "float32", sharding=count.sharding)
    shapes = {optim.AVERAGE: params, optim.SPIKES: {"mean": mean, "seen": count}}
    moments = {name: tree for name, tree in opt_state.items() if name not in shapes}
    return moments | {name: shapes[name] for name in extras}


def _wanted(found: State, extras: tuple[str, ...], say: Callable[[str], None]) -> dict[str, Any]:
    """A restored optimizer's state with the extras of the settings in force: what is new begins now."""
    opt_state = found["optimizer"]["opt_state"]
    saved = optim.extras_of(opt_state)
    if saved == extras:
        return opt_state
    say(f"kept beside the weights: {', '.join(extras) or 'nothing'}; up to here it was {', '.join(saved) or 'nothing'}")
    new = tuple(name for name in extras if name not in saved)
    where = jax.tree.map(lambda leaf: leaf.sharding, found["params"])
    here = opt_state["count"].sharding
    further = {optim.AVERAGE: where, optim.SPIKES: {"mean": here, "seen": here}}
    make = jax.jit(partial(optim.init_extras, extras=new), out_shardings={name: further[name] for name in new})
    kept = {name: tree for name, tree in opt_state.items() if name in extras or name not in further}
    return kept | make(found["params"])
