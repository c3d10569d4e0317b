"""Another library as an engine: starts `worker.py` with the Python that has it, and speaks to it.

JAX and torch never share a process here: each has the machine's memory and threads for itself. No exam is known here.
"""

import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from t_elaine.errors import UserError
from t_elaine.generation.sampling import Sampling

NAMES = ("transformers", "vllm")
SCRIPT = Path(__file__).with_name("worker.py")
TOLD = 12  # last lines of what a dead worker printed


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker that is ready. `context`: the tokens of prompt and answer that it takes."""

    name: str
    process: "subprocess.Popen[str]" = field(repr=False)
    printed: IO[bytes] = field(repr=False)
    context: int = 0

    def ask(self, task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Its answers to a task.

        Raises:
            UserError: it ended; with what it printed last.
        """
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        while "done" not in (answer := self._line()):
            yield answer

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            raise self._ended()
        return dict(json.loads(line))

    def _ended(self) -> UserError:
        code = self.process.wait()
        self.printed.seek(0)
        lines = self.printed.read().decode(errors="replace").strip().split("\n")[-TOLD:]
        what = f"{self.name} ended with exit code {code}; the last that it printed:\n" + "\n".join(lines)
        mend = "mend what it says and give the same command again: answers that were written are kept, and parts scored"
        return UserError(what, f"--engine={self.name}", mend)


def versions(name: str, python: str) -> dict[str, str]:
    """The versions of an engine's packages, without loading it.

    Args:
        name: of NAMES.
        python: path of the Python that has it; "" takes this one.

    Raises:
        UserError: there is no such Python, or it lacks the library.
    """
    mend = f"give --engine_python=ENVIRONMENT/bin/python of an environment with {name} (docs/evaluation.md, "
    mend += "Other engines, says how to make one)"
    try:
        run = [python or sys.executable, str(SCRIPT), "--versions", name]
        done = subprocess.run(run, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", "") or str(error)
        raise UserError(f"this Python cannot be run: {told.strip()}", python or sys.executable, mend) from error
    found = dict(json.loads(done.stdout))
    if not found:
        raise UserError(f"{name} is not installed there", python or sys.executable, mend)
    return found


@contextmanager
def working(name: str, python: str, model: str, dtype: str, rows: int, **more: Any) -> Iterator[Worker]:
    """A worker with a model loaded; it ends with the block.

    Args:
        name: of NAMES.
        python: path of the Python that has it; "" takes this one.
        model: a folder in Hugging Face format.
        dtype: of the computation, as "float32".
        rows: answers at a time.
        more: what else the engine takes.

    Raises:
        UserError: it ended before it was ready; with what it printed last.
    """
    options = json.dumps({"engine": name, "model": model, "dtype": dtype, "rows": rows, **more})
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            [python or sys.executable, str(SCRIPT), options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            text=True,
        )
        try:
            ready = Worker(name=name, process=process, printed=printed)._line()
            yield Worker(name=name, process=process, printed=printed, context=int(ready["context"]))
        finally:
            assert process.stdin and process.stdout
            process.stdout.close()
            with suppress(BrokenPipeError):
                process.stdin.close()
            _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    """It ends where its input ends; one that is in the middle of a batch is told to."""
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def write(
    worker: Worker, prompts: Sequence[str], sampling: Sampling, ends: Sequence[int]
) -> Iterator[tuple[int, str | None]]:
    """(place, answer) of each prompt as it is written; None where a prompt is longer than the context.

    The library's own tokenizer encodes the text, as in the published evaluation.
    """
    task = {"do": "write", "prompts": list(prompts), "sampling": asdict(sampling), "ends": list(ends)}
    for answer in worker.ask(task):
        yield int(answer["place"]), answer["text"]


def score(worker: Worker, pieces: Sequence[np.ndarray], names: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
    """(place, negative log-likelihoods) of each piece: float32 [n-1] in nats, of the tokens after its first.

    Args:
        worker: of an engine that packs nothing.
        pieces: int arrays [n] of ids.
        names: what an error calls each.

    Raises:
        UserError: it ended, or a piece's figures are not those of its tokens.
    """
    for answer in worker.ask({"do": "score", "pieces": [piece.tolist() for piece in pieces]}):
        place = int(answer["place"])
        found = np.frombuffer(base64.b64decode(answer["nll"]), np.float32)
        if len(found) != len(pieces[place]) - 1 or np.isnan(found).any():
            what = f"{worker.name} gives {len(found)} log-likelihoods for {len(pieces[place])} tokens, "
            what += f"{int(np.isnan(found).sum())} of them no numbers"
            raise UserError(what, names[place], "give another version of it, or another --engine")
        yield place, found


def nll(worker: Worker, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Negative log-likelihoods, float32 [B,T] in nats, of packed rows (tokens, targets, segments, positions)."""
    arrays = {
        name: np.ascontiguousarray(rows[name], np.int32) for name in ("tokens", "targets", "segments", "positions")
    }
    shape = arrays["tokens"].shape
    task = {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}
    (answer,) = worker.ask({"do": "nll", "shape": list(shape), **task})
    return np.frombuffer(base64.b64decode(answer["nll"]), np.float32).reshape(shape)
