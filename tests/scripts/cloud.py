"""A stand-in for gcloud: it writes down each command line, answers by a scenario, and can play the hosts of a pod.

A host is a folder that serves as its home: `ssh` runs the command there, `scp` copies files there. What a host
would have installed (uv, Python, a metadata server) are stand-ins too, so that host.sh runs as it is.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "tpu"

GCLOUD = """#!{python} -IS
import json, os, shutil, subprocess, sys, time
from pathlib import Path

here = Path(os.environ["CLOUD"])
arguments = sys.argv[1:]
with open(here / "calls.jsonl", "a") as log:
    log.write(json.dumps(arguments) + "\\n")
scenario = json.loads((here / "scenario.json").read_text())
line = " ".join(arguments)
for number, (words, replies) in enumerate(scenario):
    if all(word in line for word in words):
        counter = here / f"used-{{number}}"
        used = int(counter.read_text()) if counter.exists() else 0
        counter.write_text(str(used + 1))
        reply = replies[min(used, len(replies) - 1)]
        time.sleep(reply.get("sleep", 0))
        sys.stdout.write(reply.get("out", ""))
        sys.stderr.write(reply.get("err", ""))
        if "code" in reply or "out" in reply:
            sys.exit(reply.get("code", 0))

option = dict(word[2:].split("=", 1) for word in arguments if word.startswith("--") and "=" in word)
code = 0
for home in sorted(here.glob("slice-*-worker-*")):
    _, slice_, _, worker = home.name.split("-")
    if option.get("node") not in ("all", slice_) or option.get("worker") not in ("all", worker):
        continue
    if "scp" in arguments:
        files = [word for word in arguments[arguments.index("scp") + 1 :] if not word.startswith("--")]
        for file in files[:-1]:
            shutil.copy(file, home / files[-1].split(":")[1])
    elif "ssh" in arguments:
        environment = os.environ | {{"HOME": str(home), "FAKE_SLICE": slice_, "FAKE_WORKER": worker}}
        done = subprocess.run(["bash", "-c", option["command"]], env=environment, cwd=home)
        if done.returncode:
            code = done.returncode
            sys.stderr.write(f"##### Command execution on worker {{worker}} failed with exit status {{code}}.\\n")
sys.exit(code)
"""

CURL = """#!/bin/sh
case "$*" in
  *tpu-env*) printf "NODE_ID: 'pod'\\nMEGASCALE_SLICE_ID: '%s'\\nWORKER_ID: '%s'\\n" "$FAKE_SLICE" "$FAKE_WORKER" ;;
  *agent-worker-number*) printf '%s' "$FAKE_WORKER" ;;
esac
"""

HOSTNAME = """#!/bin/sh
echo "t1v-n-0abc-w-$FAKE_WORKER"
"""

# uv makes a python that knows only what host.sh asks of it; a file `breaks` in a host's home makes a stage fail there.
UV = """#!/bin/sh
echo "uv $*" >> "$HOME/uv.log"
if [ -e "$HOME/breaks" ] && [ "$(cat "$HOME/breaks")" = "$1" ]; then echo "no space left on device" >&2; exit 1; fi
if [ "$1" = venv ]; then
  for target in "$@"; do :; done
  mkdir -p "$target/bin"
  cp "$CLOUD/host_python" "$target/bin/python"
fi
"""

GIT = """#!/bin/sh
echo "git $*" >> "$HOME/git.log"
if [ "$1" = clone ]; then mkdir -p "$4/.git"; fi
"""

HOST_PYTHON = """#!/bin/sh
case "$*" in
  *version*) echo "t-elaine=0.1.0 jax=$(cat "$HOME/jax" 2>/dev/null || echo 0.10.2) libtpu=0.0.42" ;;
  *t_elaine.train\\ *)
    for word in "$@"; do echo "$word" >> "$HOME/train.arguments"; done
    echo "training begins"
    if [ -e "$HOME/dies" ]; then echo "out of memory" >&2; exit 1; fi
    trap 'echo saved; exit 0' TERM
    while :; do sleep 0.05; done ;;
