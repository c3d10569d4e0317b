"""scripts/tpu/create.sh against a stand-in for gcloud: command lines, failures midway, cost, bad settings."""

import os
import shutil
import signal
import time

import pytest

from tests.scripts.cloud import CREATED, DELETE_LINE, FINE, REFUSED, Cloud, state

WHERE = ["--zone=europe-west4-b", "--project=my-project"]
QUEUED = ["compute", "tpus", "queued-resources"]
DESCRIBE = [*QUEUED, "describe", "pod", *WHERE, "--format=value(state.state)"]
CREATE = [*QUEUED, "create", "pod", *WHERE, "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"]
BUCKET = ["storage", "buckets", "describe", "gs://my-bucket", "--project=my-project", "--format=value(location)"]


@pytest.mark.parametrize(
    ("changed", "end"),
    [
        ({}, ["--node-id=pod", "--spot"]),
        ({"CAPACITY": "on-demand"}, ["--node-id=pod"]),
        ({"CAPACITY": "reserved", "VALID_UNTIL": "6h"}, ["--node-id=pod", "--reserved", "--valid-until-duration=6h"]),
        ({"SLICES": "2"}, ["--node-count=2", "--node-prefix=pod", "--spot"]),
        (
            {"SERVICE_ACCOUNT": "a@b.gserviceaccount.com", "NETWORK": "n", "SUBNETWORK": "s", "INTERNAL_IPS": "yes"},
            ["--node-id=pod", "--spot", "--service-account=a@b.gserviceaccount.com", "--network=n", "--subnetwork=s",
             "--internal-ips"],
        ),
    ],
)  # fmt: skip
def test_create_asks_for_what_the_config_says(cloud: Cloud, changed: dict[str, str], end: list[str]) -> None:
    cloud.config(**changed)
    cloud.answers(state("MISSING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"), CREATED)
    done = cloud.run("create", "--yes")
    assert done.returncode == 0, done.stderr
    assert cloud.calls() == [BUCKET, DESCRIBE, [*CREATE, *end], DESCRIBE, DESCRIBE, DESCRIBE]
    assert [line.split()[-1] for line in done.stdout.splitlines() if " is " in line] == [
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
        "ACTIVE",
    ]


@pytest.mark.parametrize(
    ("changed", "cost"),
    [
        ({}, "cost: 16 chips x 1.25 USD a chip hour = 20.00 USD an hour, 200.00 USD for 10 hours"),
        (
            {"ACCELERATOR": "v5p-128", "SLICES": "2"},
            "128 chips x 1.25 USD a chip hour = 160.00 USD an hour, 1600.00 USD",
        ),
        ({"ACCELERATOR": "v4-32", "CURRENCY": "JPY"}, "16 chips x 1.25 JPY a chip hour = 20.00 JPY an hour"),
        ({"ACCELERATOR": "v3-8"}, "4 chips x 1.25 USD a chip hour = 5.00 USD an hour, 50.00 USD for 10 hours"),
        ({"ACCELERATOR": "v6e-8"}, "8 chips x 1.25"),
        ({"PRICE_PER_CHIP_HOUR": "0"}, "true only under a grant"),
    ],
)
def test_the_cost_is_shown_before_anything_is_created(cloud: Cloud, changed: dict[str, str], cost: str) -> None:
    cloud.config(**changed)
    cloud.answers(state("MISSING"))
    done = cloud.run("create", typed="no\n")
    assert cost in done.stdout
    assert (done.returncode, cloud.verbs()) == (2, ["describe"])
    assert "nothing was done" in done.stderr and "delete" not in done.stderr


def test_hours_and_a_typed_yes(cloud: Cloud) -> None:
    cloud.answers(state("MISSING", "ACTIVE"), CREATED)
    done = cloud.run("create", "--hours=336", typed="yes\n")
    assert done.returncode == 0 and "6720.00 USD for 336 hours" in done.stdout


@pytest.mark.parametrize(
    ("changed", "lines", "said"),
    [
        ({"PROJECT": None}, [], "PROJECT is missing"),
        ({"BUCKET": ""}, [], "BUCKET is missing"),
        ({"ACCELERATOR": "v5e-256"}, [], "ACCELERATOR=v5litepod-256"),
        ({"ACCELERATOR": "v5litepod-12"}, [], "N one of 1 4 8 16"),
        ({"ACCELERATOR": "h100-8"}, [], "unknown accelerator h100-8"),
        ({"ACCELERATOR": "v3-32", "SLICES": "2"}, [], "v3 knows no slices"),
        ({"SLICES": "0"}, [], "SLICES=0 is not valid"),
        ({"CAPACITY": "cheap"}, [], "CAPACITY=cheap is not valid"),
        ({"PRICE_PER_CHIP_HOUR": "1,20"}, [], "PRICE_PER_CHIP_HOUR=1,20 is not valid"),
        ({"ZONE": "europe-west4"}, [], "ZONE=europe-west4 is not valid"),
        ({"BUCKET": "my-bucket"}, [], "BUCKET=my-bucket is not valid"),
        ({"NAME": "$(touch was_run)"}, [], "is not valid"),
        ({}, ["ACCELERATR=v4-8"], "unknown setting ACCELERATR"),
        ({}, ["NAME=twice"], "NAME stands there twice"),
        ({}, ["what is this"], "not KEY=VALUE"),
        ({"REPOSITORY": None}, [], "neither WHEEL nor REPOSITORY"),
        ({"REPOSITORY": None, "WHEEL": "x.whl"}, [], "no such wheel"),
        ({"MODULE": "none.py"}, [], "no such module"),
        ({"GIN_FILES": "cpt.gin hardware/v5e_15.gin"}, [], "the gin file hardware/v5e_15.gin lies neither here"),
    ],
)
def test_bad_settings_are_refused_before_gcloud_is_asked(
    cloud: Cloud, changed: dict[str, str | None], lines: list[str], said: str
) -> None:
    cloud.config(*lines, **changed)
    done = cloud.run("create", "--yes")
    assert done.returncode == 2 and said in done.stderr and "mend: " in done.stderr
    assert cloud.calls() == [] and not (cloud.folder / "was_run").exists()


