"""Real jobs of several processes on this machine: `python -m t_elaine.train` that meet through variables."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tiny_runs

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT = 400.0  # seconds: on a busy machine even a tiny step compiles for a minute


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("", 0)) as listener:
        return int(listener.getsockname()[1])


def gin_text(run_dir: Path, stores: Sequence[Path], **changes: Any) -> str:
    """The gin file of a tiny run; `changes` as for `tiny_runs.settings`."""
    lines = []
    for name, value in tiny_runs.settings(run_dir, list(stores), **changes).items():
        if dataclasses.is_dataclass(value):
            kind = type(value).__name__
            lines.append(f"train.{name} = @{kind}()")
            given = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            lines += [f"{kind}.{field} = {it!r}" for field, it in given.items() if it is not None]
        elif name != "config_text":
            lines.append(f"train.{name} = {value!r}")
    return "\n".join(lines) + "\n"


@dataclasses.dataclass
class Job:
    """Processes that were started together, and what each prints."""

    processes: list["subprocess.Popen[bytes]"]
    logs: list[Path]

    def output(self, process: int) -> str:
        """What one process has printed so far."""
        return self.logs[process].read_text(errors="replace")

    def told(self) -> str:
        """Everything that was printed, for a failed assertion."""
        return "\n".join(f"--- process {i}\n{self.output(i)}" for i in range(len(self.logs)))

    def wait(self, seconds: float = LIMIT) -> list[int]:
        """Exit codes of all; kills those that are left at the end of the time."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
        finally:
            self.kill()

    def until(self, text: str, process: int = 0, seconds: float = LIMIT) -> None:
        """Wait until a process has printed something."""
        end = time.monotonic() + seconds
        while text not in self.output(process):
            assert time.monotonic() < end and self.processes[process].poll() is None, self.told()
            time.sleep(0.05)

    def kill(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()


def start(
    folder: Path,
    gin: str | Sequence[str],
    processes: int = 2,
    devices: int = 1,
    only: Sequence[int] | None = None,
    programs: Mapping[int, Sequence[str]] | None = None,
    variables: Mapping[int, Mapping[str, str]] | None = None,
    port: int | None = None,
    folders: Mapping[int, Path] | None = None,
) -> Job:
    """Start a job.

    Args:
        folder: for gin files and logs.
        gin: the gin file's text, or one for each process.
        processes: how many belong together.
        devices: simulated devices of each.
        only: the numbers that are started; None: all.
        programs: what Python runs instead of `-m t_elaine.train`, by process.
        variables: more environment, by process.
        port: of process 0; None: a free one.
        folders: working folders, by process.
    """
    port, started, logs = port or free_port(), [], []
    count = len(list(folder.glob("*.log")))
    for process in range(processes) if only is None else only:
        file = folder / f"{count}-{process}.gin"
        file.write_text(gin if isinstance(gin, str) else gin[process])
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(REPOSITORY),
            **(variables or {}).get(process, {}),
        }
        if processes > 1:
            told = {"COORDINATOR": f"localhost:{port}", "PROCESSES": str(processes), "PROCESS": str(process)}
            environment = {**{f"T_ELAINE_{key}": value for key, value in told.items()}, **environment}
        log = folder / f"{count}-{process}.log"
        with log.open("wb") as out:
            program = (programs or {}).get(process, ("-m", "t_elaine.train"))
            arguments = [sys.executable, *program, f"--gin_file={file}"]
            where = (folders or {}).get(process)
            started.append(
                subprocess.Popen(arguments, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=where)
            )
        logs.append(log)
    return Job(started, logs)
