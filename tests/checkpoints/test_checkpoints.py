"""Checkpoints give back what was saved, on any mesh, layer by layer, and refuse what is damaged or of another model."""

import asyncio
import dataclasses
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t_elaine.checkpoints import layout, reading, verify, writing
from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.checkpoints.writing import Checkpointing, Checkpoints
from t_elaine.errors import UserError

META = CheckpointMeta(
    step=1, tokens=5 * 10**9, row=7, vocabulary_sha256="v" * 64, model={"layers": 6, "embed": 16}, config_hash="c"
)
SHAPES = {"embed": {"table": (32, 16)}, "layers": {"q": (6, 16, 4, 8), "scale": (6, 16)}, "norm": (16,)}
IS_SHAPE = lambda leaf: isinstance(leaf, tuple)  # noqa: E731


def mesh_of(devices: int) -> Mesh:
    return Mesh(np.asarray(jax.devices()[:devices]), ("fsdp",), axis_types=(AxisType.Auto,))


def shardings(devices: int) -> dict[str, Any]:
    """Each array cut along its first (stacked ones: second) axis."""

    def leaf(shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh_of(devices), PartitionSpec(None, "fsdp") if shape[0] == 6 else PartitionSpec("fsdp"))

    return jax.tree.map(leaf, SHAPES, is_leaf=IS_SHAPE)


def make_params(devices: int = 8, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    tree = jax.tree.map(lambda shape: rng.normal(size=shape).astype(np.float32), SHAPES, is_leaf=IS_SHAPE)
    return jax.device_put(tree, shardings(devices))


def make_rest(params: dict[str, Any]) -> dict[str, Any]:
    here = NamedSharding(mesh_of(len(params["norm"].devices())), PartitionSpec())
    small = {"step": np.int32(1), "tokens": np.array([1, 2], np.uint32)}
    return {"opt_state": {"mu": params, "nu": params}, **jax.device_put(small, here)}


def target(devices: int) -> Any:
    return jax.tree.map(
        lambda shape, where: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where),
        SHAPES,
        shardings(devices),
        is_leaf=IS_SHAPE,
    )


def full_target(devices: int) -> Any:
    here = NamedSharding(mesh_of(devices), PartitionSpec())
    rest = {
        "opt_state": {"mu": target(devices), "nu": target(devices)},
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=here),
        "tokens": jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=here),
    }
    return {"params": target(devices), "optimizer": rest}


def save_steps(run_dir: Path, steps: list[int], **settings: Any) -> dict[str, Any]:
    params = make_params()
    with Checkpoints(str(run_dir), Checkpointing(every=1, **settings), say=lambda _: None) as checkpoints:
        for step in steps:
            changed = jax.tree.map(lambda leaf, s=step: leaf + s, params)
            checkpoints.save(changed, dataclasses.replace(META, step=step), make_rest(changed))
    return params


def data_files(run_dir: Path, step: int) -> list[Path]:
    return sorted(
        p for p in (run_dir / "checkpoints" / str(step)).rglob("*") if p.is_file() and "digests" not in p.name
    )


def assert_equal(found: Any, wanted: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), found, wanted)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_restores_onto_any_number_of_devices(tmp_path: Path, devices: int) -> None:
    params = save_steps(tmp_path, [1])
    found = reading.restore(tmp_path, 1, full_target(devices), "state")
    assert_equal(found["params"], jax.tree.map(lambda leaf: leaf + 1, params))
    assert found["params"]["layers"]["q"].sharding == shardings(devices)["layers"]["q"]
    assert int(found["optimizer"]["step"]) == 1 and found["optimizer"]["tokens"].tolist() == [1, 2]
    assert layout.read_meta(tmp_path, 1) == META


def test_one_layer_is_read_alone(tmp_path: Path) -> None:
    params = {"layers": {"q": jax.device_put(np.arange(4 * 512 * 1024, dtype=np.float32).reshape(4, 512, 1024))}}
    writing.save_params(str(tmp_path), 0, params, META)
    layer = reading.read_tensor(tmp_path, 0, "layers/q", 2)
    np.testing.assert_array_equal(layer, np.asarray(params["layers"]["q"][2]))
    assert reading.tensors(tmp_path, 0) == {"layers/q": ((4, 512, 1024), "float32")}
    base = f"file://{tmp_path}/checkpoints/0/params/"
    store = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": "layers.q/"}}
    assert tensorstore.open(store).result().chunk_layout.read_chunk.shape[0] == 1
    with pytest.raises(UserError, match="no tensor 'layers/k'"):
        reading.read_tensor(tmp_path, 0, "layers/k")


