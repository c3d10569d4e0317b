"""The loop reads each step's metrics once and one step late, stops where it must, and saves after its lines."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.array import ArrayImpl

from t_elaine.errors import UserError
from t_elaine.training import loop as looping
from t_elaine.training.loop import Handed, Loop

GROUPS = [("en", "textbook"), ("ja", "guideline")]


class Notes:
    """A sink that remembers, together with everything else that happened, in order."""

    def __init__(self, events: list[Any]) -> None:
        self.events, self.records = events, list[Any]()

    def write(self, record: Any) -> None:
        self.events.append(("line", record["kind"], record["step"]))
        self.records.append(record)

    def flush(self) -> None:
        self.events.append(("flush",))

    def close(self) -> None:
        self.events.append(("close",))


@jax.jit
def tiny_step(state: Any, batch: Any) -> Any:
    """Counts steps; a batch of nan counts as skipped."""
    bad = jnp.isnan(batch).astype(jnp.int32)
    in_a_row = jnp.where(bad > 0, state["skipped_in_a_row"] + 1, 0)
    state = {"params": state["params"] + 1, "step": state["step"] + 1, "skipped_in_a_row": in_a_row}
    sums = jnp.stack([batch * 4, jnp.float32(4), batch * 4, jnp.float32(8)])[:, None] * jnp.array([[1.0, 0.0]])
    metrics = {
        "sums": sums,
        "tokens": jnp.stack([state["step"].astype(jnp.uint32) * 4, jnp.uint32(0)]),
        "learning_rate": jnp.float32(0.5),
        "grad_norm": batch,
        "skipped": bad,
        "skipped_in_a_row": in_a_row,
        "loss": batch,
    }
    return state, metrics


def handed(events: list[Any], batches: list[float], **changes: Any) -> Handed:
    def feed() -> Iterator[Any]:
        for value in batches:
            events.append(("batch",))
            yield jax.device_put(np.float32(value))

    def step(state: Any, batch: Any) -> Any:
        events.append(("step",))
        return tiny_step(state, batch)

    defaults = {
        "step": step,
        "batches": feed(),
        "groups": GROUPS,
        "due": lambda done: False,
        "save": lambda state: events.append(("save", int(state["step"]))),
        "stop": lambda done: None,
        "mfu": lambda rate: None,
        "sinks": [Notes(events)],
    }
    return Handed(**{**defaults, **changes})


def fresh() -> dict[str, jax.Array]:
    tiny_step(
        start := {"params": jnp.float32(0), "step": jnp.int32(0), "skipped_in_a_row": jnp.int32(0)}, jnp.float32(1)
    )
    return start


def test_metrics_are_read_one_step_late_and_once(monkeypatch: Any) -> None:
    """On CPU the transfer guard does not see reads from a device, so they are counted."""
    events: list[Any] = []
    state, given = fresh(), handed(events, [1.0] * 6)
    reads: list[str] = []
    for name in ("__array__", "__float__", "__int__", "__bool__", "__index__", "item", "tolist"):
        original = getattr(ArrayImpl, name)

        def counted(self: Any, *arguments: Any, _name: str = name, _original: Any = original, **more: Any) -> Any:
            reads.append(_name)
            events.append(("read",))
            return _original(self, *arguments, **more)

        monkeypatch.setattr(ArrayImpl, name, counted)
    looping.run(state, 0, Loop(steps=6), given)
    leaves = len(tiny_step(fresh(), jnp.float32(1))[1])
    in_loop = events[: events.index(("flush",))]
    assert in_loop.count(("read",)) == 6 * leaves, "each step's metrics are read once and nothing else is"
    second_step = [i for i, event in enumerate(in_loop) if event == ("step",)][1]
    assert in_loop.index(("read",)) > second_step, "the first read comes after the second step was dispatched"
    lines = [i for i, event in enumerate(in_loop) if event[0] == "line"]
    steps = [i for i, event in enumerate(in_loop) if event == ("step",)]
    assert all(line > step for line, step in zip(lines, steps[1:], strict=False))
    assert [event[2] for event in events if event[0] == "line"] == [1, 2, 3, 4, 5, 6]


def test_the_guard_is_on_in_the_loop() -> None:
    def step(state: Any, batch: Any) -> Any:
        return tiny_step(state, batch * 2.0)  # a Python number becomes an array: a hidden copy to the device

    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
        looping.run(fresh(), 0, Loop(steps=3), handed([], [1.0] * 3, step=step))


def test_lines_stand_before_their_checkpoint() -> None:
    events: list[Any] = []
    evaluators = [("validation", 2, lambda params: {"loss": 1.0, "language": {}})]
    looping.run(fresh(), 0, Loop(steps=5), handed(events, [1.0] * 5, due=lambda n: n % 2 == 0, evaluators=evaluators))
    told = [event for event in events if event[0] in ("line", "flush", "save")]
    block = lambda n: [("line", "train", n), ("line", "validation", n), ("flush",), ("save", n)]  # noqa: E731
    wanted = [("line", "validation", 0), ("line", "train", 1), *block(2), ("line", "train", 3), *block(4), *block(5)]
    assert told == wanted


def test_stops_after_saving_when_asked() -> None:
    events: list[Any] = []
    stop = lambda done: "preempted" if done == 3 else None  # noqa: E731
    state, reason = looping.run(fresh(), 0, Loop(steps=9), handed(events, [1.0] * 9, stop=stop))
    assert (reason, int(state["step"])) == ("preempted", 3)
    assert events[-1] == ("save", 3) and ("line", "train", 3) in events


def test_skipped_updates_in_a_row_end_the_run() -> None:
    nan = float("nan")
    events: list[Any] = []
    with pytest.raises(UserError, match="not finite in 3 steps in a row, up to step 7"):
        looping.run(
            fresh(), 0, Loop(steps=20, stop_after_skipped=3), handed(events, [1, nan, nan, 1, nan, nan, nan] + [1] * 13)
        )
    assert events.count(("step",)) == 8, "seen one step late"
    assert not any(event[0] == "save" for event in events)


def test_a_record_has_the_figures() -> None:
    notes = Notes([])
    given = handed([], [2.0] * 4, sinks=[notes], mfu=lambda rate: 0.5)
    looping.run(fresh(), 0, Loop(steps=4), given)
    record = notes.records[-1]
    assert record["language"] == {"en": {"loss": 2.0, "bits_per_byte": pytest.approx(1 / np.log(2)), "tokens": 4}}
    assert (record["tokens"], record["batch_tokens"], record["mfu"], record["learning_rate"]) == (16, 4, 0.5, 0.5)
    seconds = record["seconds"]
    assert set(seconds) == {"step", "data", "compute", "waiting", "evaluation", "checkpoint"}
    assert seconds["data"] + seconds["compute"] <= seconds["step"] + 1e-4
    assert record["seconds_left"] == 0 and notes.records[0]["seconds_left"] >= 0
