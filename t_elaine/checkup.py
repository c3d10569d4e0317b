"""What this machine has and what is missing, asked of the standard library alone: it answers where JAX does not import.

The command `doctor` prints it. Nothing here imports another part of the package; JAX is asked in a process of its own.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from t_elaine.machine import mixed_jax, version_of

# Extra → what it is for.
EXTRAS = {
    "data": "prepare",
    "beam": "prepare on a cluster",
    "plan": "plan with the TPU compiler",
    "tpu": "training on TPU",
    "cuda13": "training on NVIDIA GPUs",
    "eval": "the proof of an export through transformers",
    "test": "the tests",
}


PLUGINS = {"plan": "libtpu", "tpu": "libtpu", "cuda13": "jax-cuda13-plugin"}
# Extra → the one command that needs it; where this version lacks the command, the extra is not spoken of.
COMMANDS = {"plan": "plan"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing looked at.

    Args:
        name: what.
        state: "ok", "missing" (training is not possible without) or "note" (something else is not).
        told: what there is.
        mend: what to do about it, "" where nothing is to be done.
    """

    name: str
    state: str
    told: str
    mend: str = ""


def checks(network: bool = False) -> list[Check]:
    """Everything the doctor looks at. Without `network` nothing leaves this machine."""
    probe = start_probe()  # the slow part, while the others are looked at
    found = [
        python(),
        system(),
        jax_pair(),
        *packages(),
        memory(),
        disk(),
        compile_cache(),
        *tools(),
        fonts(),
        *access(),
    ]
    found += _probed(probe)
    return [*found, *(reached(url) for url in ("https://huggingface.co", "https://storage.googleapis.com") if network)]


def python() -> Check:
    """The interpreter's version and where it is."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check(name="Python", state="ok", told=f"{version} ({sys.executable})")
    return Check(
        name="Python", state="missing", told=f"{version} is not supported", mend="use Python 3.11, 3.12 or 3.13"
    )


def system() -> Check:
    """Operating system and processor."""
    told = f"{platform.system()} {platform.machine()}, {cores()} cores"
    if platform.system() == "Windows":
        return Check(name="system", state="missing", told=told, mend="run inside WSL")
    return Check(name="system", state="ok", told=told)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jax_pair() -> Check:
    """Do jax and jaxlib go together?"""
    told = mixed_jax()
    if told is None:
        return Check(name="jax", state="ok", told=f"jax {version_of('jax')}, jaxlib {version_of('jaxlib')}")
    return Check(name="jax", state="missing", told=told.what, mend=told.mend)


def packages() -> list[Check]:
    """What the package's own metadata asks for, by extra."""
    asked = importlib.metadata.requires("t-elaine") if version_of("t-elaine") else None
    if asked is None:
        mend = "pip install -e . in the checkout, or pip install t-elaine"
        return [Check(name="packages", state="missing", told="t-elaine is not installed in this Python", mend=mend)]
    lacking: dict[str, list[str]] = {extra: [] for extra in ("", *EXTRAS)}
    for text in asked:
        name, extra = re.split(r"[^\w.-]", text, maxsplit=1)[0], re.search(r"extra == ['\"](\w+)['\"]", text)
        group = lacking.setdefault(extra.group(1) if extra else "", [])
        # jax[tpu] and the like: the plug-in is what makes the extra.
        plugin = PLUGINS.get(extra.group(1)) if extra else None
        if name != "t-elaine" and version_of(plugin or name) is None:
            group.append(plugin or name)
    base, told = lacking.pop(""), f"t-elaine {version_of('t-elaine')} with all it needs"
    found = [Check(name="packages", state="ok", told=told)]
    if base:
        found = [Check(name="packages", state="missing", told=f"not installed: {', '.join(base)}", mend=pip(base))]
    for group_name, names in lacking.items():
        if group_name in COMMANDS and importlib.util.find_spec(f"t_elaine.{COMMANDS[group_name]}") is None:
            continue
        use = EXTRAS.get(group_name, "")
        told = f"installed ({use})" if not names else f"not installed: {', '.join(sorted(set(names)))} (only for {use})"
        mend = f"pip install 't-elaine[{group_name}]'" if names else ""
        if group_name == "eval" and not names and version_of("torch") is None:
            found.append(without_torch())
            continue
        found.append(Check(name=f"extra {group_name}", state="note" if names else "ok", told=told, mend=mend))
    return found


