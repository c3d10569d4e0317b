"""Compiles a step for devices that are not there, and keeps what the compiler says of its memory.

Reads no costs (`costs`) and judges nothing (`answer`).
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from t_elaine import paths
from t_elaine.errors import UserError
from t_elaine.training.compilation import check_option, interruptible, too_large
from t_elaine.training.step import Step, batch_shapes

# What the compiler's dump is called, after the program's name.
ASSIGNMENT, LIVES, PROGRAM = "buffer-assignment.txt", "live-range.txt", "after_optimizations.txt"
CODE = "after_codegen.txt"  # the same with what instructions cost
DUMPS = "t-elaine-plan-"  # folders of dumps, by process


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled step.

    Args:
        hlo: its optimised program.
        peak: bytes that it needs on one device at the worst moment.
        arguments: bytes of state and batch.
        assignment: the compiler's buffer assignment, "" where it dumps none.
        lives: when each buffer lives, likewise.
        seconds: that lowering and compiling took.
    """

    hlo: str
    peak: int
    arguments: int
    assignment: str
    lives: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TooLarge:
    """The compiler's refusal: what it says, how long it took to say so, and what it dumped by then.

    Args:
        message: its own.
        seconds: that lowering and compiling took.
        hlo: the program as far as it came; "" where it dumps none.
        assignment: as in `Compiled`.
        lives: as in `Compiled`.
    """

    message: str
    seconds: float
    hlo: str = ""
    assignment: str = ""
    lives: str = ""


def compile_step(step: Step, shape: tuple[int, int, int]) -> Compiled | TooLarge:
    """Compile the step for a batch.

    Args:
        step: from `training.building`.
        shape: (A, B, T).

    Raises:
        UserError: the compiler refuses an option, or the program for another reason than its size.
    """
    begun = time.perf_counter()
    lowered = step.run.lower(step.state_shapes, batch_shapes(*shape, step.batch_sharding, step.arrays))
    clear_dumps()
    prefix = f"{DUMPS}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder, compiled_anew():
        dump: Any = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            done = interruptible(lambda: lowered.compile(compiler_options=dump))
        except jax.errors.JaxRuntimeError as error:
            return _refused(error, time.perf_counter() - begun, folder)
        memory: Any = done.memory_analysis()
        peak = int(memory.peak_memory_in_bytes)
        if step.batch_sharding.mesh.devices.flat[0].platform == "cpu":  # whose peak leaves out what is temporary
            peak = int(memory.argument_size_in_bytes + memory.temp_size_in_bytes)
        return Compiled(
            hlo=_program(done, folder),
            peak=peak,
            arguments=int(memory.argument_size_in_bytes),
            assignment=_dumped(folder, ASSIGNMENT),
            lives=_dumped(folder, LIVES),
            seconds=time.perf_counter() - begun,
        )


def clear_dumps() -> None:
    """Remove what processes that are gone left: after an interrupt a compiler dumps on while its folder is cleared."""
    for folder in Path(tempfile.gettempdir()).glob(f"{DUMPS}*-*"):
        maker = folder.name[len(DUMPS) :].partition("-")[0]
        if maker.isdecimal() and not paths.runs(int(maker)):
            shutil.rmtree(folder, ignore_errors=True)


def _program(done: Any, folder: str) -> str:
    """The optimised program. Of collectives on SparseCores XLA cannot read back what libtpu wrote: then the dump."""
    try:
        return done.as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        text = _dumped(folder, CODE)
        if "async-update" not in str(error) or not text:
            raise
        return text


@contextmanager
def compiled_anew() -> Iterator[None]:
    """While inside, no program is taken from JAX's cache of compiled ones: it would come without its dump.

    JAX asks its settings once a process whether there is a cache, so it is made to ask again at both ends.
    """
    config: Any = jax.config
    before = config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _refused(error: jax.errors.JaxRuntimeError, seconds: float, folder: str) -> TooLarge:
    message = str(error)
    if "vmem" in message:
        raise UserError(
            f"a kernel needs more of the chip's own memory (VMEM) than there is: {_scoped(message)}",
            "ComputeConfig.attention, ComputeConfig.attention_block, train.compiler_options",
            "take another kernel or smaller blocks, or another limit of scoped VMEM",
        ) from error
    if too_large(message):
        dumped = {"hlo": PROGRAM, "assignment": ASSIGNMENT, "lives": LIVES}
        found = {name: _dumped(folder, ending) for name, ending in dumped.items()}
        return TooLarge(message=message, seconds=seconds, **found)
    check_option(message)
    told = f"the compiler refuses the step: {message.splitlines()[0]}"
    raise UserError(told, "compiler", "try other blocks, remat or options") from error


def _scoped(message: str) -> str:
    """What the compiler says of sizes, without the program around it."""
    found = re.search(r"Scoped allocation with size \S+ and limit \S+", message)
    return found.group() if found else message.splitlines()[0]


def _dumped(folder: str, ending: str) -> str:
    """The dump of the step itself; several programs may have been compiled, the largest is the step."""
    found = sorted(Path(folder).glob(f"*{ending}"), key=lambda path: path.stat().st_size)
    return found[-1].read_text(encoding="utf-8", errors="replace") if found else ""


def versions(step_options: Mapping[str, str]) -> dict[str, str]:
    """What a compiled answer depends on besides the settings and the code."""
    named = {name: os.environ.get(name, "") for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS", "TPU_LIBRARY_PATH")}
    for package in ("jax", "jaxlib", "libtpu"):
        try:
            named[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return named | {f"option {key}": str(value) for key, value in sorted(step_options.items())}
