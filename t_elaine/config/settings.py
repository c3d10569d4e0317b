"""The list of every setting: what gin can configure is registered here and nowhere else.

A setting is a parameter of a frozen dataclass, of a function that makes a value, or of a command's root function. The
library below knows nothing of gin.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import gin

# Command → its root function. The flags of a command are parameters of its root. (`doctor` has no settings: it must
# work where nothing else does.)
ROOTS: dict[str, str] = {
    "prepare": "t_elaine.prepare:prepare",
    "train": "t_elaine.train:train",
    "import_hf": "t_elaine.import_hf:import_hf",
    "export": "t_elaine.export:export",
    "evaluate": "t_elaine.evaluate:evaluate",
    "sweep": "t_elaine.sweep:sweep",
    "report": "t_elaine.report:report",
    "plan": "t_elaine.plan:plan",
    "generate": "t_elaine.generate:generate",
    "merge": "t_elaine.merge:merge",
}

# Command → the command whose settings it reads too: its root is handed them as `training`.
READS: dict[str, str] = {"plan": "train"}

# Frozen dataclasses that roots take, by the module that owns them.
DATACLASSES: tuple[str, ...] = (
    "t_elaine.model.config:LlamaConfig",
    "t_elaine.model.config:RopeScaling",
    "t_elaine.model.config:ComputeConfig",
    "t_elaine.model.lora:Lora",
    "t_elaine.parallel.mesh:MeshConfig",
    "t_elaine.parallel.hosts:Hosts",
    "t_elaine.training.optimizer:Schedule",
    "t_elaine.training.optimizer:AdamW",
    "t_elaine.training.loop:Loop",
    "t_elaine.training.lease:Lease",
    "t_elaine.training.watchdog:Watchdog",
    "t_elaine.training.start:Start",
    "t_elaine.training.preference:Preference",
    "t_elaine.checkpoints.writing:Checkpointing",
    "t_elaine.data.mixture:Mixture",
    "t_elaine.data.mixture:Phase",
    "t_elaine.data.mixture:Priority",
    "t_elaine.data.mixture:Replay",
    "t_elaine.data.overlap:Overlap",
    "t_elaine.planning.assumptions:Assumptions",
    "t_elaine.planning.search:Search",
    "t_elaine.generation.sampling:Sampling",
    "t_elaine.forgetting:Forgetting",
    "t_elaine.evaluation.quantised:QuantisedCheck",
    "t_elaine.hf.card_rules:Card",
    "t_elaine.peers.patience:Endpoint",
)

# Functions that make a value: gin name → where it is.
FUNCTIONS: dict[str, str] = {
    "axis": "t_elaine.studies.grid:axis",
    "product": "t_elaine.studies.grid:product",
    "zip": "t_elaine.studies.grid:zipped",
    "chain": "t_elaine.studies.grid:chain",
}

# Filled in by the command line, not by gin files.
NOT_SETTINGS = ("argv", "config_text", "training")


def resolve(path: str) -> Callable[..., Any]:
    """The object that "module:name" points to."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def configurables() -> dict[str, Callable[..., Any]]:
    """Name → dataclass, function or root, for everything that gin can configure."""
    named = {path.split(":")[1]: path for path in DATACLASSES} | FUNCTIONS | ROOTS
    return {name: resolve(path) for name, path in named.items() if importlib.util.find_spec(path.split(":")[0])}


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The settable parameters of a configurable, in order."""
    found = inspect.signature(target).parameters
    return {name: parameter for name, parameter in found.items() if name not in NOT_SETTINGS}


def register() -> dict[str, Callable[..., Any]]:
    """Register every setting with gin; returns name → what makes its value.

    A root's maker returns the root's arguments as a dictionary and does not call it: what goes wrong inside a command
    must not pass through gin, which hides an error behind a copy of another type.
    """
    made: dict[str, Callable[..., Any]] = {}
    gin.clear_config()
    with gin.config.interactive_mode():  # a second command in one process registers anew
        for name, target in configurables().items():
            deny = [p for p in NOT_SETTINGS if p in inspect.signature(target).parameters]
            maker = _maker(target, dict if name in ROOTS else target)
            made[name] = gin.external_configurable(maker, name=name, module="t_elaine", denylist=deny or None)
    return made


def _maker(target: Any, result: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function with the target's signature: gin would subclass a dataclass, and a subclass is another type."""

    def make(**fields: Any) -> Any:
        return result(**fields)

    make.__signature__ = inspect.signature(target)  # type: ignore[attr-defined]
    make.__name__, make.__doc__, make.__module__ = target.__name__, target.__doc__, target.__module__
    return make