def test_parameters_alone_have_the_same_layout(tmp_path: Path) -> None:
    params = make_params()
    writing.save_params(str(tmp_path), 0, params, META)
    assert_equal(reading.restore(tmp_path, 0, target(2)), params)
    assert not layout.read_meta(tmp_path, 0).has_optimizer
    with pytest.raises(UserError, match="holds no optimizer"):
        reading.restore(tmp_path, 0, full_target(2), "state")
    with pytest.raises(UserError, match="already there"):
        writing.save_params(str(tmp_path), 0, params, META)


def test_saves_what_was_there_when_save_was_called(tmp_path: Path) -> None:
    """The arrays are given to a donating computation while the save is still on its way."""
    params = {"layers": {"q": jax.device_put(np.ones((8, 512, 1024), np.float32))}}
    more = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    with Checkpoints(str(tmp_path), Checkpointing(every=1), say=lambda _: None) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(params, dataclasses.replace(META, step=step))
            for _ in range(3):
                params = more(params)
            assert (tmp_path / "checkpoints").exists()
            checkpoints.wait()
            assert np.all(reading.read_tensor(tmp_path, step, "layers/q") == 1 + 3 * (step - 1))


def test_keeps_the_last_two_and_the_permanent_ones(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2, 3, 4, 5, 6, 7], permanent_every=3)
    assert layout.complete_steps(tmp_path) == [3, 6, 7]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["3", "6", "7"]


def test_two_complete_ones_are_there_whenever_a_third_is_begun(tmp_path: Path, monkeypatch: Any) -> None:
    seen = []
    monkeypatch.setattr(writing, "fault_point", lambda name: seen.append((name, layout.complete_steps(tmp_path))))
    save_steps(tmp_path, [1, 2, 3, 4])
    assert [name.rpartition(".")[2] for name, _ in seen[-3:]] == ["before_save", "before_digests", "after_digests"]
    assert all(len(steps) >= 2 for _, steps in seen[6:])


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2])
    rng = np.random.default_rng(0)
    for path in data_files(tmp_path, 2):
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        assert verify.faults(str(tmp_path / "checkpoints" / "2")), path
        path.write_bytes(whole)
    assert verify.faults(str(tmp_path / "checkpoints" / "2")) == []


@pytest.mark.parametrize("damage", ["flipped", "short", "missing", "extra", "bad digests"])
def test_a_damaged_one_is_named_and_the_one_before_taken(tmp_path: Path, damage: str) -> None:
    params = save_steps(tmp_path, [1, 2])
    path = max(data_files(tmp_path, 2), key=lambda p: p.stat().st_size if "params" in str(p) else 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "flipped":
        path.write_bytes(content)
    elif damage == "short":
        path.write_bytes(content[:-10])
    elif damage == "missing":
        path.unlink()
    elif damage == "extra":
        path.with_name("x").write_bytes(b"x")
    else:
        (tmp_path / "checkpoints" / "2" / "digests.json").write_text("{")
    told: list[str] = []
    found, meta = reading.restore_newest(str(tmp_path), target(2), say=told.append)
    assert meta.step == 1 and "checkpoint 2 is damaged" in told[0]
    assert_equal(found, jax.tree.map(lambda leaf: leaf + 1, params))


def test_no_sound_one_is_an_error_that_lists_them(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2])
    for step in (1, 2):
        data_files(tmp_path, step)[-1].write_bytes(b"")
    with pytest.raises(UserError, match=r"no sound checkpoint is left \(there: 1, 2\)"):
        reading.restore_newest(str(tmp_path), target(2), say=lambda _: None)


def test_a_number_that_is_not_finite_is_damage(tmp_path: Path) -> None:
    params = make_params()
    params["norm"] = params["norm"].at[3].set(jnp.inf)
    writing.save_params(str(tmp_path), 0, params, META)
    with pytest.raises(reading.Damaged, match="not finite"):
        reading.restore(tmp_path, 0, target(1))


def test_other_shapes_are_refused_with_both(tmp_path: Path) -> None:
    writing.save_params(str(tmp_path), 0, make_params(), META)
    wrong = target(1)
    wrong["norm"] = jax.ShapeDtypeStruct((24,), jnp.float32, sharding=wrong["norm"].sharding)
    with pytest.raises(UserError, match=r"norm is \(16,\) in the checkpoint, \(24,\) here"):
        reading.restore_newest(str(tmp_path), wrong)
    del wrong["norm"]
    with pytest.raises(UserError, match="a tensor more, norm"):
        reading.restore(tmp_path, 0, wrong)


