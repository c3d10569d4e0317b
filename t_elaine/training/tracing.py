"""`train --profile=STEPS`: a trace of a few steps, as TensorBoard and Perfetto open it.

It wraps the step, so the loop does not know of it. Each process writes its own files, into one folder:
RUN_DIR/profile/plugins/profile/steps-5-8/HOST-PROCESS.xplane.pb (TensorBoard) and .trace.json.gz (Perfetto).
"""

import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from t_elaine import paths
from t_elaine.errors import UserError

FOLDER = "profile"


def steps_of(text: str, last: int) -> range:
    """ "3" or "5:8", both ends included, as steps; "" is none.

    Args:
        text: as given.
        last: step of the run.

    Raises:
        UserError: it is no such text, or names steps that the run does not have.
    """
    if not text:
        return range(0)
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    mend = "give a step or a first and a last one: --profile=3, --profile=5:8"
    if not found:
        raise UserError(f"--profile={text} names no steps", "train.profile", mend)
    first, end = int(found.group(1)), int(found.group(2) or found.group(1))
    if not 1 <= first <= end <= last:
        raise UserError(f"--profile={text} in a run of steps 1 to {last}", "train.profile", mend)
    return range(first, end + 1)


class Traced:
    """A step; those of its calls that are wanted are traced."""

    def __init__(
        self, step: Callable[..., Any], done: int, wanted: range, run_dir: str, say: Callable[[str], None]
    ) -> None:
        """done: updates before the first call; say: takes messages."""
        self._step, self._done, self._run_dir, self._say = step, done, run_dir, say
        self._wanted = range(max(wanted.start, done + 1), wanted.stop)
        self._first, self._here = 0, ""
        if wanted and not self._wanted:
            say(f"warning: steps up to {done} are done already: nothing is traced")

    def __call__(self, state: Any, batch: Any) -> Any:
        """The step's own result."""
        self._done += 1
        if self._done not in self._wanted:
            return self._step(state, batch)
        if not self._here:
            jax.block_until_ready(state)  # the step before is not in it
            self._begin()
        with jax.profiler.StepTraceAnnotation("train", step_num=self._done):
            result = self._step(state, batch)
        if self._done == self._wanted[-1]:
            jax.block_until_ready(result)
            self.close()
        return result

    def _begin(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # its events would crowd out the devices'
        self._first, self._here = self._done, tempfile.mkdtemp(prefix="t-elaine-trace-")
        jax.profiler.start_trace(self._here, create_perfetto_trace=True, profiler_options=options)

    def close(self) -> None:
        """End a trace that is being taken, and write it; a disk that refuses it does not end the run."""
        if not self._here:
            return
        here, self._here = self._here, ""
        steps = f"{self._first}-{self._done}"
        try:
            jax.profiler.stop_trace()
            to = written(here, self._run_dir, f"steps-{steps}")
        except (OSError, UserError, jax.errors.JaxRuntimeError) as error:
            self._say(f"warning: the trace of steps {steps} could not be written: {error}")
        else:
            self._say(f"trace of steps {steps}: {to} (tensorboard --logdir; .trace.json.gz for ui.perfetto.dev)")
        finally:
            shutil.rmtree(here, ignore_errors=True)


def written(here: str, run_dir: str, name: str) -> str:
    """Copy this process's trace into the run's folder, under a name that no other process has; returns the folder."""
    root = paths.join(run_dir, FOLDER)
    to = paths.join(root, "plugins", "profile", name)
    paths.make_folder(to)
    mine = f"{socket.gethostname()}-{jax.process_index()}"
    for pattern, ending in (("*.xplane.pb", ".xplane.pb"), ("perfetto_trace.json.gz", ".trace.json.gz")):
        for found in Path(here).glob(f"plugins/profile/*/{pattern}"):
            paths.send(found, paths.join(to, mine + ending))
    return root
