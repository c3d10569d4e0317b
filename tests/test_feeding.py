"""What a run reads: held-out text that is lacking is named; hosts share the comparing of files with their digests."""

import ast
import re
import shutil
import sys
from pathlib import Path

import jobs
import pytest
import tiny_runs

from t_elaine import columns, feeding
from t_elaine.data import tasks as registry
from t_elaine.data.mixture import Mixture
from t_elaine.data.store import read_manifest, write_manifest
from t_elaine.data.tasks import load_modules
from t_elaine.errors import UserError
from t_elaine.paths import shipped

# Two processes compare stores as train does, print what they read, and wait for each other as train does afterwards.
COMPARING = """
import sys
from t_elaine import cli, feeding, paths
from t_elaine.parallel import agreement
from t_elaine.parallel.hosts import Hosts, together
digest = paths.file_sha256
paths.file_sha256 = lambda path: print("read", path, flush=True) or digest(path)
def main():
    with together(Hosts(), {}, ""):
        feeding.compare(("alpha", "beta"))
        agreement.wait_for_all("compared")
    return 0
sys.exit(cli.guarded(main, "train"))
"""
TRAIN, VALIDATION = "train-00000-of-00001.arrow", "validation-00000-of-00001.arrow"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def compared(folder: Path, *where: Path) -> tuple[jobs.Job, list[list[str]], list[int]]:
    """The job of two processes in these working folders, what each of them read, and how they ended."""
    programs = dict.fromkeys(range(2), ("-c", COMPARING))
    job = jobs.start(folder, "", programs=programs, folders=dict(enumerate(where)))
    codes = job.wait(90)
    lines = [job.output(process).splitlines() for process in range(2)]
    return job, [[line.removeprefix("read ") for line in told if line.startswith("read ")] for told in lines], codes


def test_hosts_that_see_the_same_files_share_the_reading(tmp_path: Path) -> None:
    for name in ("alpha", "beta"):
        tiny_runs.make_store(tmp_path / name)
    job, read, codes = compared(tmp_path, tmp_path, tmp_path)
    assert codes == [0, 0], job.told()
    assert read == [[f"alpha/{TRAIN}", f"beta/{TRAIN}"], [f"alpha/{VALIDATION}", f"beta/{VALIDATION}"]]
    flip(tmp_path / "beta" / VALIDATION)
    job, _, codes = compared(tmp_path, tmp_path, tmp_path)
    assert codes == [2, 2], job.told()
    assert f"error: {VALIDATION} is damaged" in job.output(1)
    assert f"failed: {VALIDATION} is damaged" in job.output(0), "who did not read it ends too"


def test_a_host_with_copies_of_its_own_reads_all_of_them(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for name in ("alpha", "beta"):
        shutil.copytree(tiny_runs.make_store(here / name), there / name)
    flip(there / "beta" / TRAIN)
    job, read, codes = compared(tmp_path, here, there)
    assert codes == [2, 2] and f"error: {TRAIN} is damaged" in job.output(1), job.told()
    assert read[0] == [f"alpha/{TRAIN}", f"alpha/{VALIDATION}", f"beta/{TRAIN}", f"beta/{VALIDATION}"]


def test_stores_without_held_out_text_are_named(tmp_path: Path) -> None:
    stores = [tiny_runs.make_store(tmp_path / name) for name in ("whole", "bare")]
    manifest = read_manifest(stores[1])
    manifest["shards"] = [shard for shard in manifest["shards"] if shard["split"] == "train"]
    write_manifest(stores[1], manifest)
    told: list[str] = []

    def rows(*chosen: Path, tokens: int = 200) -> int:
        told.clear()
        data = Mixture(stores=tuple(map(str, chosen)), sequence_length=16, batch_tokens=128)
        return len(feeding.held_out_rows(data, tiny_runs.GROUPS, tokens, told.append))

    assert rows(stores[0]) == 3 and not told
    assert rows(*stores) == 3 and told[0].startswith("warning: no held-out text in bare")
    assert rows(stores[1]) == 0 and told[0].startswith("warning: no store has held-out text")
    assert rows(stores[1], tokens=0) == 0 and not told, "nothing was to be measured"


def mixture(stores: tuple[str, ...], packing: str = "whole") -> Mixture:
    return Mixture(stores=stores, sequence_length=16, batch_tokens=128, packing=packing, conversations=True)


def test_conversations_are_asked_for_and_documents_beside_them_named(tmp_path: Path) -> None:
    plain, chats = (str(tiny_runs.make_store(tmp_path / name, answers=name == "chats")) for name in ("plain", "chats"))
    said: list[str] = []
    check = lambda *stores, packing="whole": feeding.check_conversations(mixture(stores, packing), said.append)  # noqa: E731
    check(chats)
    assert not said
    check(chats, plain)
    assert said == ["warning: no conversations in plain: every token of their documents is trained"]
    with pytest.raises(UserError, match=r"plain: documents, and the settings \(sft\.gin\) are for conversations"):
        check(plain)
    with pytest.raises(UserError, match="packing is 'split'"):
        check(chats, packing="split")


def test_what_is_said_fits_a_terminal(tmp_path: Path) -> None:
    places = [str(tiny_runs.make_store(tmp_path / f"a_store_with_a_long_name_{i}")) for i in range(6)]
    said: list[str] = []
    chats = str(tiny_runs.make_store(tmp_path / "chats", answers=True))
    feeding.check_conversations(mixture((chats, *places)), said.append)
    assert max(map(len, said[0].split("\n"))) <= columns.WIDTH < len(said[0])
    assert all(Path(place).name in said[0] for place in places) and "\n  " in said[0]
    assert columns.wrapped("short\ttabs stay") == "short\ttabs stay"


def test_the_default_stores_are_those_that_prepare_makes_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("TASKS", "MIXTURES"):  # other tests may have loaded the module into tables of their own
        monkeypatch.setattr(registry, table, {})
    monkeypatch.delitem(sys.modules, "data_tasks.samples", raising=False)
    load_modules(("data_tasks.samples",))
    for file, mixture, folder in (
        ("sft.gin", "samples_instructions", "stores/chat"),
        ("dpo.gin", "samples_preferences", "stores/preferences"),
    ):
        given = re.findall(
            r"^STORES = (\(.*?\))", (shipped("gin_configs") / file).read_text(), re.MULTILINE | re.DOTALL
        )
        assert ast.literal_eval(given[0]) == tuple(f"{folder}/{name}" for name in registry.MIXTURES[mixture])
