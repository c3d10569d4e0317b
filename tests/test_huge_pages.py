"""Huge pages on a CPU: when the wish is made, and that `train` starts itself again with it, once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t_elaine import huge_pages

WISH = "glibc.malloc.hugetlb=1"


def machine(tmp_path: Path, pages: str = "always [madvise] never", device: str = "") -> tuple[Path, Path]:
    """The kernel's switch and a folder of devices."""
    switch, devices = tmp_path / "enabled", tmp_path / "dev"
    switch.write_text(pages + "\n")
    (devices / device).mkdir(parents=True)
    return switch, devices


@pytest.fixture(autouse=True)
def new_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, WISH),
        ({"JAX_PLATFORMS": "cpu"}, WISH),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, f"glibc.malloc.arena_max=2:{WISH}"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, None),
        ({"JAX_PLATFORMS": "tpu"}, None),
    ],
)
def test_the_wish_is_made_once_and_only_on_a_cpu(
    tmp_path: Path, environment: dict[str, str], wanted: str | None
) -> None:
    assert huge_pages.tunables(environment, *machine(tmp_path)) == wanted


@pytest.mark.parametrize("device", ["nvidia0", "accel0", "vfio/0"])
def test_not_beside_an_accelerator_unless_the_cpu_is_named(tmp_path: Path, device: str) -> None:
    switch, devices = machine(tmp_path, device=device)
    assert huge_pages.tunables({}, switch, devices) is None
    assert huge_pages.tunables({"JAX_PLATFORMS": "cpu"}, switch, devices) == WISH


def test_not_where_the_kernel_or_the_library_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch, devices = machine(tmp_path, "[always] madvise never")
    assert huge_pages.tunables({}, switch, devices) is None
    assert huge_pages.tunables({}, tmp_path / "absent", devices) is None
    switch.write_text("always [madvise] never\n")
    for library in (("glibc", "2.34"), ("", "")):
        monkeypatch.setattr("platform.libc_ver", lambda library=library: library)
        assert huge_pages.tunables({}, switch, devices) is None


@pytest.mark.parametrize("start", [["-m", "t_elaine.train"], ["-m", "t_elaine", "train"]])
def test_train_starts_itself_again_with_its_arguments(tmp_path: Path, start: list[str]) -> None:
    (tmp_path / "told.py").write_text("import os\nprint('tunables:', os.environ.get('GLIBC_TUNABLES'))\n")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(huge_pages.__file__).parents[1])}
    environment.pop("GLIBC_TUNABLES", None)
    command = [sys.executable, *start, "--gin_file=cpt.gin", "--module=told", "--gin.RUN_DIR='a b'", "--gin.NOTHING=1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "NOTHING" in done.stderr, done.stderr
    assert done.stdout.splitlines() == [f"tunables: {WISH if '[madvise]' in switch_text() else None}"]


def switch_text() -> str:
    return huge_pages.PAGES.read_text() if huge_pages.PAGES.is_file() else ""
