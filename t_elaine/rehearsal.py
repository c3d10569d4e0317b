"""`train --rehearse`: a run tried out on the machine itself, in a folder of its own.

Twenty real steps with the real settings: a checkpoint, a SIGKILL, going on, an export with its proof; then what the run
will take, beside what `plan` says (`rehearsed`). Each stage is a process of its own; this one takes no device.
"""

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

from t_elaine import cli, paths, rehearsed
from t_elaine.checkpoints.layout import complete_steps
from t_elaine.checkpoints.writing import Checkpointing
from t_elaine.errors import UserError
from t_elaine.parallel import clusters
from t_elaine.parallel.hosts import Hosts
from t_elaine.training.fit import parameter_count, state_bytes
from t_elaine.training.optimizer import AdamW

STEPS, MARK, PLAN = 20, "rehearsal.json", "plan.json"
MORE = 2  # steps after the checkpoint, lost by the kill
LEAST = 8  # steps, so that the kill comes before the last
CHECKPOINTS, EXPORTS, SPARE = 3, 2, 10**9  # that lie on the disk together, and bytes for the rest
POLL = 0.02
QUIET = "ignore:resource_tracker"  # of semaphores that the killed process held


def rehearse(given: Mapping[str, Any]) -> int:
    """Try a run out.

    Args:
        given: the arguments of `train`.

    Returns:
        the exit code: 0 when every stage went well, else the first one's that did not.

    Raises:
        UserError: the run is at work, is too short, or the disk has no room for it.
    """
    run_dir, loop = given["run_dir"], given["loop"]
    folder = f"{run_dir.rstrip('/')}-rehearsal"
    place = clusters.place(given["hosts"] or Hosts())
    main = place is None or place.process == 0
    if loop.steps < LEAST:
        raise UserError(f"a run of {loop.steps} steps", "Loop.steps", f"a rehearsal needs at least {LEAST}")
    if main:
        check(run_dir, folder, given)
    steps = min(STEPS, loop.steps)
    told = shortened(given, folder, steps)
    print(f"rehearsal of {run_dir} in {folder}: {steps} steps with a kill after {steps // 2}", flush=True)
    try:
        with environment(PYTHONWARNINGS=QUIET):
            code, figures = stages(told, given, folder, steps, main)
    except BaseException:
        print(f"rehearsal: not finished; {folder} is left as it is", file=sys.stderr)
        raise
    if code:
        left = bool(complete_steps(folder)) if main else True
        where = f"; {folder} is left as it is" if left else ""
        print(f"rehearsal: {figures} ended with code {code}, as told above{where}", file=sys.stderr, flush=True)
        if main and not left:
            paths.remove_folder(folder)
        return code
    if main:
        finish(given, folder, figures)
    return 0


def finish(given: Mapping[str, Any], folder: str, figures: dict[str, Any]) -> None:
    """Tell what was measured; keep or remove the folder."""
    record = rehearsed.record(given, folder, figures)
    paths.write_text(paths.join(folder, MARK), json.dumps(record, indent=1) + "\n")
    print("\n" + rehearsed.text(record), flush=True)
    if given["keep_rehearsal"]:
        print(f"the rehearsal lies in {folder}", flush=True)
    else:
        paths.remove_folder(folder)


def check(run_dir: str, folder: str, given: Mapping[str, Any]) -> None:
    """Refuse what cannot end well; make the folder, empty."""
    for where in (run_dir, folder):
        if not paths.is_remote(where) and paths.is_held(where):
            mend = "wait for it to end, or stop it: a rehearsal needs the devices for itself"
            raise UserError("a run is at work there", where, mend)
    mark = paths.join(folder, MARK)
    if paths.exists(mark):
        paths.remove_folder(folder)  # an earlier rehearsal's
    elif paths.is_folder(folder) and paths.listing(folder):
        raise UserError("the folder is there and is no rehearsal's", folder, "move it away, or give another RUN_DIR")
    if not paths.is_remote(folder):
        check_disk(folder, given)
    paths.make_folder(folder)
    paths.write_text(mark, json.dumps({"of": run_dir}) + "\n")


