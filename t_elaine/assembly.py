"""The root function of `train`: puts mesh, data, model, checkpoints and loop together.

It stands beside the commands, not in `training/`, because it alone joins the data (which training may not import) to
the loop; nothing below imports it.
"""

import dataclasses
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from t_elaine import feeding, guarding, made_of, measuring, paths, preferring, rehearsal
from t_elaine.checkpoints.layout import CheckpointMeta, complete_steps
from t_elaine.checkpoints.writing import Checkpointing, Checkpoints
from t_elaine.data.mixture import Mixture
from t_elaine.errors import UserError
from t_elaine.feeding import Feed
from t_elaine.forgetting import EXCEEDED, Forgetting, Group
from t_elaine.model import capability
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.model.lora import Lora
from t_elaine.parallel import agreement
from t_elaine.parallel.hosts import Hosts, together, without_hosts
from t_elaine.parallel.line import Line
from t_elaine.parallel.mesh import MeshConfig, described, make_mesh
from t_elaine.parallel.pace import Pace
from t_elaine.preferring import Judged
from t_elaine.training import loop as looping
from t_elaine.training import run_folder, tracing
from t_elaine.training.adapting import begin
from t_elaine.training.building import build_step
from t_elaine.training.compilation import compiled, keep_compiled
from t_elaine.training.fit import check_fit, text
from t_elaine.training.footprint import Footprint
from t_elaine.training.hours import ChipHours
from t_elaine.training.lease import Lease
from t_elaine.training.loop import Handed, Loop
from t_elaine.training.metrics import mfu
from t_elaine.training.optimizer import AdamW, Schedule
from t_elaine.training.packed import check_packing
from t_elaine.training.preference import Preference
from t_elaine.training.sinks import open_sinks
from t_elaine.training.start import Begun, Start, check_model, split_state
from t_elaine.training.step import Step, batch_layout, batch_shapes, token_count
from t_elaine.training.stopping import stopping
from t_elaine.training.watchdog import Watch, Watchdog


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything of one run that is fixed before its first step."""

    folder: str
    model: LlamaConfig
    compute: ComputeConfig
    data: Mixture
    loop: Loop
    feed: Feed
    groups: list[Group]
    forgetting: Forgetting | None
    preference: Preference | None
    step: Step
    meta: CheckpointMeta
    hosts: Hosts
    line: Line | None
    watch: Watch
    traced: range
    judged: Judged | None = None  # pairs held out, where the run learns from preferences


def train(
    *,
    run_dir: str,
    model: LlamaConfig,
    data: Mixture,
    loop: Loop,
    optimizer: AdamW | None = None,
    schedule: Schedule | None = None,
    compute: ComputeConfig | None = None,
    mesh: MeshConfig | None = None,
    hosts: Hosts | None = None,
    watchdog: Watchdog | None = None,
    lease: Lease | None = None,
    checkpoints: Checkpointing | None = None,
    start: Start | None = None,
    lora: Lora | None = None,
    forgetting: Forgetting | None = None,
    preference: Preference | None = None,
    rows_per_device: int = 1,
    seed: int = 0,
    verify_stores: bool = True,
    z_loss: float = 0.0,
    compiler_options: Mapping[str, str] | None = None,
    compilation_cache: str | None = "~/.cache/t-elaine/xla",
    take_over: bool = False,
    profile: str = "",
    rehearse: bool = False,
    keep_rehearsal: bool = False,
    argv: Sequence[str] = (),
    config_text: str = "",
) -> int:
    """Train a model, or go on with a run that was stopped in any way.

    Args:
        run_dir: the run's folder; one that holds checkpoints is resumed.
        model: the model's shape.
        data: stores, weights, row length and batch.
        loop: steps, evaluation, when to give up.
        optimizer: AdamW's settings.
        schedule: learning rate over the run.
        compute: dtype, recomputation, attention.
        mesh: devices along each axis.
        hosts: how the processes of the run find each other.
        watchdog: when a run that does not move is ended.
        lease: when a run's folder in an object store counts as left.
        checkpoints: how often they are written, how many are kept.
        start: weights of a new run; None: random ones.
        lora: train adapters beside the start's weights, which stay as they are; None: train the weights.
        forgetting: how much may be lost against the parent on held-out text before the run is stopped; None: all.
        preference: learn from pairs of answers (DPO, RPO), compared with the start; None: from every trained token.
        rows_per_device: rows of a microbatch on one device; accumulation follows from the batch.
        seed: of random initial weights.
        verify_stores: compare every store file with its sha256 first (reads all of them).
        z_loss: coefficient of the squared log-normaliser in what is minimised (1e-4 is common); 0: none.
        compiler_options: XLA options for the step.
        compilation_cache: folder in which compiled steps are kept between runs; None: nowhere.
        take_over: take a run's folder in an object store from the process that holds it, saying whose it was.
        profile: steps to trace into RUN_DIR/profile, as "3" or "5:8"; "": none.
        rehearse: try the run out here instead: 20 steps, a kill, going on, export with proof; then what it will cost.
        keep_rehearsal: leave the rehearsal's folder, RUN_DIR-rehearsal, where it is.
        argv: the command's arguments, for command.txt.
        config_text: operative settings, for config.gin and the config hash.

    Returns:
        the exit code: 0 when finished or stopped in good order.

    Raises:
        UserError: anything that the user can mend.
    """
    given = locals()
    if rehearse:
        return rehearsal.rehearse(given)
    traced = tracing.steps_of(profile, loop.steps)
    hosts, config_text = hosts or Hosts(), without_hosts(config_text)
    with (
        together(hosts, run_folder.same_on_all_hosts(), config_text) as line,
        Watch(watchdog or Watchdog(), lambda reason: line.fail(reason, stacks=True) if line else None) as watch,
    ):
        keep_compiled(compilation_cache)
        devices = make_mesh(mesh or MeshConfig())
        introduce(devices, line)
        device = devices.devices.flat[0]
        length, pieces = data.sequence_length, devices.shape["context"]
        compute, warning = capability.usable(
            compute or ComputeConfig(), length, model.head_dim, device.platform, pieces, device.device_kind
        )
        if warning:
            say(f"warning: {warning}")
        check_model(run_dir, start or Start(), model, length, say)
        moment = (optimizer or AdamW()).first_moment_dtype
        microbatches = feeding.batch_shape(data, rows_per_device, devices.shape)[0]
        kept = bool(optimizer and optimizer.average)
        needed, there = check_fit(model, compute, devices, rows_per_device, length, moment, microbatches, lora, kept)
        say(f"a device needs about {text(needed.total)} of {text(there)}")
        check_packing(model, compute, devices, length, say)
        with run_folder.in_use(run_dir, lease, take_over, say):
            feed = feeding.open_feed(data, rows_per_device, batch_layout(devices), model.vocab_size, verify_stores, say)
            preferring.check(preference, feed.loader.plan, start, lora, z_loss)
            groups = guarding.groups(feed.loader.groups, forgetting)
            step = build_step(
                model,
                compute,
                optimizer,
                schedule,
                loop.steps,
                devices,
                len(groups),
                feed.byte_lengths,
                compiler_options,
                z_loss,
                lora,
                seed,
                preference,
            )
            begun = begin(run_dir, start or Start(), model, step.state_shapes, feed.vocabulary_sha256, seed, say, lora)
            meta = CheckpointMeta(
                step=begun.step,
                tokens=0,
                row=0,
                vocabulary_sha256=feed.vocabulary_sha256,
                model=dataclasses.asdict(model),
                config_hash=run_folder.config_hash(config_text),
                parent=begun.parent,
                adapter=begun.adapter,
            )
            run = Run(
                folder=run_dir,
                model=model,
                compute=compute,
                data=data,
                loop=loop,
                feed=feed,
                groups=groups,
                forgetting=forgetting,
                preference=preference,
                step=step,
                meta=meta,
                hosts=hosts,
                line=line,
                watch=watch,
                traced=traced,
            )
            rows = made_of.rows_as_begun(run, begun)
            if begun.step < loop.steps or not begun.resumed:  # a finished run keeps the records of what trained it
                made_of.record(run, begun, rows, config_text, argv, say)
            return watched(run, begun, start, checkpoints or Checkpointing())


def watched(run: Run, begun: Begun, start: Start | None, settings: Checkpointing) -> int:
    """Run the loop; whatever ends it, status.json says so (but for SIGKILL, after which it still says "running")."""
    run_folder.write_status(run.folder, "running", "", begun.step)
    writing = threading.Lock()
    hours = ChipHours(run.folder, begun.step, run.loop.price_per_chip_hour)

    def stopped(reason: str) -> None:
        with writing:
            run_folder.write_status(run.folder, "stopped", reason, max([0, *complete_steps(run.folder)]))

    run.watch.on_end = stopped
    if run.line is not None:
        run.line.on_end = stopped
    try:
        if not begun.resumed and begun.parent is not None:
            measuring.probe(run, begun, say)
        run = preferring.with_reference(run, begun, start, say)
        with (
            stopping(run.loop.max_chip_hours, hours.now) as stop,
            Checkpoints(run.folder, settings, say) as checkpoints,
        ):
            done, reason = go(run, begun, checkpoints, stop, hours)
    except UserError as error:
        stopped(error.what)
        raise
    except BaseException as error:
        if run.line is not None and isinstance(error, Exception):
            run.line.await_news()  # a collective fails when another host dies: the line then ends us, naming it
        stopped(repr(error))
        raise
    states = {"finished": "finished", "preempted": "preempted"}
    told = guarding.told(run) if reason == looping.FORGOT else reason
    run_folder.write_status(run.folder, states.get(reason, "stopped"), told, done)
    if done > run.loop.steps:
        say(f"it has {done} steps already, more than the {run.loop.steps} asked for: nothing was trained")
    else:
        say(f"{told} at step {done} of {run.loop.steps}; {hours.told()}; the run lies in {run.folder}")
    agreement.wait_for_all("end")  # process 0 seals the last checkpoint: until then the others keep its line open
    return EXCEEDED if reason == looping.FORGOT else 0


def go(
    run: Run, begun: Begun, checkpoints: Checkpoints, stop: Callable[[int], str | None], hours: ChipHours
) -> tuple[int, str]:
    """Compile, train, and leave everything saved. Returns (updates done, why it ended)."""
    loop, feed, step = run.loop, run.feed, run.step
    if begun.step >= loop.steps:
        return begun.step, looping.FORGOT if guarding.stopped_at(run, begun.step) else "finished"
    if loop.stop_at is not None and begun.step >= loop.stop_at:
        return begun.step, looping.ASKED
    start = time.perf_counter()
    ready = compiled(step, step.state_shapes, batch_shapes(*feed.shape, step.batch_sharding, step.arrays), say)
    footprint = Footprint(ready, time.perf_counter() - start, say)
    traced = tracing.Traced(ready, begun.step, run.traced, run.folder, say)
    agreement.wait_for_all("compiled")  # hosts compile for unequal times, which is no slow step
    kinds = [device.device_kind for device in step.batch_sharding.mesh.devices.flat]
    length = run.data.sequence_length

    def save(state: dict[str, Any]) -> None:
        params, rest = split_state(state)
        done = int(rest["step"])
        rows = done * feed.shape[0] * feed.shape[1]
        meta = dataclasses.replace(run.meta, step=done, tokens=token_count(rest["tokens"]), row=rows)
        checkpoints.save(params, meta, rest)
        hours.write(done)
        if run_folder.is_main():
            told = json.dumps(feed.loader.describe(done), indent=1) + "\n"
            paths.write_text(paths.join(run.folder, "mixture.json"), told)

    evaluated = measuring.evaluators(run, say)
    forgot = guarding.judge(run, begun, evaluated, say)
    sinks = open_sinks(
        run.folder, begun.step if begun.resumed else -1, loop.steps, loop.print_every, run_folder.is_main()
    )
    handed = Handed(
        step=traced,
        batches=feed.batches(begun.step, loop.steps),
        groups=run.groups,
        due=checkpoints.due,
        save=save,
        stop=stop,
        mfu=lambda rate: mfu(run.model, run.compute, length, rate, kinds, run.meta.adapter is not None),
        evaluators=evaluated,
        judge=forgot,
        sinks=[*sinks, *([footprint] if run_folder.is_main() else [])],
        spent=lambda: hours.figures() | footprint.figures(),
        watch=run.watch.on,
    )
    if run.line is not None:
        handed.pace = Pace(run.line, run.hosts.report_every, run.hosts.slow_factor, say).step
    try:
        state, reason = looping.run(begun.state, begun.step, loop, handed)
        with run.watch.on("checkpoint"):
            checkpoints.wait()
        hours.write(int(state["step"]))
    finally:
        traced.close()
        handed.batches.close()
        for sink in sinks:
            sink.close()
    return int(state["step"]), reason


def introduce(mesh: Mesh, line: Line | None) -> None:
    """Print hosts, mesh and links, before anything else is said."""
    names = {0: socket.gethostname()} if line is None else line.hosts
    say("\n".join(described(mesh, names)))


def say(message: str) -> None:
    """Tell the person, once however many hosts there are."""
    if run_folder.is_main():
        print(message, flush=True)
