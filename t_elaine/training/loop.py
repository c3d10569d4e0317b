"""The loop: batch, step, metrics of the step before, evaluators, checkpoint. Read it from top to bottom.

It is handed everything: it opens no corpus, no exam and no checkpoint, and knows no mesh.
"""

import dataclasses
import statistics
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax

from t_elaine.errors import UserError
from t_elaine.training.metrics import Record, step_record
from t_elaine.training.sinks import Sink
from t_elaine.training.step import weights

State = dict[str, Any]
Metrics = dict[str, jax.Array]
USES = ("data", "compute", "waiting", "evaluation", "checkpoint")  # waiting, for the devices, is a part of compute
ASKED = "stopped as asked"  # Loop.stop_at
FORGOT = "forgotten"  # Handed.judge said so
# (name, every, what): every so many steps (and at the end) what(`step.weights`) → sums' record as from
# `metrics.by_group`.
Evaluator = tuple[str, int, Callable[[Any], Record]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """How long a run goes and when it says something.

    Args:
        steps: updates in the whole run, resumes included.
        print_every: steps between lines where output is no terminal (metrics.jsonl has every step).
        evaluate_every: steps between held-out evaluations; 0: only at the start and the end.
        evaluate_tokens: held-out tokens read each time of each store and group; 0: none, ever.
        stop_at: step after which the run saves and stops, to go on another time; None: none.
        stop_after_skipped: updates skipped in a row (loss or gradient not finite, or a spike) that stop the run.
        max_chip_hours: device hours, of all starts together, after which the run saves and stops; None: no limit.
        price_per_chip_hour: of one device, in any currency: the log, the report and the card then tell the cost.
    """

    steps: int
    print_every: int = 1
    evaluate_every: int = 0
    evaluate_tokens: int = 65536
    stop_at: int | None = None
    stop_after_skipped: int = 5
    max_chip_hours: float | None = None
    price_per_chip_hour: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "print_every", "stop_after_skipped"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", "Loop", "give at least 1")


@dataclasses.dataclass(kw_only=True)
class Handed:
    """What the loop works with, made by the command."""

    step: Callable[[State, Any], tuple[State, Mapping[str, jax.Array]]]
    batches: Generator[Any, None, None]
    groups: Sequence[tuple[str, str]]
    due: Callable[[int], bool]
    save: Callable[[State], None]
    stop: Callable[[int], str | None]
    mfu: Callable[[float], float | None]
    evaluators: Sequence[Evaluator] = ()
    judge: Callable[[int, Record], str] = lambda done, record: ""  # of an evaluation: what was forgotten
    sinks: Sequence[Sink] = ()
    spent: Callable[[], Mapping[str, float]] = dict
    pace: Callable[[int, float, float], None] = lambda done, own, whole: None
    watch: Callable[[str], AbstractContextManager[None]] = lambda part: nullcontext()


class Clock:
    """Seconds since the last `lap`, by what they were spent on."""

    def __init__(self, watch: Callable[[str], AbstractContextManager[None]] = lambda part: nullcontext()) -> None:
        """watch: told of each part, see `watchdog`."""
        self._watch = watch
        self._spent: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count the time inside as spent on `what`."""
        start = time.perf_counter()
        try:
            with self._watch(what), jax.profiler.TraceAnnotation(what):
                yield
        finally:
            self._spent[what] = self._spent.get(what, 0.0) + time.perf_counter() - start

    def lap(self) -> dict[str, float]:
        """Seconds by use, and their whole; starts again from zero."""
        now = time.perf_counter()
        spent = {"step": now - self._start, **dict.fromkeys(USES, 0.0)} | self._spent
        self._start, self._spent = now, {}
        return {name: round(seconds, 6) for name, seconds in spent.items()}


def run(state: State, first: int, loop: Loop, handed: Handed) -> tuple[State, str]:
    """Train from step `first` to the end, or until something stops it.

    The metrics of a step are read while the next one runs, so the devices never wait for the host. Before a checkpoint
    they are read at once: a checkpoint never stands ahead of its lines.

    Args:
        state: on the devices; given up (its buffers are donated).
        first: updates done already.
        loop: settings.
        handed: step, batches, sinks and the rest.

    Returns:
        the state, and why it ended: "finished", "preempted", "chip hours", `ASKED` or `FORGOT`.

    Raises:
        UserError: too many updates in a row were skipped, or a checkpoint could not be written.
    """
    clock, recent = Clock(handed.watch), deque[float](maxlen=20)
    pending: tuple[int, Metrics] | None = None
    with jax.transfer_guard("disallow"):
        if first == 0:
            evaluate(state, 0, handed, every_one=True)
        clock.lap()
        for done in range(first + 1, loop.steps + 1):
            with clock.on("data"):
                batch = next(handed.batches)
            with clock.on("compute"):
                state, metrics = handed.step(state, batch)
                read = None
                if pending is not None:
                    with clock.on("waiting"):
                        read = (pending[0], jax.device_get(pending[1]))
            if read is not None:
                report(*read, clock.lap(), loop, handed, recent)
            pending = (done, dict(metrics))
            stop = handed.stop(done) or (ASKED if done == loop.stop_at else None)
            last = done == loop.steps or stop is not None
            evaluating = any(every and done % every == 0 for _, every, _ in handed.evaluators)
            if not (last or evaluating or handed.due(done)):
                continue
            with clock.on("compute"), clock.on("waiting"):
                now = jax.device_get(pending[1])
            report(done, now, clock.lap(), loop, handed, recent)
            pending = None
            with clock.on("evaluation"):
                forgot = evaluate(state, done, handed, every_one=last and stop is None)
            if last or forgot or handed.due(done):
                with clock.on("checkpoint"):
                    save(state, handed)
            if forgot or stop is not None:
                return state, FORGOT if forgot else str(stop)
    return state, "finished"


def report(
    done: int, read: Mapping[str, Any], seconds: dict[str, float], loop: Loop, handed: Handed, recent: deque[float]
) -> None:
    """Hand a step's record to the sinks; stop the run if too many updates in a row were skipped.

    Args:
        done: updates done after the step.
        read: its metrics, on the host.
        seconds: between the reading of the metrics before and of these, by use. Tokens a second and MFU count data and
            compute; a checkpoint or evaluation in between stands beside them.
        loop: settings.
        handed: sinks, groups.
        recent: seconds of the latest steps, for the time left.
    """
    record = step_record(done, read, handed.groups)
    recent.append(seconds["step"])
    rate = record["batch_tokens"] / max(seconds["data"] + seconds["compute"], 1e-9)
    record |= {"seconds": seconds, "tokens_per_second": round(rate, 1), "mfu": handed.mfu(rate)}
    record |= handed.spent()
    handed.pace(done, seconds["data"] + seconds["compute"] - seconds["waiting"], seconds["data"] + seconds["compute"])
    record["seconds_left"] = round(statistics.median(recent) * (loop.steps - done), 1)
    for sink in handed.sinks:
        sink.write(record)
    if record["skipped_in_a_row"] >= loop.stop_after_skipped:
        why = "a spike (AdamW.skip_above)" if record["loss"] and record["grad_norm"] else "not finite"
        what = f"the loss or gradient was {why} in {record['skipped_in_a_row']} steps in a row, up to step {done}"
        mend = (
            "lower the learning rate or look at the rows of these steps; the last checkpoint is sound: resume from it"
        )
        raise UserError(what, "Loop.stop_after_skipped", mend)


def evaluate(state: State, done: int, handed: Handed, every_one: bool) -> bool:
    """Run the evaluators whose turn it is and hand their records to the sinks; true where too much was forgotten."""
    forgot = False
    for name, every, figures in handed.evaluators:
        if every_one or (every and done % every == 0):
            with jax.transfer_guard("allow"):
                record = {"kind": name, "step": done, **figures(weights(state))}
            for sink in handed.sinks:
                sink.write(record)
            forgot |= bool(handed.judge(done, record))
    return forgot


def save(state: State, handed: Handed) -> None:
    """Make the lines safe first, then start the checkpoint."""
    for sink in handed.sinks:
        sink.flush()
    with jax.transfer_guard("allow"):  # Orbax copies from the devices
        handed.save(state)
