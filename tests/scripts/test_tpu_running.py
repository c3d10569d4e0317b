"""scripts/tpu on a pod that is there: install, launch, logs, delete, dry runs."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.scripts.cloud import (
    CREATED,
    DELETE_LINE,
    DELETED,
    FINE,
    REFUSED,
    RUN_DIR,
    SCRIPTS,
    Cloud,
    is_running,
    nodes,
    printed_commands,
    ready,
    run_says,
    ssh,
    state,
    without_launch,
)


def test_install_sends_one_program_to_every_host(cloud: Cloud) -> None:
    done = cloud.run("install")
    assert done.returncode == 0, done.stderr
    incoming = "t-elaine-pod/incoming"
    program = "bash t-elaine-pod/host.sh install git https://example.org/t-elaine.git main 3.11 ''"
    assert cloud.calls()[1:] == [
        ssh(f"mkdir -p {incoming}"),
        ["compute", "tpus", "queued-resources", "scp", str(SCRIPTS / "host.sh"), f"pod:{incoming}/",
         "--zone=europe-west4-b", "--project=my-project", "--node=all", "--worker=all"],
        ssh(f"cp {incoming}/host.sh t-elaine-pod/host.sh && {program}"),
    ]  # fmt: skip
    assert "installed on every host: t-elaine=0.1.0 jax=0.10.2 libtpu=0.0.42" in done.stdout
    for worker in range(4):
        home = cloud.host(worker)
        root = f"{home}/t-elaine-pod"
        assert (home / "uv.log").read_text().splitlines() == [
            f"uv venv --quiet --allow-existing --python 3.11 {root}/venv",
            f"uv pip install --quiet --python {root}/venv/bin/python --reinstall-package t-elaine"
            f" --constraint {root}/source/constraints.txt t-elaine[tpu] @ file://{root}/source",
        ]
        assert "fetch --quiet origin main\n" in (home / "git.log").read_text()


def test_install_takes_a_wheel_and_the_versions_of_this_checkout(cloud: Cloud) -> None:
    (cloud.folder / "t_elaine-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
    cloud.config(REPOSITORY=None, WHEEL="t_elaine-0.1.0-py3-none-any.whl", INTERNAL_IPS="yes")
    assert cloud.run("install").returncode == 0
    assert all("--internal-ip" in call for call in cloud.calls()[1:])
    incoming = cloud.host(3) / "t-elaine-pod" / "incoming"
    assert (incoming / "t_elaine-0.1.0-py3-none-any.whl").read_bytes() == b"wheel"
    assert "jax==" in (incoming / "constraints.txt").read_text()
    last = (cloud.host(3) / "uv.log").read_text().splitlines()[-1]
    assert last.endswith(
        f"--constraint {incoming}/constraints.txt t-elaine[tpu] @ file://{incoming}/t_elaine-0.1.0-py3-none-any.whl"
    )


def test_the_host_where_the_install_fails_is_named(cloud: Cloud) -> None:
    (cloud.host(2) / "breaks").write_text("pip")
    done = cloud.run("install")
    assert done.returncode == 1 and DELETE_LINE in done.stderr
    assert "install failed after 3 tries: slice 0 worker 2: t1v-n-0abc-w-2 packages: see " in done.stderr
    assert "no space left on device" in done.stderr and "--node=0 --worker=2" in done.stderr
    assert "worker 1" not in done.stderr
    assert cloud.verbs().count("ssh") == 1 + 3


def test_a_host_that_is_mended_in_the_meantime_passes_the_second_try(cloud: Cloud) -> None:
    flaky = (["scp"], [REFUSED, {}])
    cloud.answers(state("ACTIVE"), flaky)
    done = cloud.run("install")
    assert done.returncode == 0 and "copying to the hosts failed (try 1 of 3)" in done.stdout
    assert cloud.verbs() == ["describe", "ssh", "scp", "ssh", "scp", "ssh"]


def test_a_host_that_gives_no_answer_is_named(cloud: Cloud) -> None:
    cloud.host(1).rmdir()
    done = cloud.run("install")
    assert done.returncode == 1 and "slice 0 worker 1 gave no answer" in done.stderr


def test_hosts_with_different_versions_are_refused(cloud: Cloud) -> None:
    (cloud.host(1) / "jax").write_text("0.10.1")
    done = cloud.run("install")
    assert done.returncode == 1 and "different versions" in done.stderr and "jax=0.10.1" in done.stderr


@pytest.mark.parametrize("script", ["install", "resume"])
def test_ctrl_c_prints_what_deletes_the_pod(cloud: Cloud, script: str) -> None:
    slow = (["host.sh"], [{"out": "", "sleep": 30}])
    cloud.answers(state("ACTIVE"), run_says("running"), nodes("READY"), slow)
    process = cloud.start(script, *(["--yes"] if script == "resume" else []), start_new_session=True)
    until = time.monotonic() + 60
    while not any("host.sh" in call[-1] for call in cloud.calls()) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and DELETE_LINE in err


@pytest.mark.parametrize("script", ["install", "launch"])
def test_nothing_is_tried_on_a_pod_that_is_not_there(cloud: Cloud, script: str) -> None:
    cloud.answers(state("WAITING_FOR_RESOURCES"))
    done = cloud.run(script)
    assert done.returncode == 1 and "pod is WAITING_FOR_RESOURCES, not ACTIVE" in done.stderr
    assert DELETE_LINE in done.stderr, "it will cost once it is ACTIVE"
    assert cloud.verbs() == ["describe"]
    cloud.answers(state("MISSING"))
    done = cloud.run(script)
    assert done.returncode == 1 and "pod is MISSING, not ACTIVE" in done.stderr and DELETE_LINE not in done.stderr


@pytest.mark.parametrize("script", ["install", "launch", "delete"])
def test_where_nobody_tells_the_state_the_command_that_deletes_is_printed(cloud: Cloud, script: str) -> None:
    cloud.answers((["resources describe"], [{"code": 1, "err": "ERROR: (gcloud) your credentials have expired\n"}]))
    done = cloud.run(script)
    assert done.returncode == 1 and "does not tell the state of pod" in done.stderr
    assert "credentials have expired" in done.stderr and DELETE_LINE in done.stderr


def test_files_of_one_name_are_refused(cloud: Cloud) -> None:
    """They are copied into one folder: train would read the last of them twice."""
    for folder in ("mine", "yours"):
        (cloud.folder / folder).mkdir()
        (cloud.folder / folder / "cpt.gin").write_text("")
    cloud.config(GIN_FILES="mine/cpt.gin yours/cpt.gin")
    done = cloud.run("launch")
    assert done.returncode == 2 and "two files are named cpt.gin" in done.stderr and cloud.calls() == []


def test_launch_starts_train_detached_on_every_host(cloud: Cloud) -> None:
    (cloud.folder / "my.gin").write_text("x = 1\n")
    cloud.config("BINDING=TOTAL_TOKENS=1_000", "BINDING=NOTE='two words'", GIN_FILES="cpt.gin my.gin")
    ready(cloud, "install")
    done = cloud.run("launch")
    assert done.returncode == 0, done.stderr
    arguments = [
        "--gin_file=cpt.gin",
        "--gin_file=my.gin",
        "--gin.TOTAL_TOKENS=1_000",
        "--gin.NOTE='two words'",
        RUN_DIR,
    ]
    assert cloud.verbs() == ["describe", "ssh", "scp", "ssh", "ssh"]
    for worker in range(4):
        home = cloud.host(worker)
        assert (home / "t-elaine-pod" / "incoming" / "my.gin").exists()
        assert (home / "train.arguments").read_text().splitlines() == ["-m", "t_elaine.train", *arguments]
        pid = int((home / "t-elaine-pod" / "run" / "pid").read_text())
        assert os.getpgid(pid) == pid == os.getsid(pid), "train must outlive the connection"


def test_a_launch_that_fails_on_one_host_is_taken_back_on_the_others(cloud: Cloud) -> None:
    ready(cloud, "install")
    (cloud.host(3) / "t-elaine-pod" / "venv" / "bin" / "python").unlink()
    done = cloud.run("launch")
    assert done.returncode == 1 and "slice 0 worker 3: t1v-n-0abc-w-3 start: nothing is installed here" in done.stderr
    assert DELETE_LINE in done.stderr
    assert not any(is_running(cloud.host(worker)) for worker in range(4))


def test_train_that_dies_at_once_is_told_with_its_last_words(cloud: Cloud) -> None:
    ready(cloud, "install")
    (cloud.host(1) / "dies").touch()
    cloud.config(START_SECONDS="1")
    done = cloud.run("launch")
    assert done.returncode == 1 and "slice 0 worker 1: t1v-n-0abc-w-1 train ended with 1" in done.stderr
    assert "t1v-n-0abc-w-1: out of memory" in done.stdout


def test_a_second_launch_is_refused(cloud: Cloud) -> None:
    ready(cloud, "install", "launch")
    done = cloud.run("launch")
    assert done.returncode == 1 and "at work here already" in done.stderr
    assert cloud.run("install").returncode == 1  # nor are files changed under a run
    assert all(is_running(cloud.host(worker)) for worker in range(4))


def test_logs_show_the_hosts(cloud: Cloud) -> None:
    ready(cloud, "install", "launch")
    done = cloud.run("logs", "--once", "--lines=5")
    assert "t1v-n-0abc-w-0: training begins" in done.stdout and "w-1" not in done.stdout
    assert cloud.calls()[-1][-3:] == ["--node=0", "--worker=0", "--command=bash t-elaine-pod/host.sh logs 5 once"]
    assert "t1v-n-0abc-w-3: training begins" in cloud.run("logs", "--once", "--all").stdout
    process = cloud.start("logs", "--worker=2", start_new_session=True)
    assert process.stdout is not None
    assert "t1v-n-0abc-w-2: " in process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert cloud.run("logs", "--worker=one").returncode == 2


def test_delete_lets_train_save_and_looks_whether_all_is_gone(cloud: Cloud) -> None:
    ready(cloud, "install", "launch")
    cloud.answers(state("ACTIVE", "MISSING"), (["queued-resources delete"], [REFUSED, FINE]))
    done = cloud.run("delete", "--stop", "--yes")
    assert done.returncode == 0 and "pod is gone; gs://my-bucket/runs/pod stays" in done.stdout
    assert cloud.verbs() == ["describe", "ssh", "delete", "delete", "describe"]
    log = cloud.host(0) / "t-elaine-pod" / "logs" / "t1v-n-0abc-w-0.log"
    assert log.read_text().splitlines()[-1] == "saved"
    cloud.answers(state("MISSING"))
    assert "there is no queued resource pod" in cloud.run("delete").stdout


def test_a_delete_that_does_not_work_says_so(cloud: Cloud) -> None:
    cloud.answers(state("ACTIVE"), (["queued-resources delete"], [REFUSED]))
    done = cloud.run("delete", "--yes")
    assert done.returncode == 1 and "pod is still there, it is ACTIVE" in done.stderr and DELETE_LINE in done.stderr
    assert cloud.verbs().count("delete") == 3
    assert cloud.run("delete", typed="\n").returncode == 2


def test_a_dry_run_prints_what_a_real_run_calls(cloud: Cloud) -> None:
    """Every script: nothing is called, and what is printed is, pasted, what a smooth run calls."""
    (cloud.folder / "my.gin").write_text("")
    cloud.config("BINDING=NOTE='it is $HOME'", GIN_FILES="my.gin")
    smooth = {"create": state("MISSING", "ACTIVE"), "delete": state("ACTIVE", "MISSING")}
    for script in ("create", "install", "launch", "delete"):
        cloud.answers(smooth.get(script, state("ACTIVE")), CREATED, DELETED)
        arguments = {"create": ["--yes"], "delete": ["--yes", "--stop"]}.get(script, [])
        dry = cloud.run(script, "--dry_run", *arguments)
        assert dry.returncode == 0 and cloud.calls() == []
        assert dry.stdout.startswith("# dry run: nothing is called")
        assert cloud.run(script, *arguments).returncode == 0
        assert without_launch(printed_commands(dry.stdout)) == without_launch(cloud.calls()), script
        cloud.forget()
    dry = cloud.run("resume", "--dry_run")
    kinds = ("create", "delete", "scp", "cat")
    short = [kind for call in printed_commands(dry.stdout) for kind in kinds if kind in call]
    assert short == ["cat", "delete", "create", "scp", "scp"] and cloud.calls() == []
    assert "host.sh logs" in cloud.run("logs", "--dry_run").stdout
    assert printed_commands(cloud.run("logs", "--dry_run", "--all").stdout)[0][-1] == "--batch-size=all"


def test_two_slices(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, hosts=2, slices=2)
    cloud.config(ACCELERATOR="v4-16", SLICES="2")
    cloud.answers(state("ACTIVE"))
    (cloud.host(1, slice_=1) / "breaks").write_text("venv")
    done = cloud.run("install")
    assert done.returncode == 1 and "tries: slice 1 worker 1: t1v-n-0abc-w-1 python: see" in done.stderr
    (cloud.host(1, slice_=1) / "breaks").unlink()
    assert cloud.run("install").returncode == 0