def check_disk(folder: str, given: Mapping[str, Any]) -> None:
    """Refuse a rehearsal whose checkpoints and export the disk does not hold."""
    there = os.path.abspath(folder)
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    model, adamw = given["model"], given["optimizer"] or AdamW()
    each = state_bytes(model, adamw.first_moment_dtype, given.get("lora"), adamw.average is not None)
    needed = CHECKPOINTS * each + EXPORTS * 4 * parameter_count(model) + SPARE
    free = shutil.disk_usage(there).free
    if free < needed:
        what = f"a rehearsal needs about {needed / 1e9:.1f} GB for checkpoints and export; {free / 1e9:.1f} GB are free"
        raise UserError(what, there, "free some space, or give a RUN_DIR on another disk")


def shortened(given: Mapping[str, Any], folder: str, steps: int) -> dict[str, Any]:
    """The arguments of `train` for the rehearsal: what is computed stays as it is."""
    loop = replace(given["loop"], evaluate_every=max(1, steps // 4), print_every=1, max_chip_hours=None, stop_at=None)
    saving = replace(given["checkpoints"] or Checkpointing(), every=steps // 2, keep=2, permanent_every=None)
    own = {"run_dir": folder, "loop": loop, "checkpoints": saving, "rehearse": False, "profile": ""}
    return {**given, **own}


def stages(told: Mapping[str, Any], given: Mapping[str, Any], folder: str, steps: int, main: bool) -> tuple[int, Any]:
    """All stages in turn: (0, figures), or the code of the one that failed and its name."""
    figures: dict[str, Any] = {"steps": steps}
    code, figures["first_seconds"] = stage("training until the kill", _killed, told, steps // 2, main)
    if code == 0:
        mend = "look at its last lines above; give a Loop.steps of 40 or more, so that it lasts until it is killed"
        raise UserError("training ended by itself before it could be killed", folder, mend)
    if code != -signal.SIGKILL and (main or steps // 2 not in complete_steps(folder)):
        return code, "training"
    if main:
        figures["before"] = rehearsed.lines(folder)
    code, figures["second_seconds"] = stage("going on", _trained, told, steps)
    if code:
        return code, "going on after the kill"
    if not main:
        return 0, figures
    code, figures["export_seconds"] = stage("export with proof", _exported, folder)
    if code:
        return code, "the export"
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    with environment(JAX_PLATFORMS="cpu", XLA_FLAGS=flags):  # plan simulates as many devices as it needs
        code, _ = stage("plan", _planned, given, folder)
    return code, "plan" if code else figures


def stage(name: str, work: Callable[..., int | None], *arguments: Any) -> tuple[int, float]:
    """Do the work in a process of its own: (exit code, seconds). It does not outlive this one's interruption."""
    print(f"\n== {name}", flush=True)
    start = time.monotonic()
    process = get_context("spawn").Process(target=_guarded, args=(work, arguments))
    process.start()
    try:
        process.join()
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    return int(process.exitcode or 0), round(time.monotonic() - start, 3)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Variables that processes started inside find."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _guarded(work: Callable[..., int | None], arguments: tuple[Any, ...]) -> None:
    sys.exit(cli.guarded(lambda: work(*arguments) or 0))


def _killed(told: Mapping[str, Any], step: int, main: bool) -> int:
    """Train, and kill process 0 once the checkpoint of a step is whole and some steps more are done.

    The others then end as they do when a host dies.
    """
    folder = told["run_dir"]

    def watch() -> None:
        while step not in complete_steps(folder):
            time.sleep(POLL)
        # An object store shows lines at checkpoints only.
        while not paths.is_remote(folder) and rehearsed.lines(folder)[-1]["step"] < step + MORE:
            time.sleep(POLL)
        print(f"SIGKILL: checkpoint {step} is whole", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    if main:
        threading.Thread(target=watch, name="kill", daemon=True).start()
    return _train(told)


def _trained(told: Mapping[str, Any], steps: int) -> int:
    return _train({**told, "loop": replace(told["loop"], stop_at=steps)})


def _train(told: Mapping[str, Any]) -> int:
    from t_elaine.assembly import train

    return train(**told)


def _exported(folder: str) -> None:
    from t_elaine.export import export

    export(folder, paths.join(folder, "export"))


def _planned(given: Mapping[str, Any], folder: str) -> None:
    """Write down what `plan` says of this machine; why it says nothing is no failure of a rehearsal."""
    from t_elaine.planned import answered
    from t_elaine.planning.assumptions import Assumptions

    name, slices = rehearsed.topology(folder)
    try:
        record = answered(given, name, slices, rehearsed.groups(folder), None, Assumptions(), True, "")
    except UserError as error:
        record = {"none": error.what}
    paths.write_text(paths.join(folder, PLAN), json.dumps({"topology_asked": name, **record}, indent=1) + "\n")