def test_other_refusals(cloud: Cloud) -> None:
    assert "unknown argument --dryrun" in cloud.run("create", "--dryrun").stderr
    assert "neither WHEEL nor REPOSITORY" in (cloud.config(REPOSITORY=None), cloud.run("install"))[1].stderr
    assert "no such wheel" in (cloud.config(REPOSITORY=None, WHEEL="x.whl"), cloud.run("install"))[1].stderr
    (cloud.folder / "pod.conf").unlink()
    assert "there is no config file" in cloud.run("create").stderr
    assert cloud.calls() == []


def test_without_gcloud_it_says_where_that_is(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    (cloud.bin / "gcloud").unlink()
    for name in ("bash", "dirname", "mktemp", "rm", "sed", "awk"):
        (cloud.bin / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(cloud.bin))  # none of this machine's own either
    done = cloud.run("create")
    assert done.returncode == 2 and "gcloud is not on the PATH" in done.stderr


@pytest.mark.parametrize(
    ("answers", "said", "must_delete"),
    [
        ([state("MISSING"), (["resources create"], [REFUSED])], "could not create pod", False),
        ([state("MISSING", "CREATING"), (["resources create"], [REFUSED])], "it is CREATING now", True),
        ([state("MISSING", "PROVISIONING", "FAILED"), CREATED], "pod is FAILED", True),
        ([state("WAITING_FOR_RESOURCES")], "there is a queued resource pod already", True),
        ([(["resources describe"], [REFUSED])], "does not tell the state", False),
    ],
)
def test_what_fails_midway_leaves_nothing_without_the_command_that_deletes_it(
    cloud: Cloud, answers: list, said: str, must_delete: bool
) -> None:
    cloud.answers(*answers)
    done = cloud.run("create", "--yes")
    assert done.returncode == 1 and said in done.stderr
    assert (DELETE_LINE in done.stderr) == must_delete, done.stderr
    if answers[-1][1] == [REFUSED]:
        assert "Quota limit exceeded" in done.stderr


def test_a_passing_fault_of_gcloud_is_asked_again(cloud: Cloud) -> None:
    words, states = state("MISSING", "ACTIVE")
    cloud.answers((words, [REFUSED, REFUSED, *states]), CREATED)
    assert cloud.run("create", "--yes").returncode == 0
    assert cloud.verbs() == ["describe", "describe", "describe", "create", "describe"]


@pytest.mark.parametrize("moment", ["create", "wait"])
def test_ctrl_c_prints_what_deletes_the_pod(cloud: Cloud, moment: str) -> None:
    slow = {"out": "", "sleep": 20}
    creating = (["resources create"], [slow if moment == "create" else FINE | {"out": ""}])
    words, states = state("MISSING", "PROVISIONING")
    cloud.answers((words, [states[0], states[1], slow]), creating)
    process = cloud.start("create", "--yes", start_new_session=True)
    wanted = ["describe", "create"] if moment == "create" else ["describe", "create", "describe", "describe"]
    until = time.monotonic() + 30
    while cloud.verbs() != wanted and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and DELETE_LINE in err and "20.00 USD an hour" in err


def test_a_bucket_that_is_not_there_or_far_away_is_told_before_money_is_spent(cloud: Cloud) -> None:
    cloud.answers((["buckets describe"], [{"code": 1, "err": "ERROR: gs://my-bucket not found: 404.\n"}]))
    done = cloud.run("create", "--yes")
    assert done.returncode == 1 and "the bucket cannot be seen" in done.stderr and "404" in done.stderr
    assert cloud.calls() == [BUCKET]
    for place, warned in (("US-EAST1", True), ("EU", False), ("EUROPE-WEST4", False)):
        cloud.answers((["buckets describe"], [{"out": f"{place}\n"}]), state("MISSING", "ACTIVE"), CREATED)
        done = cloud.run("create", "--yes")
        assert done.returncode == 0 and ("warning: gs://my-bucket lies in" in done.stdout) == warned
