"""Which process is this: settings before variables, a TPU pod, SLURM; what contradicts itself is refused."""

from typing import Any

import pytest

from t_elaine.errors import UserError
from t_elaine.parallel import clusters
from t_elaine.parallel.hosts import Hosts

SLURM = {
    "SLURM_JOB_ID": "70000",
    "SLURM_STEP_NODELIST": "gpu[01-02,10]",
    "SLURM_PROCID": "4",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_LOCALID": "0",
}
GIVEN = {"T_ELAINE_COORDINATOR": "a:9000", "T_ELAINE_PROCESSES": "3", "T_ELAINE_PROCESS": "2"}


def test_alone_where_nothing_says_otherwise() -> None:
    assert clusters.place(Hosts(), {}) is None
    assert clusters.place(Hosts(kind="none"), GIVEN | SLURM) is None
    assert clusters.place(Hosts(processes=1), {}) is None
    batch_script = {key: value for key, value in SLURM.items() if "STEP" not in key} | {"SLURM_NTASKS": "6"}
    assert clusters.place(Hosts(), batch_script) is None


def test_variables_and_settings_before_them() -> None:
    found = clusters.place(Hosts(), GIVEN | {"T_ELAINE_HOSTS": "a,b,c", "T_ELAINE_LOCAL_DEVICES": "0,1"})
    assert found is not None
    assert (found.address, found.processes, found.process) == (("a", 9000), 3, 2)
    assert found.names == ("a", "b", "c") and found.local_devices == (0, 1)
    found = clusters.place(Hosts(process=1, coordinator="[::1]:80"), GIVEN | SLURM)
    assert found is not None and (found.address, found.process) == (("::1", 80), 1)


def test_a_slurm_step() -> None:
    found = clusters.place(Hosts(), SLURM)
    assert found is not None
    assert found.address == ("gpu01", clusters.PORT_BASE + 70000 % clusters.PORT_RANGE)
    assert (found.processes, found.process, found.local_devices) == (6, 4, (0,))
    assert found.names == ("gpu01", "gpu01", "gpu02", "gpu02", "gpu10", "gpu10")
    one_a_node = SLURM | {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "1(x3)", "SLURM_PROCID": "1"}
    found = clusters.place(Hosts(), one_a_node)
    assert found is not None and found.local_devices is None, "one task on a node has all its GPUs"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ("node1",)),
        ("a,b-2", ("a", "b-2")),
        ("n[008-010,12],login", ("n008", "n009", "n010", "n12", "login")),
        ("r1n[1-2]-ib", ("r1n1-ib", "r1n2-ib")),
        ("r[1-2]n[08-09],x", ("r1n08", "r1n09", "r2n08", "r2n09", "x")),
    ],
)
def test_names_of_nodes(text: str, names: tuple[str, ...]) -> None:
    assert clusters.node_names(text) == names


@pytest.mark.parametrize(
    ("hosts", "environment", "told"),
    [
        ({}, {"T_ELAINE_COORDINATOR": "a:1"}, "processes and process not given"),
        ({"coordinator": "a"}, GIVEN, "'a' is no address of process 0"),
        ({"coordinator": "a:99999"}, GIVEN, "is no address of process 0"),
        ({"process": 3}, GIVEN, "process 3 of 3"),
        ({}, GIVEN | {"T_ELAINE_PROCESS": "two"}, "T_ELAINE_PROCESS is 'two'"),
        ({"expected": 4}, GIVEN, "4 processes are expected, but there are 3"),
        ({"expected": 2}, {}, "2 processes are expected, but there are 1 (no others were found)"),
        ({}, SLURM | {"T_ELAINE_EXPECTED": "8"}, "8 processes are expected, but there are 6 (by SLURM's tasks)"),
        ({"kind": "slurm"}, {}, "this is no step of a SLURM job: SLURM_JOB_ID"),
        ({"kind": "tpu"}, {}, "this is no machine of a TPU pod"),
        ({}, GIVEN | {"T_ELAINE_LOCAL_DEVICES": "x"}, "local devices x"),
    ],
)
def test_what_cannot_be(hosts: dict[str, Any], environment: dict[str, str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        clusters.place(Hosts(**hosts), environment)
    assert told in caught.value.what and caught.value.mend


@pytest.mark.parametrize("wrong", [{"kind": "mpi"}, {"seconds": 0.0}, {"slow_factor": 1.0}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Hosts(**wrong)


class Pod:
    """What JAX reads from a TPU machine."""

    @staticmethod
    def is_env_present() -> bool:
        return True

    @staticmethod
    def _get_worker_list_in_slice() -> list[str]:
        return ["10.0.0.1", "10.0.0.2"]

    _get_num_slices = staticmethod(lambda: 2)
    get_process_count = staticmethod(lambda: 4)
    get_process_id = staticmethod(lambda: 3)


def test_a_pod_of_two_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "GkeTpuCluster", Pod)
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "10.0.0.9:8080")
    found = clusters.place(Hosts(kind="tpu", expected=4), {})
    assert found is not None
    assert (found.address, found.processes, found.process) == (("10.0.0.9", 8482), 4, 3)
    assert found.names == (), "the other slice's machines are not known here"
