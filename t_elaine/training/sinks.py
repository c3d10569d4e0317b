"""Where records go: metrics.jsonl, TensorBoard, the terminal. A sink takes a record; none computes anything.

After a resume each step has one line: lines past the restored step are cut off before the first new one.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from rich.progress import BarColumn, Progress, TextColumn

from t_elaine import paths
from t_elaine.interrupts import held_back
from t_elaine.training.metrics import scalars

Record = Mapping[str, Any]


class Sink(Protocol):
    """Takes records in order of step."""

    def write(self, record: Record) -> None:
        """Take one record."""
        ...

    def flush(self) -> None:
        """Make what was taken safe: called before a checkpoint is written."""
        ...

    def close(self) -> None:
        """The last call."""
        ...


def keep_lines(text: str, last_step: int) -> str:
    """Whole lines of steps up to `last_step`; a line that was cut off by a kill is dropped."""
    kept = []
    for line in text.splitlines(keepends=True):
        if line.endswith("\n") and line.strip() and int(json.loads(line)["step"]) <= last_step:
            kept.append(line)
    return "".join(kept)


class Lines:
    """metrics.jsonl: one JSON object a line, flushed. On an object store: parts metrics-<first step>.jsonl."""

    def __init__(self, run_dir: str, last_step: int) -> None:
        """Open for appending after `last_step` (-1: nothing is kept)."""
        self._run_dir, self._remote = run_dir, paths.is_remote(run_dir)
        self._waiting: list[Record] = []
        names = [n for n in paths.listing(run_dir) if n.startswith("metrics") and n.endswith(".jsonl")]
        for name in names:
            path = paths.join(run_dir, name)
            text = paths.read_text(path)
            kept = keep_lines(text, last_step)
            if kept != text:
                paths.write_text(path, kept)
        self._file = None if self._remote else open(paths.join(run_dir, "metrics.jsonl"), "a", encoding="utf-8")  # noqa: SIM115  closed in close()

    def write(self, record: Record) -> None:
        """Append one line."""
        if self._file is None:
            self._waiting.append(record)
            return
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Sync to disk, or upload the lines since the last call as one part."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        elif self._waiting:
            name = f"metrics-{int(self._waiting[0]['step']):09d}-{len(paths.listing(self._run_dir)):05d}.jsonl"
            text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in self._waiting)
            paths.write_text(paths.join(self._run_dir, name), text)
            self._waiting = []

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._file is not None:
            self._file.close()


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """While inside, importing `module` fails, as if it were not installed."""
    before = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if before is not None:
            sys.modules[module] = before


class TensorBoard:
    """TensorBoard event files in RUN_DIR/tensorboard, a scalar for each number of a record.

    On an object store, where nothing can be appended to, they are written here and go up whole at each flush.
    """

    def __init__(self, run_dir: str, last_step: int) -> None:
        """Open; readers are told to forget what an earlier process wrote after `last_step`."""
        with hidden("torch"):  # tensorboardX imports PyTorch where it finds it: seconds and memory for nothing
            from tensorboardX import SummaryWriter
        purge = last_step + 1 if last_step >= 0 else None
        self._folder = paths.join(run_dir, "tensorboard")
        self._here = tempfile.mkdtemp(prefix="t-elaine-events-") if paths.is_remote(run_dir) else self._folder
        self._writer = SummaryWriter(self._here, purge_step=purge)

    def write(self, record: Record) -> None:
        """Add the record's numbers under its kind."""
        # Interrupted while it hands a number to its thread, the writer would never be closed: both would wait.
        with held_back():
            for name, value in scalars(record, f"{record['kind']}/").items():
                if not name.endswith("/step"):
                    self._writer.add_scalar(name, value, record["step"])

    def flush(self) -> None:
        """Hand everything to the system, or upload it."""
        with held_back():
            self._writer.flush()
        if self._here == self._folder:
            return
        for name in os.listdir(self._here):
            paths.send(os.path.join(self._here, name), paths.join(self._folder, name))

    def close(self) -> None:
        """Close the file."""
        with held_back():
            self._writer.close()
        self.flush()
        if self._here != self._folder:
            shutil.rmtree(self._here, ignore_errors=True)


def line_of(record: Record, steps: int) -> str:
    """A record in one short line for people."""
    if record["kind"] != "train":
        figures = " ".join(f"{k} {v['bits_per_byte']:.4f}" for k, v in record["language"].items() if v["bits_per_byte"])
        loss = "–" if record["loss"] is None else f"{record['loss']:.4f}"
        told = pairs_told(record) or f"bits per byte {figures}"
        return f"step {record['step']}/{steps} {record['kind']}: loss {loss}, {told}"
    loss = f"{record['loss']:.4f}" if record["loss"] else "–"
    if record["skipped"]:
        loss = f"{loss}, a spike, skipped" if record["loss"] and record["grad_norm"] else "not finite, skipped"
    parts = [f"step {record['step']}/{steps}", f"loss {loss}", f"lr {record['learning_rate']:.2e}"]
    if pairs := pairs_told(record):
        parts.append(pairs)
    if record.get("tokens_per_second"):
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    if record.get("mfu"):
        parts.append(f"MFU {record['mfu']:.1%}")
    if record.get("seconds_left") is not None:
        minutes, seconds = divmod(round(record["seconds_left"]), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")
    return "  ".join(parts)


def pairs_told(record: Record) -> str:
    """What a record says of preferences; "" where it is of none."""
    if record.get("accuracy") is None or record.get("margin") is None:
        return ""
    return f"right {record['accuracy']:.0%} of {record['pairs']}, margin {record['margin']:.3f}"


class Terminal:
    """A progress line with the time left on a terminal; elsewhere a plain line every `every` steps."""

    def __init__(self, steps: int, done: int, every: int, live: bool | None = None) -> None:
        """live: draw a progress line; None: where standard output is a terminal."""
        self._steps, self._every = steps, every
        self._bar: Progress | None = None
        if sys.stdout.isatty() if live is None else live:
            self._bar = Progress(BarColumn(bar_width=12), TextColumn("{task.description}"))
            self._task = self._bar.add_task("starting", total=steps, completed=done)
            self._bar.start()

    def write(self, record: Record) -> None:
        """Show one record."""
        line = line_of(record, self._steps)
        if self._bar is not None and record["kind"] == "train":
            self._bar.update(self._task, completed=record["step"], description=line)
        elif self._bar is not None:
            self._bar.console.print(line, highlight=False)
        elif record["kind"] != "train" or record["step"] % self._every == 0 or record["step"] == self._steps:
            print(line, flush=True)

    def flush(self) -> None:
        """Nothing to make safe."""

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def open_sinks(run_dir: str, last_step: int, steps: int, print_every: int, main: bool) -> list[Sink]:
    """The sinks of a run; only the main process has any."""
    if not main:
        return []
    terminal = Terminal(steps, max(last_step, 0), print_every)
    return [Lines(run_dir, last_step), terminal, TensorBoard(run_dir, last_step)]
