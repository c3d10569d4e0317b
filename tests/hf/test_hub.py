"""Fetching from and pushing to a hub, against a stand-in that also refuses, stalls, breaks off and lies."""

import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from t_elaine import export, import_hf
from t_elaine.errors import UserError
from t_elaine.hf import hub
from tests.hf.hub_stand_in import FRIEND, STRANGER, StandIn, serving
from tests.hf.models import add_tokenizer, contents, whole_model

NAME = "lab/tiny"
WEIGHTS = "resolve/.*/model.safetensors$"


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(whole_model(tmp_path_factory.mktemp("hub") / "single"))


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(whole_model(tmp_path_factory.mktemp("hub") / "sharded", shard_bytes=120_000))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits; how long they would have is kept."""
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


@pytest.fixture
def stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float], files: dict[str, bytes]
) -> Iterator[StandIn]:
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            constants, "HF_HUB_DISABLE_XET", True
        )  # large files by plain HTTP, which the stand-in knows
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(hub, "Patience", functools.partial(hub.Patience, attempts=3))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.close_session()
        running.add(NAME, dict(files))
        yield running
        huggingface_hub.close_session()


def refused(words: str, name: str = NAME, revision: str | None = None) -> UserError:
    """Fetch, and give back the error, which must have all three parts."""
    with pytest.raises(UserError, match=words) as caught:
        hub.fetch(name, revision, say=lambda line: None)
    assert caught.value.where and caught.value.mend
    return caught.value


def left_over(tmp_path: Path) -> list[str]:
    return [p.name for p in (tmp_path / "cache").rglob("*.incomplete")]


def test_all_files_of_one_commit(stand_in: StandIn, files: dict[str, bytes]) -> None:
    found = hub.fetch(NAME, say=lambda line: None)
    assert (found.name, found.commit) == (NAME, "a" * 40)
    carried = {name: data for name, data in files.items() if name != "training_args.bin"}
    assert contents(found.folder) == carried and "LICENSE" in carried and "chat_template.jinja" in carried
    before = len(stand_in.asked("GET", "resolve"))
    assert hub.fetch(NAME, say=lambda line: None).folder == found.folder
    assert len(stand_in.asked("GET", "resolve")) == before, "a whole file was fetched twice"


def test_revision(stand_in: StandIn) -> None:
    found = hub.fetch(NAME, "old", say=lambda line: None)
    assert found.commit == "b" * 40
    assert json.loads((found.folder / "generation_config.json").read_text()) == {"temperature": 0.1}
    assert not stand_in.asked("*", "resolve/(?!b{40})")
    error = refused("no revision 'nope'", revision="nope")
    assert "nope" in error.where


def test_shards(stand_in: StandIn, sharded: dict[str, bytes]) -> None:
    stand_in.add("lab/sharded", dict(sharded))
    lines: list[str] = []
    found = hub.fetch("lab/sharded", say=lines.append)
    count = len([name for name in sharded if name.endswith(".safetensors")])
    assert count > 2 and len(lines) == 1 + count
    assert lines[0] == "lab/sharded: no folder on this machine, so it is looked for on the hub"
    assert contents(found.folder) == {n: d for n, d in sharded.items() if n != "training_args.bin"}


@pytest.mark.parametrize("index", [b"{", b"{}", b'{"weight_map": {"a": "../../secret.safetensors"}}'])
def test_an_index_that_is_none(stand_in: StandIn, sharded: dict[str, bytes], index: bytes) -> None:
    stand_in.add("lab/sharded", {**sharded, "model.safetensors.index.json": index})
    refused("index", "lab/sharded")
    assert not stand_in.asked("GET", r"resolve/.*\.safetensors$")


def test_judged_before_the_weights_are_fetched(stand_in: StandIn, files: dict[str, bytes]) -> None:
    config = json.loads(files["config.json"]) | {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}
    stand_in.add("lab/mamba", {**files, "config.json": json.dumps(config).encode()})
    assert import_hf.main(["--hf=lab/mamba", "--to=never"]) == 2
    assert not stand_in.asked("*", WEIGHTS) and not Path("never").exists()


@pytest.mark.parametrize(
    ("token", "options", "words"),
    [
        ("", {"private": True}, "no such repository, or it is private"),
        (STRANGER, {"private": True}, "no such repository, or it is private"),
        ("", {"gated": True}, "gated"),
        (STRANGER, {"gated": True}, "gated"),
        ("hf_forged", {}, "does not know your token"),
    ],
)
def test_closed_doors(
    stand_in: StandIn, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, token: str, options: dict, words: str
) -> None:
    stand_in.add("lab/closed", files, **options)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    error = refused(words, "lab/closed")
    assert "HF_TOKEN" in error.mend and "lab/closed" in error.where and stand_in.url in error.where
    monkeypatch.setenv("HF_TOKEN", FRIEND)
    assert hub.fetch("lab/closed", say=lambda line: None).commit == "a" * 40


def test_no_such_repository(stand_in: StandIn) -> None:
    refused("no such repository", "lab/missing")
    assert len(stand_in.requests) == 1, "a refusal is not tried again"


@pytest.mark.parametrize("path", ["/api/models/", "resolve/.*config.json$", WEIGHTS])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_tried_again(stand_in: StandIn, waits: list[float], path: str, status: int) -> None:
    stand_in.trouble("*", path, times=2, status=status, headers={"Retry-After": "7"})
    assert hub.fetch(NAME, say=lambda line: None).commit == "a" * 40
    assert any(7 <= wait <= 8 for wait in waits), "Retry-After was not heeded"


def test_a_busy_hub_is_given_up(stand_in: StandIn, waits: list[float]) -> None:
    stand_in.trouble("*", "/api/models/", status=429, headers={"Retry-After": "90000"})
    refused("limiting requests")
    assert waits == [120.0, 120.0]
    stand_in.troubles.clear()
    stand_in.trouble("*", WEIGHTS, status=500)
    refused("status 500")


def test_a_broken_download_goes_on(stand_in: StandIn, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    size = len(files["model.safetensors"])
    stand_in.trouble("GET", WEIGHTS, times=2, break_after=size // 3)
    found = hub.fetch(NAME, say=lambda line: None)
    assert (found.folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    ranges = [request.headers.get("Range") for request in stand_in.asked("GET", WEIGHTS)]
    once = size // 3 // 1000 * 1000
    assert ranges == [None, f"bytes={once}-", f"bytes={2 * once}-"]


def test_a_download_that_always_breaks(stand_in: StandIn, tmp_path: Path, files: dict[str, bytes]) -> None:
    stand_in.trouble("GET", WEIGHTS, break_after=0)
    refused("transfer failed")
    assert not list((tmp_path / "cache").rglob("model.safetensors")) and left_over(tmp_path) == []
    stand_in.troubles.clear()
    found = hub.fetch(NAME, say=lambda line: None)
    assert (found.folder / "model.safetensors").read_bytes() == files["model.safetensors"]


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", [{"flip_bit": True}, {"cut": 5}])
def test_a_file_that_is_not_the_hubs(stand_in: StandIn, tmp_path: Path, file: str, damage: dict) -> None:
    """A wrong size or a wrong bit is found, told, and not kept for the next try."""
    stand_in.trouble("GET", f"resolve/.*/{file}$", **damage)
    # A cut is found by the size, which the hub tells beforehand.
    error = refused("Consistency check failed|sha" if "cut" in damage else f"{file} arrived with sha")
    assert "again" in error.mend
    assert not [path for path in (tmp_path / "cache").rglob(file) if path.exists()] and left_over(tmp_path) == []
    stand_in.troubles.clear()
    assert (hub.fetch(NAME, say=lambda line: None).folder / file).exists()


def test_damage_in_the_cache_is_found(stand_in: StandIn) -> None:
    """The weights were fetched whole, and the disk lost a bit since."""
    path = hub.fetch(NAME, say=lambda line: None).folder / "model.safetensors"
    data = path.read_bytes()
    path.resolve().write_bytes(bytes([*data[:-1], data[-1] ^ 1]))
    refused("model.safetensors arrived with sha256")
    assert (hub.fetch(NAME, say=lambda line: None).folder / "model.safetensors").read_bytes() == data


def test_pickles_are_refused_by_name(stand_in: StandIn, files: dict[str, bytes]) -> None:
    rest = {name: data for name, data in files.items() if not name.endswith(".safetensors")}
    stand_in.add("lab/legacy", {**rest, "pytorch_model.bin": b"\x80\x04pickle"})
    refused("legacy pickle weights .pytorch_model.bin", "lab/legacy")
    assert not stand_in.asked("GET", "resolve"), "something of it was fetched"


def test_no_network(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused("offline").mend
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "network" in refused("transfer failed").mend


def test_import_command(stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the hub to a run folder; what goes wrong ends in three lines, exit code 2 and nothing at the target."""
    to = tmp_path / "run"
    stand_in.trouble("GET", WEIGHTS, flip_bit=True)
    assert import_hf.main([f"--hf={NAME}", f"--to={to}", "--revision=old"]) == 2
    text = capsys.readouterr().err
    assert all(f"{part}: " in text for part in ("error", "where", "mend")) and "Traceback" not in text
    assert not to.exists() and not list(tmp_path.glob(".run*"))
    stand_in.troubles.clear()
    assert import_hf.main([f"--hf={NAME}", f"--to={to}", "--revision=old"]) == 0
    metadata = next((to / "checkpoints" / "0").rglob("metadata")).read_text()
    assert f"{NAME}@{'b' * 40}" in metadata
    assert (to / "parent" / "LICENSE").read_text() == "Parent's licence"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder to export and push."""
    folder = tmp_path_factory.mktemp("pushed")
    assert import_hf.main([f"--hf={whole_model(folder / 'model')}", f"--to={folder / 'run'}"]) == 0
    return folder / "run"


PARENT = ("--gin.export.card=@Card()", "--gin.Card.base_model='meta-llama/Meta-Llama-3-8B'")


def push(run: Path, to: Path, *flags: str) -> int:
    return export.main([f"--checkpoint={run}", f"--to={to}", "--push=me/Llama-3-child", *PARENT, *flags])


def test_push_is_private(stand_in: StandIn, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", FRIEND)
    assert push(run, tmp_path / "out") == 0
    (created,) = stand_in.asked("POST", "/api/repos/create")
    assert json.loads(created.body)["visibility"] == "private" and stand_in.repos["me/Llama-3-child"].private
    assert stand_in.repos["me/Llama-3-child"].at("main")[1] == contents(tmp_path / "out")
    # A second push, in shards: the old single file must not stay beside them.
    stand_in.repos["me/Llama-3-child"].revisions["main"][1]["notes.txt"] = b"someone's"
    export.hub.push(whole_model(tmp_path / "shards", shard_bytes=120_000), "me/Llama-3-child")
    kept = stand_in.repos["me/Llama-3-child"].at("main")[1]
    assert "model.safetensors" not in kept and "model.safetensors.index.json" in kept and "notes.txt" in kept


def test_push_where_others_can_read(
    stand_in: StandIn, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A repository that is public already gets nothing unless --public says so; the export itself is kept."""
    monkeypatch.setenv("HF_TOKEN", FRIEND)
    stand_in.add("me/Llama-3-child", {"README.md": b"public"})
    assert push(run, tmp_path / "out") == 2
    text = capsys.readouterr().err
    assert "is public" in text and "mend: " in text and "Traceback" not in text
    assert stand_in.repos["me/Llama-3-child"].at("main")[1] == {"README.md": b"public"}
    assert json.loads((tmp_path / "out" / "proof.json").read_text())["passed"]
    hub.push(tmp_path / "out", "me/Llama-3-child", public=True)
    assert stand_in.repos["me/Llama-3-child"].at("main")[1] == contents(tmp_path / "out")