esac
"""

SETTINGS = {
    "PROJECT": "my-project",
    "ZONE": "europe-west4-b",
    "NAME": "pod",
    "ACCELERATOR": "v5litepod-16",
    "CAPACITY": "spot",
    "PRICE_PER_CHIP_HOUR": "1.25",
    "HOURS": "10",
    "BUCKET": "gs://my-bucket",
    "GIN_FILES": "cpt.gin hardware/v5e_16.gin",
    "REPOSITORY": "https://example.org/t-elaine.git",
    "POLL_SECONDS": "0",
    "START_SECONDS": "0",
    "MAX_TRIES": "2",
}


class Cloud:
    """A folder with the stand-ins, a config file and the hosts of a pod."""

    def __init__(self, folder: Path, hosts: int = 4, slices: int = 1) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        programs = {
            "gcloud": GCLOUD.format(python=sys.executable),
            "curl": CURL,
            "hostname": HOSTNAME,
            "uv": UV,
            "git": GIT,
        }
        for name, text in programs.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        (folder / "host_python").write_text(HOST_PYTHON)
        (folder / "host_python").chmod(0o755)
        for slice_ in range(slices):
            for worker in range(hosts):
                self.host(worker, slice_).mkdir()
        self.config()
        self.answers()

    def host(self, worker: int, slice_: int = 0) -> Path:
        return self.folder / f"slice-{slice_}-worker-{worker}"

    def config(self, *lines: str, **changed: str | None) -> None:
        """Write pod.conf; None leaves a key out, `lines` come after the keys."""
        settings = {k: v for k, v in (SETTINGS | changed).items() if v is not None}
        (self.folder / "pod.conf").write_text("\n".join([*(f"{k}={v}" for k, v in settings.items()), *lines]) + "\n")

    def answers(self, *scenario: tuple[list[str], list[dict[str, Any]]]) -> None:
        """What gcloud says, by words of its command line; what is not named is answered by the hosts."""
        for counter in self.folder.glob("used-*"):
            counter.unlink()
        bucket = (["storage buckets describe"], [{"out": "EUROPE-WEST4\n"}])
        (self.folder / "scenario.json").write_text(json.dumps([*scenario, bucket]))

    def environment(self) -> dict[str, str]:
        return os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}", "CLOUD": str(self.folder)}

    def start(self, script: str, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        command = ["bash", str(SCRIPTS / f"{script}.sh"), f"--config={self.folder / 'pod.conf'}", *arguments]
        pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
        return subprocess.Popen(command, text=True, cwd=self.folder, env=self.environment(), **pipes, **options)

    def run(self, script: str, *arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
        process = self.start(script, *arguments)
        out, err = process.communicate(typed, timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def calls(self) -> list[list[str]]:
        """The command lines that gcloud has seen, without its own name."""
        log = self.folder / "calls.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def verbs(self) -> list[str]:
        """The calls in short: describe, create, delete, ssh, scp, cat …"""
        known = ("create", "delete", "describe", "ssh", "scp", "cat")
        return [next(word for word in call if word in known) for call in self.calls() if "buckets" not in call]

    def forget(self) -> None:
        (self.folder / "calls.jsonl").unlink(missing_ok=True)


def printed_commands(text: str) -> list[list[str]]:
    """The gcloud commands of a dry run, as argument lists."""
    lines = [shlex.split(line) for line in text.splitlines() if not line.startswith("#")]
    return [words[1:] for words in lines if words[0] == "gcloud"]


def without_launch(calls: list[list[str]]) -> list[list[str]]:
    """The calls, with the name of the launch (a time) taken out."""
    return [[re.sub(r"start \d{8}T\d{6}-\d+ ", "start ", word) for word in call] for call in calls]


def is_running(home: Path) -> bool:
    """True if a process of the run that host.sh started in this home is alive (a zombie is not)."""
    pid = home / "t-elaine-pod" / "run" / "pid"
    if not pid.exists():
        return False
    stats = subprocess.run(["ps", "-o", "stat=", "-s", pid.read_text().strip()], capture_output=True, text=True).stdout
    return any(not stat.startswith("Z") for stat in stats.split())


def ssh(command: str) -> list[str]:
    """The call that runs a command on all hosts."""
    where = ["--zone=europe-west4-b", "--project=my-project", "--node=all", "--worker=all"]
    return ["compute", "tpus", "queued-resources", "ssh", "pod", *where, f"--command={command}"]


def state(*names: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Scenario: the states of the queued resource, one after the other; the last one stays."""
    missing = {"code": 1, "err": "ERROR: (gcloud) NOT_FOUND: Resource was not found\n"}
    answers = [missing if name == "MISSING" else {"out": f"{name}\n"} for name in names]
    return ["queued-resources describe", "value(state.state)"], answers


def nodes(*names: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Scenario: the states of the nodes."""
    return ["tpu-vm describe"], [{"out": f"{name}\n"} for name in names]


def run_says(*states: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Scenario: status.json of the run's folder: "state", "state: reason" or "state: reason: step"; "none": no file."""
    replies: list[dict[str, Any]] = []
    for state in states:
        name, reason, step = (*state.split(": "), "", "5")[:3] if state.count(": ") < 2 else state.split(": ")
        record = {"state": name, "reason": reason, "step": int(step or 5)}
        none = {"code": 1, "err": "ERROR: The following URLs matched no objects or files\n"}
        replies.append(none if state == "none" else {"out": json.dumps(record, indent=1) + "\n"})
    return ["storage cat"], replies


FINE: dict[str, Any] = {"code": 0}
REFUSED: dict[str, Any] = {"code": 1, "err": "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit exceeded\n"}
CREATED = (["queued-resources create"], [FINE | {"out": ""}])
DELETED = (["queued-resources delete"], [FINE | {"out": ""}])
DELETE_LINE = (
    "gcloud compute tpus queued-resources delete pod --zone=europe-west4-b --project=my-project --force --quiet"
)
RUN_DIR = "--gin.RUN_DIR='gs://my-bucket/runs/pod'"


def ready(cloud: Cloud, *scripts: str) -> None:
    """Run scripts that must do well, and forget their calls."""
    for script in scripts:
        done = cloud.run(script)
        assert done.returncode == 0, done.stderr
    cloud.forget()
