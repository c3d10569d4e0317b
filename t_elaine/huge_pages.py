"""Huge pages for training on a CPU: the process starts itself again with the C library told to ask for them.

XLA returns gigabytes of temporaries to the system after every step and faults them in again, 4 KB at a time; 2 MB at a
time that costs next to nothing. glibc takes the wish from the environment only, before the process begins (2.35 and
later, https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html). Nothing here imports JAX.
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE, WISH = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
DEVICES = ("nvidia0", "accel0", "vfio/0", "kfd")


def tunables(environment: Mapping[str, str], pages: Path = PAGES, devices: Path = Path("/dev")) -> str | None:
    """The value of GLIBC_TUNABLES to start again with; None where it would change nothing or was decided before.

    Args:
        environment: the process's. A value that names the wish already, 0 included, is left as it is.
        pages: the kernel's switch; only `madvise` leaves the choice to the program.
        devices: where accelerators show; with one of them the CPU does not compute.
    """
    before = environment.get(VARIABLE, "")
    if WISH in before or not on_cpu(environment, devices):
        return None
    if not pages.is_file() or "[madvise]" not in pages.read_text(encoding="ascii"):
        return None
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < (2, 35):
        return None
    return ":".join(part for part in (before, f"{WISH}=1") if part)


def on_cpu(environment: Mapping[str, str], devices: Path = Path("/dev")) -> bool:
    """True if JAX is told to compute on the CPU, or has nothing else."""
    told = environment.get("JAX_PLATFORMS", "")
    return told == "cpu" if told else not any((devices / name).exists() for name in DEVICES)


def start_again() -> None:
    """Replace this process by itself with huge pages, where they help; call it before anything is open or running."""
    wish = tunables(os.environ)
    if wish is not None:
        os.environ[VARIABLE] = wish
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