@pytest.mark.parametrize(
    ("token", "path", "status", "words"),
    [
        ("", "", 0, "not logged in"),
        (STRANGER, "", 0, "forbids"),
        ("hf_forged", "/api/repos", 401, "does not know your token"),
        (FRIEND, "/commit/", 403, "forbids"),
        (FRIEND, "/large/", 403, "forbids"),
        (FRIEND, "/commit/", 500, "status 500"),
        (FRIEND, "/large/", 500, "status 500"),
        (FRIEND, "validate-yaml", 502, "transfer failed"),
    ],
)
def test_a_push_that_fails(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, path: str, status: int, words: str
) -> None:
    folder = whole_model(tmp_path / "model")
    before = contents(folder)
    monkeypatch.setenv("HF_TOKEN", token)
    if status:
        message = {"X-Error-Message": "Invalid credentials in Authorization header"} if status == 401 else {}
        stand_in.trouble("*", path, status=status, headers=message)
    with pytest.raises(UserError, match=words) as caught:
        hub.push(folder, "me/Llama-3-child")
    assert caught.value.where and caught.value.mend
    assert contents(folder) == before
    assert "me/Llama-3-child" not in stand_in.repos or stand_in.repos["me/Llama-3-child"].at("main")[1] == {}


def test_a_forbidden_push_leaves_the_export(
    stand_in: StandIn, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    assert push(run, tmp_path / "out") == 2
    assert "error: the hub forbids this" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "proof.json").read_text())["passed"]


@pytest.mark.parametrize("name", ["Llama-3-child", "me/Llama-3-child/", "me/../Llama-3-child", "me/a--b"])
def test_names_that_are_none(stand_in: StandIn, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        hub.push(tmp_path, name)
    assert not stand_in.requests


def test_a_tokenizer_larger_than_the_model(
    stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the hub sent is whole, but does not fit together: nothing is made."""
    folder = add_tokenizer(whole_model(tmp_path / "model"), extra=90)
    stand_in.add("lab/mixed", contents(folder))
    assert import_hf.main(["--hf=lab/mixed", f"--to={tmp_path / 'run'}"]) == 2
    assert "349 ids" in capsys.readouterr().err and not (tmp_path / "run").exists()
