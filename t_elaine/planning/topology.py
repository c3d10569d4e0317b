"""From a topology's name to the devices that a step is compiled for, which need not be there.

"v5e:16x16" or the cloud's "v5e-256" (cores, for v3, v4 and v5p), "cpu:8" (simulated), "h100:8" (arithmetic only).
"""

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from t_elaine.errors import UserError
from t_elaine.planning.chips import CHIPS, Chip

CORES = ("v3", "v4", "v5p")  # the cloud counts two cores for each of their chips
WHOLE = 8  # chips of a v5e or v6e machine that is a slice by itself
WHERE = "plan.topology"


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Where a step is to run.

    Args:
        name: as given.
        chip: its chips.
        family: key in `CHIPS`.
        shape: chips along each axis of a slice.
        slices: slices (TPU), joined by the data centre's network.
    """

    name: str
    chip: Chip
    family: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """That JAX shows."""
        return self.chips * self.chip.devices_per_chip

    @property
    def hosts(self) -> int:
        """Machines that the chips are in. A flat slice of up to eight chips is one machine, larger ones are several."""
        a_slice = math.prod(self.shape)
        if self.chip.kind == "cpu" or (self.chip.kind == "tpu" and len(self.shape) == 2 and a_slice <= WHOLE):
            return self.slices
        return self.slices * math.ceil(a_slice / self.chip.node)

    @property
    def text(self) -> str:
        """For people."""
        slices = f"{self.slices} slices of " if self.slices > 1 else ""
        if self.chip.kind == "tpu":
            chips = f"{self.chips} chips" if self.chips > 1 else "1 chip"
            return f"{slices}{self.chip.label}, {' x '.join(map(str, self.shape))}, {chips}"
        return f"{self.chips} x {self.chip.label}"


def read(name: str, slices: int = 1) -> Topology:
    """The topology that a name means.

    Raises:
        UserError: there is no such chip or shape; names those that there are.
    """
    family, sign, size = name.lower().replace("-", ":").partition(":")
    chip = CHIPS.get(family)
    if chip is None or not sign:
        raise UserError(f"there is no topology {name!r}", WHERE, f"for example {names()}")
    if slices < 1 or (slices > 1 and chip.kind != "tpu"):
        raise UserError(f"{slices} slices of {name}", "plan.slices", "1, or more of them on TPUs")
    if chip.kind != "tpu":
        if not size.isdecimal() or not int(size):
            raise UserError(f"there is no topology {name!r}", WHERE, f"{family}:N for N devices, as in {family}:8")
        return Topology(name=name, chip=chip, family=family, shape=(int(size),))
    text = _by_count(family, chip, int(size)) if size.isdecimal() else size
    parts = text.split("x")
    if sorted(parts) not in [sorted(shape.split("x")) for shape in chip.shapes]:
        mend = f"{family} comes as {', '.join(f'{family}:{shape}' for shape in chip.shapes)}"
        raise UserError(f"there is no topology {name!r}", WHERE, mend)
    return Topology(name=name, chip=chip, family=family, shape=tuple(map(int, parts)), slices=slices)


def _by_count(family: str, chip: Chip, count: int) -> str:
    chips = count // 2 if family in CORES else count
    return next((shape for shape in chip.shapes if math.prod(map(int, shape.split("x"))) == chips), "")


def names() -> str:
    """Examples of every kind."""
    tpus = [f"{family}:{chip.shapes[-1]}" for family, chip in CHIPS.items() if chip.kind == "tpu"]
    others = [f"{family}:8" for family, chip in CHIPS.items() if chip.kind != "tpu"]
    return ", ".join([*tpus, *others])


def has_compiler() -> bool:
    """Whether libtpu is installed here."""
    return bool(os.environ.get("TPU_LIBRARY_PATH")) or importlib.util.find_spec("libtpu") is not None


def described(topology: Topology) -> Sequence[Any]:
    """Devices to compile for: libtpu's descriptions of TPUs that are not there, or simulated CPUs.

    Call it before anything has taken JAX's devices.
    """
    if topology.chip.kind == "cpu":
        return _simulated(topology.devices)
    from jax.experimental import topologies

    # Never wait for a cloud machine's metadata, never take a TPU that is there.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Where nobody says what this machine is, libtpu asks in vain and complains on stderr. What is compiled for does not
    # depend on it.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    jax.config.update("jax_platforms", "cpu")
    name = f"{topology.chip.library}:{'x'.join(map(str, topology.shape))}"
    given: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.family in ("v4", "v5p"):
        given["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **given).devices
    except jax.errors.JaxRuntimeError as error:
        told = str(error).splitlines()[0]
        raise UserError(f"libtpu refuses {name}: {told}", WHERE, f"for example {names()}") from error


def _simulated(count: int) -> Sequence[Any]:
    jax.config.update("jax_platforms", "cpu")
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", count)
    there = jax.devices("cpu")
    if len(there) < count:
        mend = f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        raise UserError(f"{len(there)} simulated devices are there, {count} are wanted", WHERE, mend)
    return there[:count]