def test_another_model_or_vocabulary_is_refused_with_both() -> None:
    reading.check_model(META, "here", {"layers": 6, "embed": 16}, "v" * 64)
    with pytest.raises(UserError, match="embed: 16 there, 32 here"):
        reading.check_model(META, "here", {"layers": 6, "embed": 32}, "v" * 64)
    with pytest.raises(UserError, match="vvvv…, the stores were made with wwww"):
        reading.check_model(META, "here", META.model, "w" * 64)


def test_one_without_digests_does_not_count_and_is_removed(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2])
    (tmp_path / "checkpoints" / "2" / "digests.json").unlink()
    assert layout.complete_steps(tmp_path) == [1] and layout.resolve(tmp_path) == (str(tmp_path), 1)
    told: list[str] = []
    with Checkpoints(str(tmp_path), Checkpointing(), told.append):
        assert os.listdir(tmp_path / "checkpoints") == ["1"]
    assert told == ["removing checkpoint 2: it was never completed"]


def test_resolve_says_what_is_there(tmp_path: Path) -> None:
    save_steps(tmp_path, [4, 8])
    assert layout.resolve(tmp_path) == (str(tmp_path), 8)
    assert layout.resolve(tmp_path / "checkpoints" / "4") == (str(tmp_path), 4)
    with pytest.raises(UserError, match="no complete checkpoint of step 5") as caught:
        layout.resolve(tmp_path / "checkpoints" / "5")
    assert "4, 8" in caught.value.mend
    with pytest.raises(UserError, match="no such run folder"):
        layout.resolve(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        layout.resolve(tmp_path / "empty")


def test_hosts_digest_their_own_files_and_all_are_checked(tmp_path: Path) -> None:
    for name in ("a", "ocdbt.process_0/d/x", "ocdbt.process_1/d/y", "array_metadatas/process_1"):
        path = tmp_path / "params" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    verify.seal(str(tmp_path), 1, 2)
    assert sorted(json.loads((tmp_path / "digests.1.json").read_text())["files"]) == [
        "params/array_metadatas/process_1",
        "params/ocdbt.process_1/d/y",
    ]
    verify.seal(str(tmp_path), 0, 2)
    assert verify.faults(str(tmp_path)) == []
    (tmp_path / "params" / "ocdbt.process_1" / "d" / "y").write_text("z")
    found = [verify.faults(str(tmp_path), share=(i, 2)) for i in range(2)]
    assert sum(map(len, found)) == 1
    (tmp_path / "digests.1.json").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        verify.faults(str(tmp_path))


def test_a_save_that_cannot_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_steps(tmp_path, [1])
    usage = writing.shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(
        UserError, match=r"checkpoint 2 \([\d,]+ bytes are needed, 1,000,000 are free\); checkpoint 1 is"
    ):
        save_steps(tmp_path, [2])
    assert os.listdir(tmp_path / "checkpoints") == ["1"]


FULL_DISK = """
import dataclasses, resource, signal, sys
sys.path.insert(0, {tests!r})
import jax, numpy as np
from t_elaine.checkpoints import layout
from t_elaine.checkpoints.writing import Checkpointing, Checkpoints
from t_elaine.errors import UserError
from test_checkpoints import META
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def params(): return {{"w": jax.device_put(np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32))}}
try:
    with Checkpoints({run!r}, Checkpointing(every=1)) as checkpoints:
        checkpoints.save(params(), dataclasses.replace(META, step=1)); checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        checkpoints.save(params(), dataclasses.replace(META, step=2))
except UserError as error:
    print(error.text())
"""


def test_a_full_disk_is_one_clear_message_and_the_last_checkpoint_is_intact(tmp_path: Path) -> None:
    script = FULL_DISK.format(tests=str(Path(__file__).parent), run=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "no space left while saving checkpoint 2; checkpoint 1 is intact" in done.stdout, done.stderr
    assert os.listdir(tmp_path / "checkpoints") == ["1"]
    assert verify.faults(str(tmp_path / "checkpoints" / "1")) == []


@pytest.mark.parametrize(
    ("told", "shown"),
    [("Writing OCDBT manifest: No space left on device", False), ("a mistake of this project's own", True)],
)
def test_a_write_that_nobody_waited_for_is_told_once(caplog: pytest.LogCaptureFixture, told: str, shown: bool) -> None:
    with writing.one_voice():
        pass
    loop = asyncio.new_event_loop()
    lost = loop.create_future()
    lost.set_exception(ValueError(told))
    del lost
    gc.collect()
    loop.close()
    assert ("exception was never retrieved" in caplog.text) is shown
