"""The doctor: what it says of this machine, and that it still speaks where JAX is broken."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from t_elaine import checkup, doctor, machine
from t_elaine.checkup import COMMANDS, Check

REPOSITORY = Path(__file__).resolve().parent.parent

STATES = ("ok", "missing", "note")


def ask(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "t_elaine.doctor", *arguments]
    own = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=own)


def test_here_training_is_possible(tmp_path: Path) -> None:
    done = ask(tmp_path, "--json")
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout + done.stderr
    assert {check["state"] for check in found.values()} <= set(STATES)
    assert found["jax"]["told"] == f"jax {machine.version_of('jax')}, jaxlib {machine.version_of('jaxlib')}"
    assert "cpu" in found["devices"]["told"] and str(tmp_path) in found["disk"]["told"]
    assert found["training"]["told"] == "imports no TensorFlow, SeqIO, transformers or PyTorch"
    assert {"Python", "memory", "compile cache", "git", "gin_configs", "fonts", "gs:// access", "extra data"} <= set(
        found
    )
    assert all(check["mend"] for check in found.values() if check["state"] != "ok")


def test_only_what_a_command_needs_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra whose command does not exist is no advice; once it does, it is."""
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["jax[tpu]; extra == 'plan'", "x; extra == 'data'"])
    monkeypatch.setattr(checkup, "version_of", lambda name: "1" if name in ("t-elaine", "jax") else None)
    for command, there in ((COMMANDS["plan"], importlib.util.find_spec("t_elaine.plan") is not None), ("doctor", True)):
        monkeypatch.setitem(COMMANDS, "plan", command)
        found = {check.name: check for check in checkup.packages()}
        assert ("extra plan" in found) == there and found["extra data"].mend == "pip install 't-elaine[data]'"
    assert "libtpu" in found["extra plan"].told


def test_the_extras_are_bound() -> None:
    """libtpu is never named by itself: jax knows which one goes with it, and constraints.txt has that one."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(n for group in project["optional-dependencies"].values() for n in group)]
    assert not [name for name in named if name.startswith("libtpu")]
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = dict(line.split(" ")[0].split("==") for line in lines if "==" in line)
    asked = [Requirement(text) for text in importlib.metadata.requires("jax") or []]
    bounds = [one.specifier for one in asked if one.name == "libtpu" and "tpu" in str(one.marker)]
    if locked["jax"] == machine.version_of("jax"):
        assert bounds and all(bound.contains(locked["libtpu"]) for bound in bounds)
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert not [
        extra for extra in re.findall(r"--extra (\w+)", makefile) if extra not in project["optional-dependencies"]
    ]


def test_mixed_versions_are_told_with_the_command_that_mends_them(tmp_path: Path) -> None:
    folder = tmp_path / "jaxlib-0.4.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: jaxlib\nVersion: 0.4.1\n")
    done = ask(tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
    assert f"missing jax           jax {machine.version_of('jax')} does not work with jaxlib 0.4.1" in done.stdout
    assert "mend: pip install jax==" in done.stdout and done.stdout.endswith("training is not possible here: jax\n")


def test_a_jax_that_does_not_import_is_told(tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("raise RuntimeError('jaxlib is of another build')\n")
    done = ask(tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
    assert "JAX does not start: RuntimeError: jaxlib is of another build" in done.stdout


def test_it_imports_nothing_that_may_be_broken() -> None:
    program = (
        "import sys, t_elaine.doctor;"
        "print([m for m in ('jax', 'numpy', 'gin', 'fsspec', 'flax', 'rich', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_flag_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--jsn"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown argument '--jsn'")


@pytest.mark.parametrize(
    ("jax", "jaxlib", "needs", "fits"),
    [
        ("0.10.2", "0.10.2", "jaxlib<=0.10.2,>=0.10.1", True),
        ("0.10.2", "0.10.1", "jaxlib<=0.10.2,>=0.10.1", True),
        ("0.10.2", "0.10.10", "jaxlib<=0.10.2,>=0.10.1", False),
        ("0.10.2", "0.11.0", "jaxlib (<=0.10.2,>=0.10.1)", False),
        ("0.10.2", "0.10.0", "jaxlib<=0.10.2,>=0.10.1", False),
        ("0.10.2", None, "jaxlib<=0.10.2,>=0.10.1", False),
        (None, "0.10.2", "", False),
    ],
)
def test_which_pairs_go_together(
    monkeypatch: pytest.MonkeyPatch, jax: str | None, jaxlib: str | None, needs: str, fits: bool
) -> None:
    monkeypatch.setattr(machine, "version_of", {"jax": jax, "jaxlib": jaxlib}.get)
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda _: ["ml_dtypes>=0.5", needs])
    assert (machine.mixed_jax() is None) == fits


def test_what_is_missing_decides_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkup, "checks", lambda _: [Check(name="fonts", state="note", told="none", mend="install")])
    assert doctor.main([]) == 0
    monkeypatch.setattr(
        checkup, "checks", lambda _: [Check(name="disk", state="missing", told="full", mend="free some")]
    )
    assert doctor.main([]) == 2
    assert capsys.readouterr().out.endswith("training is not possible here: disk\n")


def test_lacking_packages_are_told_by_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        "flax>=0.12",
        "seqio==0.0.20; extra == 'data'",
        "t-elaine[data]; extra == 'beam'",
        'jax[tpu]; extra == "tpu"',
    ]
    monkeypatch.setattr(checkup.importlib.metadata, "requires", lambda _: asked)
    monkeypatch.setattr(checkup, "version_of", {"t-elaine": "1", "jax": "1"}.get)
    found = {check.name: check for check in checkup.packages()}
    assert found["packages"].state == "missing" and found["packages"].mend == "pip install flax"
    assert found["extra data"].told.startswith("not installed: seqio") and found["extra beam"].state == "ok"
    assert "libtpu" in found["extra tpu"].told


def test_transformers_without_torch_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup.importlib.metadata, "requires", lambda _: ["transformers>=5; extra == 'eval'"])
    installed = {"t-elaine": "1", "transformers": "5"}
    monkeypatch.setattr(checkup, "version_of", lambda name: installed.get(name))
    found = {check.name: check for check in checkup.packages()}["extra eval"]
    assert found.state == "note" and found.mend == "pip install torch"
    assert "not compared through transformers: PyTorch is not installed" in found.told
    installed["torch"] = "2"
    assert {check.name: check for check in checkup.packages()}["extra eval"].state == "ok"


def test_a_folder_that_may_not_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup.os, "access", lambda *_: False)
    assert checkup.disk().state == "missing" and checkup.compile_cache().state == "note"


def test_credentials_are_looked_for_but_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nowhere.json"))
    gs, hub = checkup.access()
    assert gs.state == "note" and "nowhere.json, which is not there" in gs.told and hub.state == "ok"
    (tmp_path / "nowhere.json").write_text("secret")
    assert checkup.access()[0].state == "ok" and "secret" not in str(checkup.access())