def without_torch() -> Check:
    """transformers reads tokenizers by itself, but computes nothing. No extra has PyTorch: its builds are many."""
    told = "installed, but exports are not compared through transformers: PyTorch is not installed"
    return Check(name="extra eval", state="note", told=told, mend="pip install torch")


def pip(names: Sequence[str]) -> str:
    """The command that installs packages."""
    return f"pip install {' '.join(names)}"


def memory() -> Check:
    """RAM of this machine."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    free = re.search(r"MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"))
    told = size(total) + (f", {size(1024 * int(free.group(1)))} free" if free else "")
    return Check(name="memory", state="ok", told=told)


def disk(folder: str = ".") -> Check:
    """Free space where the command is run; a quickstart needs little, a checkpoint of an 8B model about 96 GB."""
    free, writable = shutil.disk_usage(folder).free, os.access(folder, os.W_OK)
    told = f"{size(free)} free in {os.path.abspath(folder)}"
    if not writable:
        return Check(
            name="disk", state="missing", told=f"{told}, which may not be written to", mend="go to another folder"
        )
    if free < 1e9:
        return Check(name="disk", state="missing", told=told, mend="free at least 1 GB")
    return Check(name="disk", state="ok", told=told)


def compile_cache(folder: str = "~/.cache/t-elaine/xla") -> Check:
    """Can compiled code be kept?"""
    path = os.path.expanduser(folder)
    there = path
    while not os.path.exists(there):
        there = os.path.dirname(there)
    if os.path.isdir(there) and os.access(there, os.W_OK):
        return Check(name="compile cache", state="ok", told=f"{path} can be written")
    mend = "train.compilation_cache = 'another/folder', or None"
    return Check(name="compile cache", state="note", told=f"{path} cannot be written", mend=mend)


def tools() -> list[Check]:
    """git, and the gin files and samples that are shipped."""
    found = [Check(name="git", state="ok", told=str(shutil.which("git")))]
    if shutil.which("git") is None:
        found = [
            Check(name="git", state="note", told="not found: runs will not record their commit", mend="install git")
        ]
    package = os.path.dirname(os.path.abspath(__file__))
    for name, pattern in (("gin_configs", ".gin"), ("data_tasks", ".jsonl")):
        inside = os.path.join(package, "_shipped", name)
        folder = inside if os.path.isdir(inside) else os.path.join(os.path.dirname(package), name)
        count = sum(file.endswith(pattern) for _, _, files in os.walk(folder) for file in files)
        state, mend = ("ok", "") if count else ("missing", "install t-elaine anew: its files are not where they belong")
        found.append(Check(name=name, state=state, told=f"{count} {pattern} files in {folder}", mend=mend))
    return found


def fonts() -> Check:
    """A font with Japanese and Chinese, which plots need for labels in these languages."""
    done = run(["fc-list", ":lang=ja", "family"]) if shutil.which("fc-list") else ""
    places = ("/usr/share/fonts", "/Library/Fonts", "/System/Library/Fonts", os.path.expanduser("~/.fonts"))
    files = [file for place in places for _, _, names in os.walk(place) for file in names]
    like = [file for file in files if re.search(r"CJK|Gothic|Mincho|SourceHan|Hiragino|wqy|ipa[gm]", file)]
    if done.strip() or like:
        return Check(name="fonts", state="ok", told=f"Japanese and Chinese: {(done.splitlines() or like)[0].strip()}")
    mend = "apt install fonts-noto-cjk"
    return Check(name="fonts", state="note", told="none for Japanese and Chinese (labels of plots only)", mend=mend)


def access() -> list[Check]:
    """Are there credentials for object stores and gated models? Their contents are neither read nor shown."""
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", "")
    default = os.path.expanduser("~/.config/gcloud/application_default_credentials.json")
    where = named or default
    gs = Check(name="gs:// access", state="ok", told=f"credentials in {where}")
    if not os.path.isfile(where):
        told = (
            f"GOOGLE_APPLICATION_CREDENTIALS names {named}, which is not there" if named else "no credentials in a file"
        )
        mend = "gcloud auth application-default login (a cloud machine's own account needs no file)"
        gs = Check(name="gs:// access", state="note", told=told, mend=mend)
    token = os.environ.get("HF_TOKEN") or os.path.isfile(os.path.expanduser("~/.cache/huggingface/token"))
    hub = Check(name="hub token", state="ok", told="there is one")
    if not token:
        hub = Check(name="hub token", state="note", told="none (gated models only)", mend="hf auth login")
    return [gs, hub]


def reached(url: str) -> Check:
    """Does a host answer within three seconds?"""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=3) as answer:
            return Check(name="network", state="ok", told=f"{url} answers {answer.status}")
    except urllib.error.HTTPError as error:
        return Check(name="network", state="ok", told=f"{url} answers {error.code}")
    except OSError as error:
        mend = "work offline with local folders, or set HTTPS_PROXY"
        return Check(name="network", state="note", told=f"{url} is not reached: {error}", mend=mend)


# Asked of a process of its own: a JAX that is broken, or that takes the device, must not take the doctor with it.
PROBE = """
import json, sys
import jax
devices = jax.devices()
memory = (devices[0].memory_stats() or {}).get("bytes_limit") if devices[0].platform != "cpu" else None
print(json.dumps({"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices),
                  "memory": memory, "processes": jax.process_count()}), flush=True)
