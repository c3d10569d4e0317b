"""Which process of how many is this, and where is process 0: from settings, the environment, a TPU pod, or SLURM.

It only looks; it connects to nobody (but a TPU machine's own metadata server, through JAX).
"""

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t_elaine.errors import UserError

if TYPE_CHECKING:
    from t_elaine.parallel.hosts import Hosts

ENVIRONMENT = "T_ELAINE_"
PORT_BASE, PORT_RANGE = 61440, 4096  # a SLURM job's port, from its number


@dataclass(frozen=True, kw_only=True)
class Place:
    """One process of several.

    Args:
        address: host and port of process 0.
        processes: how many.
        process: which one this is.
        names: host names by process; empty where they are not known.
        local_devices: GPUs to use; None: all.
        found: by what, for messages.
    """

    address: tuple[str, int]
    processes: int
    process: int
    names: tuple[str, ...] = ()
    local_devices: tuple[int, ...] | None = None
    found: str


def place(wishes: "Hosts", environment: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place among the others; None where it is alone.

    Raises:
        UserError: something is lacking, contradicts itself, or is not what was expected.
    """
    given = _given(wishes, environment)
    kind = wishes.kind
    if kind == "auto":
        explicit = any(given[name] is not None for name in ("coordinator", "processes", "process"))
        kind = "explicit" if explicit else "tpu" if on_tpu(environment) else "slurm" if in_step(environment) else "none"
    if kind == "explicit":
        found: Place | None = _explicit(given)
    elif kind == "slurm":
        found = _slurm(environment, given)
    elif kind == "tpu":
        found = _tpu(environment)
    else:
        found = None
    count = 1 if found is None else found.processes
    expected = given["expected"]
    if expected is not None and expected != count:
        by = "no others were found" if found is None else f"by {found.found}"
        what = f"{expected} processes are expected, but there are {count} ({by})"
        raise UserError(what, "Hosts.expected", f"start {expected}, or expect {count}")
    return found if count > 1 else None


def _given(wishes: "Hosts", environment: Mapping[str, str]) -> dict[str, Any]:
    """Settings, else the environment's; as numbers where they are numbers."""

    def number(name: str) -> int | None:
        value = getattr(wishes, name)
        text = environment.get(f"{ENVIRONMENT}{name.upper()}", "")
        if value is None and text and not re.fullmatch(r"\d+", text):
            what = f"{ENVIRONMENT}{name.upper()} is {text!r}"
            raise UserError(what, "environment", "give a number")
        return int(text) if value is None and text else value

    def several(value: tuple[Any, ...] | None, name: str) -> tuple[str, ...]:
        return tuple(map(str, value or ())) or tuple(t for t in environment.get(ENVIRONMENT + name, "").split(",") if t)

    devices = several(wishes.local_devices, "LOCAL_DEVICES")
    if not all(text.isdecimal() for text in devices):
        raise UserError(f"local devices {', '.join(devices)}", "Hosts.local_devices", "give numbers, as (0, 1)")
    return {
        "coordinator": wishes.coordinator or environment.get(f"{ENVIRONMENT}COORDINATOR") or None,
        **{name: number(name) for name in ("processes", "process", "expected")},
        "names": several(wishes.names, "HOSTS"),
        "local_devices": tuple(map(int, devices)) or None,
    }


def address(text: str) -> tuple[str, int]:
    """host:port or [IPv6]:port as host and port."""
    found = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+)):(\d+)", text.strip())
    if not found or not 0 < int(found.group(3)) < 65536:
        what = f"{text!r} is no address of process 0"
        raise UserError(what, "Hosts.coordinator", "give host:port, as node001:12345 (an IPv6 address in brackets)")
    return found.group(1) or found.group(2), int(found.group(3))


def _explicit(given: Mapping[str, Any]) -> Place:
    if given["processes"] == 1 and given["process"] in (None, 0):
        return Place(address=("localhost", 1), processes=1, process=0, found="Hosts.processes")
    lacking = [name for name in ("coordinator", "processes", "process") if given[name] is None]
    if lacking:
        what = f"several processes were asked for, but {' and '.join(lacking)} not given"
        names = ", ".join(f"Hosts.{name} or {ENVIRONMENT}{name.upper()}" for name in lacking)
        raise UserError(what, "Hosts", f"give {names}")
    processes, process = given["processes"], given["process"]
    if not 0 <= process < processes:
        mend = f"number the processes from 0 to {processes - 1}" if processes > 0 else "give at least 1"
        raise UserError(f"process {process} of {processes}", "Hosts.process, Hosts.processes", mend)
    return Place(
        address=address(given["coordinator"]),
        processes=processes,
        process=process,
        names=given["names"],
        local_devices=given["local_devices"],
        found="Hosts.processes",
    )


