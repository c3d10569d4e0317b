"""Exports: bitwise round trips, small files, a proof that fails on one changed element, nothing left half done."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from t_elaine.checkpoints import reading
from t_elaine.errors import UserError
from t_elaine.hf import exporting, importing, mapping, proof, tensors
from t_elaine.hf.exporting import export_checkpoint
from t_elaine.hf.prompts import PROMPTS
from t_elaine.model import config as model_config
from tests.hf.models import FAMILIES, encode, imported

REPOSITORY = Path(__file__).resolve().parents[2]
quiet = {"transformers": False, "say": lambda line: None}
Runs = Callable[[str], Path]
QUICK = ("llama31", "qwen2")
EACH_FAMILY = [pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in FAMILIES]


def values(folder: Path) -> dict[str, bytes]:
    return {name: tensors.read(info).tobytes() for name, info in tensors.open_tensors(folder).items()}


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_import_export_import_is_bitwise(tmp_path: Path, imported_run: Runs, family: str) -> None:
    run = imported_run(family)
    export_checkpoint(str(run), str(tmp_path / "out"), encode, **quiet)
    assert values(tmp_path / "out") == values(run.parent / "hf")
    again = imported(tmp_path / "out", tmp_path / "again")
    for path in reading.tensors(run, 0):
        assert reading.read_tensor(run, 0, path).tobytes() == reading.read_tensor(again, 0, path).tobytes()
    assert reading.read_meta(again, 0).model == reading.read_meta(run, 0).model
    before, after = (json.loads((folder / "probe.json").read_text()) for folder in (run, again))
    assert before["rows"] == after["rows"] and before["loss"] == after["loss"]


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_transformers_computes_the_same_logits(tmp_path: Path, imported_run: Runs, family: str) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    done = export_checkpoint(str(imported_run(family)), str(tmp_path / "out"), encode, transformers=True)
    entry = next(e for e in done.proof["logits"] if "transformers" in e["theirs"])
    assert entry["passed"] and max(entry["largest"].values()) < 1e-4


def test_bfloat16_is_the_rounded_checkpoint(tmp_path: Path, imported_run: Runs) -> None:
    run = imported_run("llama3")
    done = export_checkpoint(str(run), str(tmp_path / "out"), encode, dtype="bfloat16", **quiet)
    infos = tensors.open_tensors(tmp_path / "out")
    originals = tensors.open_tensors(run.parent / "hf")
    for name, info in infos.items():
        assert info.tag == "BF16"
        expected = tensors.read(originals[name]).astype(tensors.DTYPES["BF16"])
        assert tensors.read(info).tobytes() == expected.tobytes()
    importer = done.proof["logits"][0]
    assert importer["theirs"] == "checkpoint" and 0 < max(importer["relative_rms"].values()) < 0.05
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_shards_come_with_an_index(tmp_path: Path, imported_run: Runs) -> None:
    run = imported_run("llama32_tied")
    export_checkpoint(str(run), str(tmp_path / "out"), encode, shard_bytes=60_000, **quiet)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert values(tmp_path / "out") == values(run.parent / "hf")


def test_small_files_travel(tmp_path: Path, imported_run: Runs) -> None:
    run = imported_run("llama31")
    export_checkpoint(str(run), str(tmp_path / "out"), encode, **quiet)
    source, out = run.parent / "hf", tmp_path / "out"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    for name in ("LICENSE", "NOTICE.txt", "USE_POLICY.md"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert (out / "PARENT_README.md").read_bytes() == (source / "README.md").read_bytes()
    assert not (out / "training_args.bin").exists() and not (run / "parent" / "training_args.bin").exists()
    card = (out / "README.md").read_text()
    assert "license: llama3" in card and "base_model: lab/parent" in card and "not a medical device" in card
    assert str(tmp_path) not in card and str(run) not in (out / "proof.json").read_text()


def test_config_has_both_spellings_of_rope(tmp_path: Path, imported_run: Runs) -> None:
    export_checkpoint(str(imported_run("llama31")), str(tmp_path / "out"), encode, **quiet)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 500000.0
    assert written["rope_scaling"]["factor"] == written["rope_parameters"]["factor"] == 8.0
    assert (written["bos_token_id"], written["eos_token_id"]) == (1, 2)
    for spelling in ("rope_parameters", "rope_scaling"):
        alone = {key: value for key, value in written.items() if key != spelling}
        assert model_config.from_hf(alone) == model_config.from_hf(written)


def test_proof_is_whole(tmp_path: Path, imported_run: Runs) -> None:
    export_checkpoint(str(imported_run("qwen2")), str(tmp_path / "out"), encode, **quiet)
    found = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert found["passed"] and found["tensors"]["differing"] == []
    assert sum(found["prompts"][language] for language in ("en", "ja", "zh")) >= 64
    assert all(set(entry["largest"]) == {"en", "ja", "zh"} for entry in found["logits"])
    assert {entry["theirs"].split(",")[0] for entry in found["logits"]} == {"checkpoint", "numpy"}
    assert set(found["seconds"]) == {"digests", "stream", "proof"}


TENSORS = [tensor.name for tensor in mapping.hf_tensors(model_config.from_hf(FAMILIES["qwen2"]))]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, imported_run: Runs) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    export_checkpoint(str(imported_run("qwen2")), str(out), encode, **quiet)
    return out


@pytest.mark.parametrize("name", TENSORS)
def test_one_changed_element_fails_the_proof(tmp_path: Path, exported: Path, imported_run: Runs, name: str) -> None:
    """The smallest change there is: the last bit of one element."""
    folder = shutil.copytree(exported, tmp_path / "out")
    info = tensors.open_tensors(folder)[name]
    place = info.start + 4 * (info.nbytes // 4 // 2)
    with open(info.file, "r+b") as handle:
        handle.seek(place)
        byte = handle.read(1)[0]
        handle.seek(place)
        handle.write(bytes([byte ^ 1]))
    config = importing.read_config(folder)
    found = proof.compare_tensors(folder, proof.checkpoint_source(str(imported_run("qwen2")), 0), config, "float32")
    assert found["differing"] == [name]


SWAPS = [
    ("mlp.gate_proj", "mlp.up_proj"),
    ("input_layernorm", "post_attention_layernorm"),
    ("self_attn.k_proj", "self_attn.v_proj"),
]


@pytest.mark.parametrize("pair", SWAPS, ids=str)
def test_a_wrong_table_fails_the_proof(
    tmp_path: Path, imported_run: Runs, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str]
) -> None:
    """Two names swapped on the way out and in again cancel, except for a program that does not use our table."""
    one, other = (f"model.layers.{{layer}}.{name}.weight" for name in pair)
    run = imported_run("llama3")
    table = [mapping.Weight(**{**vars(w), "name": {one: other, other: one}.get(w.name, w.name)}) for w in mapping.TABLE]
    monkeypatch.setattr(mapping, "TABLE", tuple(table))
    lines: list[str] = []
    with pytest.raises(UserError, match="do not compute"):
        export_checkpoint(str(run), str(tmp_path / "out"), encode, transformers=False, say=lines.append)
    assert not (tmp_path / "out").exists()
    assert "bitwise" in lines[1] and "against checkpoint" in lines[2] and "passed" in lines[2]
    assert "numpy" in lines[3] and "FAILED" in lines[3]
    kept = json.loads((tmp_path / "out.unproven.json").read_text())
    assert not kept["passed"]


def test_too_few_prompts_prove_nothing(imported_run: Runs, exported: Path) -> None:
    source = proof.checkpoint_source(str(imported_run("qwen2")), 0)
    prompts = proof.make_prompts({"en": PROMPTS["en"], "ja": PROMPTS["ja"]}, encode)
    found = proof.prove(exported, source, importing.read_config(exported), "float32", prompts, False)
    assert not found["passed"]


def test_nan_differs_from_everything() -> None:
    good = np.ones((3, 5), np.float32)
    bad = good.copy()
    bad[1, 2] = np.nan

    def measured(array: np.ndarray) -> dict:
        return proof.measure(lambda a, b: array[:, a:b], lambda a, b: good[:, a:b], ["en", "ja", "zh"], 5, absolute=1.0)

    assert measured(good)["passed"] and not measured(bad)["passed"]


def test_existing_target_needs_overwrite(tmp_path: Path, imported_run: Runs) -> None:
    run, out = imported_run("llama3"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already there"):
        export_checkpoint(str(run), str(out), encode, **quiet)
    assert (out / "mine.txt").read_text() == "mine"
    export_checkpoint(str(run), str(out), encode, overwrite=True, **quiet)
    assert (out / "proof.json").exists() and sorted(tmp_path.iterdir()) == [out]


def test_failed_overwrite_keeps_the_old_export(
    tmp_path: Path, imported_run: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = imported_run("llama3"), tmp_path / "out"
    export_checkpoint(str(run), str(out), encode, **quiet)
    before = values(out)
    monkeypatch.setattr(tensors, "_write_all", no_space_after(3))
    with pytest.raises(UserError, match="disk is full"):
        export_checkpoint(str(run), str(out), encode, overwrite=True, **quiet)
    assert values(out) == before and sorted(tmp_path.iterdir()) == [out]


def no_space_after(writes: int):
    write_all, done = tensors._write_all, []

    def full(sink, data) -> None:
        done.append(1)
        if len(done) > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(sink, data)

    return full


def test_disk_that_is_too_small_is_refused_at_once(
    tmp_path: Path, imported_run: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="GB are needed"):
        export_checkpoint(str(imported_run("llama3")), str(tmp_path / "out"), encode, **quiet)
    assert list(tmp_path.iterdir()) == []


def test_flipped_bit_in_the_checkpoint_is_found(tmp_path: Path, imported_run: Runs) -> None:
    run = shutil.copytree(imported_run("llama3"), tmp_path / "run")
    file = max(
        (run / "checkpoints" / "0" / "params").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size
    )
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        export_checkpoint(str(run), str(tmp_path / "out"), encode, **quiet)
    assert not (tmp_path / "out").exists()


def test_foreign_vocabulary_is_refused(tmp_path: Path, imported_run: Runs) -> None:
    run = shutil.copytree(imported_run("llama3"), tmp_path / "run")
    record = json.loads((run / "vocabulary" / "vocabulary.json").read_text())
    for change, words in (({"sha256": "0" * 64}, "trained with"), ({"size": 321}, "321 ids")):
        (run / "vocabulary" / "vocabulary.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(UserError, match=words):
            export_checkpoint(str(run), str(tmp_path / "out"), encode, **quiet)
    with pytest.raises(UserError, match="id 400"):
        exporting.check_ids(
            [proof.Prompt(language="en", ids=np.array([400]))], exporting.config_of(reading.read_meta(run, 0))
        )


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_no_checkpoint_there(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError):
        export_checkpoint(str(tmp_path / path), str(tmp_path / "out"), encode, **quiet)


def test_object_store_gets_the_proof_last(imported_run: Runs) -> None:
    import fsspec

    export_checkpoint(str(imported_run("llama3")), "memory://exports/one", encode, **quiet)
    names = [path.rpartition("/")[2] for path in fsspec.filesystem("memory").ls("/exports/one", detail=False)]
    assert {"model.safetensors", "config.json", "proof.json", "README.md"} <= set(names)
    with pytest.raises(UserError, match="already there"):
        export_checkpoint(str(imported_run("llama3")), "memory://exports/one", encode, **quiet)


SCRIPT = """
import sys
from tests.hf.models import encode
from t_elaine.hf.exporting import export_checkpoint
export_checkpoint(sys.argv[1], sys.argv[2], encode, overwrite=True, transformers=False)
"""
POINTS = [
    "export.before_write",
    "export.mid_write:7",
    "export.before_rename",
    "export.between_renames",
    "export.after_rename",
]
MARKS = {"export.between_renames": [], "export.mid_write": pytest.mark.slow}


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=MARKS.get(p.partition(":")[0], pytest.mark.full)) for p in POINTS]
)
def test_kill_leaves_the_old_or_the_new_export(tmp_path: Path, imported_run: Runs, point: str) -> None:
    run, out = imported_run("llama3"), tmp_path / "out"
    export_checkpoint(str(run), str(out), encode, **quiet)
    whole = values(out)
    environment = {**os.environ, "T_ELAINE_KILL_AT": point, "XLA_FLAGS": ""}
    killed = subprocess.run([sys.executable, "-c", SCRIPT, run, out], cwd=REPOSITORY, env=environment, check=False)
    assert killed.returncode == -9, "the point was not reached"
    kept = out if out.exists() else tmp_path / ".out.replaced"
    assert values(kept) == whole and (kept / "proof.json").exists()
    export_checkpoint(str(run), str(out), encode, overwrite=True, **quiet)
    assert values(out) == whole and sorted(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("place", [0.01, 0.5, 1.0])
def test_one_flipped_bit_of_an_export_is_found_by_the_import(tmp_path: Path, imported_run: Runs, place: float) -> None:
    """In the header, in the middle and at the end of the second of several files."""
    out = tmp_path / "out"
    export_checkpoint(str(imported_run("llama3")), str(out), encode, shard_bytes=60_000, **quiet)
    said: list[str] = []
    imported(out, tmp_path / "sound", say=said.append)
    assert any("digests in its proof.json" in line for line in said)
    file = sorted(out.glob("*.safetensors"))[1]
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    file.write_bytes(data)
    with pytest.raises(UserError, match=f"{file.name} is damaged or was changed: its sha256") as caught:
        imported(out, tmp_path / "again")
    assert caught.value.where == str(file) and "export the folder again" in caught.value.mend
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "sound"]


def test_weights_that_a_proof_does_not_speak_of_are_refused(tmp_path: Path, imported_run: Runs) -> None:
    out = tmp_path / "out"
    export_checkpoint(str(imported_run("llama3")), str(out), encode, **quiet)
    (out / "model.safetensors").rename(out / "other.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        imported(out, tmp_path / "again")
    (out / "other.safetensors").rename(out / "model.safetensors")
    (out / "proof.json").write_text("{")
    with pytest.raises(UserError, match=r"proof\.json cannot be read") as caught:
        imported(out, tmp_path / "again")
    assert "remove proof.json" in caught.value.mend
    (out / "proof.json").write_text('{"theorem": 1}')
    imported(out, tmp_path / "again")
