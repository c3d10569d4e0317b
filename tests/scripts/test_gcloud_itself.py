"""Every gcloud command of the scripts and the pages, read by the installed gcloud: it knows the command and its flags.

It has no account here, so that it ends where it would call Google.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.scripts.cloud import Cloud, printed_commands

REPOSITORY = Path(__file__).resolve().parents[2]
GCLOUD = shutil.which("gcloud")
ACTS_HERE = ("auth", "config-ssh")  # a login, keys and ssh settings of this machine

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(GCLOUD is None, reason="the Google Cloud CLI is not installed: its flags are not checked"),
]


def of_scripts(cloud: Cloud) -> list[list[str]]:
    """What dry runs of all scripts print, with each setting that makes a flag."""
    everything = {"VALID_UNTIL": "6h", "SERVICE_ACCOUNT": "a@b.gserviceaccount.com", "NETWORK": "n", "SUBNETWORK": "s"}
    found = []
    for changed in ({}, {**everything, "INTERNAL_IPS": "yes", "SLICES": "2"}, {"CAPACITY": "reserved"}):
        cloud.config(**changed)
        scripts = ("create", "install", "launch", "logs", "resume", "delete") if "SLICES" in changed else ("create",)
        for script in scripts:
            dry = cloud.run(script, "--dry_run", *{"logs": ["--all"], "delete": ["--stop"]}.get(script, []))
            assert dry.returncode == 0, dry.stderr
            found += printed_commands(dry.stdout)
    assert len(found) > 20 and cloud.calls() == []
    return found


def of_pages() -> list[list[str]]:
    """The commands that pages show in blocks of their own."""
    found = []
    for page in ("tpu_pod", "two_weeks"):
        text = re.sub(r"\\\n\s*", "", (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8"))
        lines = [line for block in re.findall(r"^```\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]
        found += [shlex.split(re.split(r"\s{3,}\S", line)[0])[1:] for line in lines if line.startswith("gcloud ")]
    assert len(found) > 10
    return [words for words in found if not set(words) & set(ACTS_HERE)]


def shape(words: list[str]) -> tuple[str, ...]:
    """A command without the values of its flags: each shape is asked once."""
    return tuple(word.partition("=")[0] for word in words)


def test_gcloud_knows_each_command_and_its_flags(tmp_path: Path) -> None:
    commands = {shape(words): words for words in [*of_scripts(Cloud(tmp_path)), *of_pages()]}
    (tmp_path / "home").mkdir()
    alone = {"HOME": str(tmp_path / "home"), "CLOUDSDK_CONFIG": str(tmp_path / "home"), "PATH": os.environ["PATH"]}
    switches = ("CORE_DISABLE_PROMPTS=1", "CORE_DISABLE_USAGE_REPORTING=1", "CORE_CHECK_GCE_METADATA=false")
    alone |= dict(f"CLOUDSDK_{switch}".split("=") for switch in switches)

    def told(words: list[str]) -> str:
        done = subprocess.run([str(GCLOUD), *words], env=alone, capture_output=True, text=True, timeout=120)
        return done.stderr

    assert "unrecognized arguments" in told(["compute", "tpus", "queued-resources", "list", "--zonne=a"])
    refused = {shlex.join(words): text for words in commands.values() if "active account" not in (text := told(words))}
    assert refused == {}