def in_step(environment: Mapping[str, str]) -> bool:
    """True inside `srun` with more than one task (a batch script itself, outside srun, is one process)."""
    return "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment and _tasks(environment) > 1


def _tasks(environment: Mapping[str, str]) -> int:
    return int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1)


def _slurm(environment: Mapping[str, str], given: Mapping[str, Any]) -> Place:
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID")
    lacking = [name for name in needed if name not in environment]
    if lacking:
        mend = "start the command with srun, one task for each process"
        raise UserError(f"this is no step of a SLURM job: {', '.join(lacking)} not set", "Hosts.kind", mend)
    nodes = node_names(environment["SLURM_STEP_NODELIST"])
    here = int(environment["SLURM_PROCID"])
    a_node = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""), len(nodes))
    devices = given["local_devices"]
    if devices is None and max(a_node) > 1 and not environment.get("CUDA_VISIBLE_DEVICES", ",").isdecimal():
        devices = (int(environment.get("SLURM_LOCALID", 0)),)
    port = PORT_BASE + int(environment["SLURM_JOB_ID"]) % PORT_RANGE
    return Place(
        address=address(given["coordinator"]) if given["coordinator"] else (nodes[0], port),
        processes=_tasks(environment),
        process=here,
        names=tuple(node for node, tasks in zip(nodes, a_node, strict=True) for _ in range(tasks)),
        local_devices=devices,
        found="SLURM's tasks",
    )


def tasks_per_node(text: str, nodes: int) -> tuple[int, ...]:
    """SLURM's "2(x3),1" as (2, 2, 2, 1); one each where it does not say."""
    counts: list[int] = []
    for part in filter(None, text.split(",")):
        count, _, times = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return tuple(counts) if len(counts) == nodes else (1,) * nodes


def node_names(text: str) -> tuple[str, ...]:
    """SLURM's "gpu[01-03,7],login" as names; brackets may stand at several places of a name."""
    names: list[str] = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        parts = re.findall(r"\[([^\]]*)\]|([^\[]+)", name)
        names += map("".join, itertools.product(*(_numbers(inside) if inside else [plain] for inside, plain in parts)))
    return tuple(names)


def _numbers(text: str) -> list[str]:
    """What stands in brackets: "08-10,12" as 08, 09, 10, 12."""
    found: list[str] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)] if last else [part]
    return found


def on_tpu(environment: Mapping[str, str]) -> bool:
    """True on a TPU machine whose TPUs are to be used."""
    from jax._src import cloud_tpu_init

    platforms = environment.get("JAX_PLATFORMS", "")
    return bool(cloud_tpu_init.running_in_cloud_tpu_vm) and (not platforms or "tpu" in platforms)


def _tpu(environment: Mapping[str, str]) -> Place:
    """A TPU pod, one slice or several, as JAX's own detection sees it (the only public way is to start it blindly)."""
    from jax._src.clusters import cloud_tpu_cluster

    kinds = (cloud_tpu_cluster.GkeTpuCluster, cloud_tpu_cluster.GceTpuCluster)
    cluster: Any = next((kind for kind in kinds if kind.is_env_present()), None)
    if cluster is None:
        if environment.get("TPU_SKIP_MDS_QUERY") is not None:
            return Place(address=("localhost", 1), processes=1, process=0, found="the environment of this TPU machine")
        mend = 'give Hosts.kind = "none" on a single machine, or "explicit" with coordinator, processes and process'
        raise UserError("this is no machine of a TPU pod", "Hosts.kind", mend)
    workers, slices = cluster._get_worker_list_in_slice(), cluster._get_num_slices()
    lead = cloud_tpu_cluster.get_tpu_env_value("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]
    return Place(
        address=(lead.split(":")[0], int(cloud_tpu_cluster.coordinator_port)),
        processes=cluster.get_process_count(),
        process=cluster.get_process_id(),
        # The workers of other slices are known to those slices alone.
        names=tuple(workers) if slices == 1 else (),
        found="the TPU pod's machines",
    )