import t_elaine.train
heavy = ("tensorflow", "seqio", "transformers", "torch", "datasets")
print(json.dumps([name for name in heavy if name in sys.modules]), flush=True)
"""


def start_probe() -> "subprocess.Popen[str]":
    """Ask for devices and for what training imports."""
    command = [sys.executable, "-c", PROBE]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _probed(probe: "subprocess.Popen[str]") -> list[Check]:
    try:
        printed, errors = probe.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        probe.kill()
        printed, errors = probe.communicate()[0], "no answer within 60 s; is another process holding the device?"
    answers = [json.loads(line) for line in printed.splitlines() if line[:1] in "[{"]
    last = (errors.strip().splitlines() or ["no answer"])[-1]
    if not answers:
        mend = "free the device, or mend the installation: pip install -U 't-elaine[tpu]' or 't-elaine[cuda13]'"
        return [Check(name="devices", state="missing", told=f"JAX does not start: {last}", mend=mend)]
    found = [_devices(answers[0])]
    if len(answers) == 1:
        mend = "pip install -e . in the checkout, or pip install -U t-elaine"
        return [
            *found,
            Check(name="training", state="missing", told=f"t_elaine.train does not import: {last}", mend=mend),
        ]
    if answers[1]:
        told = f"training imports {', '.join(answers[1])}, which it must not"
        return [*found, Check(name="training", state="note", told=told, mend="tell us: this is a bug")]
    return [*found, Check(name="training", state="ok", told="imports no TensorFlow, SeqIO, transformers or PyTorch")]


def _devices(answer: dict[str, Any]) -> Check:
    told = f"{answer['count']} x {answer['kind']} ({answer['platform']})"
    told += f", {size(answer['memory'])} each" if answer["memory"] else ""
    hidden = {"tpu": "/dev/accel0", "cuda13": "/dev/nvidia0"}
    for extra, device in hidden.items():
        if answer["platform"] == "cpu" and os.path.exists(device) and os.environ.get("JAX_PLATFORMS", "") != "cpu":
            told = f"{told}, although {device} is there"
            return Check(name="devices", state="note", told=told, mend=f"pip install 't-elaine[{extra}]'")
    return Check(name="devices", state="ok", told=told)


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit in ("B", "kB", "MB") else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def run(command: Sequence[str]) -> str:
    """What a program prints, "" if it does not end well within three seconds."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=3, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _text(path: str) -> str:
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()
