"""The list of every setting: what gin can configure is registered here and nowhere else.

A setting is a frozen dataclass or a command's root function. The library below knows nothing of gin.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import gin

# Command → its root function. The flags of a command are parameters of its root.
ROOTS: dict[str, str] = {
    "prepare": "t_elaine.prepare:prepare",
    "train": "t_elaine.train:train",
    "import_hf": "t_elaine.import_hf:import_hf",
    "export": "t_elaine.export:export",
    "evaluate": "t_elaine.evaluate:evaluate",
    "sweep": "t_elaine.sweep:sweep",
    "report": "t_elaine.report:report",
    "doctor": "t_elaine.doctor:doctor",
}

# Frozen dataclasses that roots take, by the module that owns them.
DATACLASSES: tuple[str, ...] = (
    "t_elaine.model.config:LlamaConfig",
    "t_elaine.model.config:RopeScaling",
    "t_elaine.model.config:ComputeConfig",
    "t_elaine.parallel.mesh:MeshConfig",
    "t_elaine.training.optimizer:Schedule",
    "t_elaine.training.optimizer:AdamW",
    "t_elaine.training.loop:Loop",
    "t_elaine.checkpoints.writing:Checkpointing",
    "t_elaine.data.mixture:Mixture",
    "t_elaine.data.mixture:Phase",
    "t_elaine.data.mixture:Replay",
)

# Filled in by the command line, not by gin files.
NOT_SETTINGS = ("argv", "config_text")


def resolve(path: str) -> Callable[..., Any]:
    """The object that "module:name" points to."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def configurables() -> dict[str, Callable[..., Any]]:
    """Name → dataclass or root function, for everything that gin can configure."""
    named = {path.split(":")[1]: path for path in DATACLASSES} | ROOTS
    return {name: resolve(path) for name, path in named.items()}


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The settable parameters of a configurable, in order."""
    found = inspect.signature(target).parameters
    return {name: parameter for name, parameter in found.items() if name not in NOT_SETTINGS}


def register() -> dict[str, Callable[..., Any]]:
    """Register every setting with gin, once in a process; returns name → configured callable."""
    wrapped = {}
    for name, target in configurables().items():
        maker = _maker(target) if dataclasses.is_dataclass(target) else target
        deny = [p for p in NOT_SETTINGS if p in inspect.signature(target).parameters]
        wrapped[name] = gin.external_configurable(maker, name=name, module="t_elaine", denylist=deny or None)
    return wrapped


def _maker(target: Any) -> Callable[..., Any]:
    """A function that makes the dataclass: gin would otherwise subclass it, and a subclass is another type."""

    def make(**fields: Any) -> Any:
        return target(**fields)

    make.__signature__ = inspect.signature(target)  # type: ignore[attr-defined]
    make.__name__, make.__doc__, make.__module__ = target.__name__, target.__doc__, target.__module__
    return make
