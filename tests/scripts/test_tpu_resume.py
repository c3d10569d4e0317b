"""scripts/tpu/resume.sh: what it does after preemptions, losses and the run's own ends, and when it gives up."""

import os
import signal

import pytest

from tests.scripts.cloud import (
    CREATED,
    DELETE_LINE,
    DELETED,
    REFUSED,
    RUN_DIR,
    Cloud,
    is_running,
    nodes,
    ready,
    run_says,
    state,
)


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [("finished", 0, "the run is finished"), ("stopped: chip hours: 70", 1, "max_chip_hours at step 70")],
)
def test_resume_does_nothing_for_a_run_that_has_ended(cloud: Cloud, status: str, code: int, told: str) -> None:
    cloud.answers(run_says(status), state("ACTIVE", "MISSING"), DELETED)
    done = cloud.run("resume", "--yes")
    assert done.returncode == code and told in done.stdout and DELETE_LINE in done.stdout
    assert cloud.verbs() == ["cat"]
    done = cloud.run("resume", "--yes", "--delete")
    assert done.returncode == code and "may still be there" not in done.stderr
    assert cloud.verbs() == ["cat", "cat", "describe", "delete", "describe"]


def test_resume_tries_once_more_where_a_run_stopped_itself(cloud: Cloud) -> None:
    """A lost host is such a stop; settings that cannot work are one too, and bring no step further."""
    ready(cloud, "install")
    cloud.answers(run_says("stopped: host 3 is gone: 40"), state("ACTIVE"), nodes("READY"))
    for worker in range(4):
        (cloud.host(worker) / "dies").touch()
    cloud.config(MAX_TRIES="9")
    done = cloud.run("resume", "--yes")
    assert done.returncode == 1 and "stopped itself twice at step 40: host 3 is gone" in done.stdout
    assert done.stdout.count("try ") == 1


def test_resume_makes_anew_a_pod_whose_loss_stopped_the_run(cloud: Cloud) -> None:
    states = state("SUSPENDED", "SUSPENDED", "MISSING", "MISSING", "ACTIVE")
    cloud.answers(run_says("stopped: host 3 is gone", "finished"), states, nodes("READY"), CREATED, DELETED)
    assert cloud.run("resume", "--yes").returncode == 0
    assert cloud.verbs().count("create") == 1


@pytest.mark.parametrize(("first", "lost"), [("SUSPENDED", []), ("FAILED", []), ("ACTIVE", ["PREEMPTED"])])
def test_resume_makes_a_preempted_pod_anew(cloud: Cloud, first: str, lost: list[str]) -> None:
    states = state(first, first, "MISSING", "MISSING", "ACTIVE")
    cloud.answers(run_says("running", "finished"), states, nodes(*lost, "READY"), CREATED, DELETED)
    done = cloud.run("resume", "--yes")
    assert done.returncode == 0, done.stderr
    verbs = [verb for verb in cloud.verbs() if verb != "describe"]
    assert verbs == ["cat", "delete", "create", "ssh", "scp", "ssh", "ssh", "ssh", "cat"]
    assert (cloud.host(0) / "train.arguments").read_text().splitlines()[-1] == RUN_DIR


def test_resume_waits_while_the_pod_is_being_taken_away(cloud: Cloud) -> None:
    states = state("SUSPENDING", "WAITING_FOR_RESOURCES", "ACTIVE")
    cloud.answers(run_says("running", "running", "finished"), states)
    assert cloud.run("resume", "--yes").returncode == 0
    assert cloud.verbs() == ["cat", "describe", "cat", "describe", "cat"]


def test_resume_starts_a_first_run_where_there_is_neither_pod_nor_folder(cloud: Cloud) -> None:
    cloud.answers(run_says("none", "finished"), state("MISSING", "MISSING", "ACTIVE"), CREATED)
    assert cloud.run("resume", "--yes").returncode == 0
    assert "delete" not in cloud.verbs() and cloud.verbs().count("create") == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"REPOSITORY": None}, "neither WHEEL nor REPOSITORY"), ({"MODULE": "none.py"}, "there is no such module")],
)
def test_resume_refuses_settings_before_it_asks_for_a_pod(
    cloud: Cloud, changed: dict[str, str | None], said: str
) -> None:
    cloud.config(**changed)
    done = cloud.run("resume", "--yes")
    assert done.returncode == 2 and said in done.stderr and cloud.calls() == []


def test_resume_gives_up_after_so_many_tries(cloud: Cloud) -> None:
    cloud.answers(run_says("running"), state("MISSING"), (["resources create"], [REFUSED]))
    done = cloud.run("resume", "--yes")
    assert done.returncode == 1 and "given up after 2 tries" in done.stderr
    assert cloud.verbs().count("create") == 2


def test_resume_is_not_moved_by_one_lost_connection(cloud: Cloud) -> None:
    ready(cloud, "install", "launch")
    lost = (["host.sh status"], [{"code": 255, "err": "lost"}, {}])
    cloud.answers(run_says("running", "running", "finished"), state("ACTIVE"), nodes("READY"), lost)
    assert cloud.run("resume", "--yes").returncode == 0
    assert cloud.verbs().count("ssh") == 3 and "create" not in cloud.verbs()


def test_resume_starts_train_anew_where_one_host_lost_it(cloud: Cloud) -> None:
    ready(cloud, "install", "launch")
    first = int((cloud.host(1) / "t-elaine-pod" / "run" / "pid").read_text())
    os.killpg(int((cloud.host(2) / "t-elaine-pod" / "run" / "pid").read_text()), signal.SIGKILL)
    cloud.answers(run_says("running", "preempted", "finished"), state("ACTIVE"), nodes("READY"))
    done = cloud.run("resume", "--yes")
    assert done.returncode == 0 and "train is not at work" in done.stdout
    assert int((cloud.host(1) / "t-elaine-pod" / "run" / "pid").read_text()) != first
    assert all(is_running(cloud.host(worker)) for worker in range(4))


def test_resume_stops_where_it_cannot_know_what_is_left(cloud: Cloud) -> None:
    cloud.answers((["storage cat"], [{"code": 1, "err": "ERROR: HTTPError 403: no permission\n"}]))
    done = cloud.run("resume", "--yes")
    assert done.returncode == 1 and "403" in done.stderr and cloud.verbs() == ["cat"] * 5
    assert DELETE_LINE in done.stderr, "nobody looks after the pod any more"
