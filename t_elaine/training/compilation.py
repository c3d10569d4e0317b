"""Compiling the step ahead of its first use, and keeping compiled code between runs."""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from t_elaine.errors import UserError
from t_elaine.training.step import Step

# Signs of a compiler's refusal, by what it refuses.
TOO_LARGE = ("RESOURCE_EXHAUSTED", "CompileTimeHbmOom", "exceeds available HBM")
OPTION = ("compile option", "compiler option", "setting option")
Found = TypeVar("Found")


def interruptible(work: Callable[[], Found]) -> Found:
    """What the work gives. It is done in a thread: the main one hears no signal while it is in C++, for minutes.

    An interrupt leaves the thread at work; a command then leaves the process without waiting for it
    (`interrupts.end`).
    """
    return ThreadPoolExecutor(1, "compile").submit(work).result()


def keep_compiled(folder: str | None) -> None:
    """Keep compiled code in a folder, so that the next run of the same settings starts in seconds; None: do not."""
    if folder is not None:
        folder = os.path.expanduser(folder) if "://" not in folder else folder
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def compiled(step: Step, state: Any, batch: Mapping[str, Any], say: Callable[[str], None]) -> Callable[..., Any]:
    """The step compiled for these shapes, so that the loop's first step is a step like the others.

    Args:
        step: from `make_step`.
        state: `ShapeDtypeStruct`s of the state.
        batch: `ShapeDtypeStruct`s of a global batch.
        say: takes messages.

    Raises:
        UserError: the compiler says that it does not fit the device, or refuses an option.
    """
    start = time.perf_counter()
    try:
        lowered = step.run.lower(state, batch)
        done = interruptible(lowered.compile)
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if too_large(message):
            mend = 'fewer rows_per_device, ComputeConfig.remat = "full", or more devices along fsdp'
            raise UserError(f"the step does not fit the device: {message.splitlines()[0]}", "compiler", mend) from error
        check_option(message)
        raise
    say(f"step compiled in {time.perf_counter() - start:.1f} s")
    return done


def too_large(message: str) -> bool:
    """Whether a compiler refuses a step for its size."""
    return any(sign in message for sign in TOO_LARGE)


def check_option(message: str) -> None:
    """Raise UserError where a compiler refuses one of its options."""
    if any(sign in message.lower() for sign in OPTION):
        mend = "take the option out, or mend its value"
        raise UserError(message.splitlines()[0], "train.compiler_options", mend)
