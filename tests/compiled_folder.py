"""Where the tests keep compiled programs from run to run. Imported before JAX, whose environment it helps to set."""

import hashlib
import importlib.metadata
import platform
from pathlib import Path


def compiled_folder() -> Path:
    """A folder for each kind of processor and version of jaxlib: what is compiled for one may not run on another."""
    cpu = Path("/proc/cpuinfo")
    flags = [line for line in cpu.read_text().splitlines() if line.startswith("flags")][:1] if cpu.is_file() else []
    named = f"{platform.machine()} {platform.processor()} {flags} {importlib.metadata.version('jaxlib')}"
    return Path.home() / ".cache" / "t-elaine" / "tests" / hashlib.sha256(named.encode()).hexdigest()[:12]
