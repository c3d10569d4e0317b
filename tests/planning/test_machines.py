"""What plan says of hosts and disks, held against the arrays on devices and the files of a real checkpoint."""

import json
from pathlib import Path

import jax
import pytest

from t_elaine import plan, planned
from t_elaine.checkpoints import layout
from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.checkpoints.writing import Checkpointing, Checkpoints
from t_elaine.model.config import LlamaConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.parallel.sharding import RULES
from t_elaine.planning import topology, words
from t_elaine.planning.assumptions import Assumptions
from t_elaine.training import step as steps
from t_elaine.training.optimizer import AdamW
from t_elaine.training.start import split_state
from tests import tiny_runs

MODEL = LlamaConfig(vocab_size=4096, embed=256, mlp=512, layers=2, q_heads=4, kv_heads=2, head_dim=64)
META = CheckpointMeta(step=0, tokens=0, row=0, vocabulary_sha256="v", model={}, config_hash="c")
STEPS = 8


def files(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("mesh", "adamw"),
    [
        (MeshConfig(), AdamW()),
        (MeshConfig(replica=2), AdamW(first_moment_dtype="bfloat16")),
        (MeshConfig(), AdamW(average=0.99)),
    ],
    ids=["float32", "bfloat16", "average"],
)
def test_bytes_of_a_run(tmp_path: Path, mesh: MeshConfig, adamw: AdamW) -> None:
    store = tiny_runs.make_store(tmp_path / "store")
    saving = Checkpointing(every=1, keep=2, permanent_every=3)
    given = tiny_runs.settings(tmp_path / "run", [store], steps=STEPS)
    given |= {"model": MODEL, "optimizer": adamw, "mesh": mesh, "checkpoints": saving}
    told = planned.answered(given, "cpu:8", 1, 3, None, Assumptions(), False, "")["machines"]

    where = steps.state_shardings(MODEL, make_mesh(mesh), RULES, extras=adamw.extras)
    shapes = steps.state_shapes(MODEL, where, adamw.first_moment_dtype)
    state = jax.jit(
        lambda: jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes), out_shardings=where
    )()
    held = sum(shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards)
    assert (told["hosts"], told["devices_per_host"]) == (1, 8)
    assert told["restore_bytes"] == pytest.approx(held, rel=1e-3)

    params, rest = split_state(state)
    most = 0
    with Checkpoints(str(tmp_path / "run"), saving, print) as checkpoints:
        for step in range(1, STEPS + 1):
            checkpoints.save(params, layout.dataclasses.replace(META, step=step), rest)
            checkpoints.wait()
            most = max(most, len(layout.complete_steps(tmp_path / "run")) + 1)
    written = files(tmp_path / "run" / "checkpoints" / str(STEPS))
    assert told["checkpoint_bytes"] == pytest.approx(written, rel=0.01)
    assert told["permanent"] == 2 and most <= told["checkpoints"] == 5
    there = len(layout.complete_steps(tmp_path / "run"))
    assert files(tmp_path / "run" / "checkpoints") == pytest.approx(told["disk_bytes"] * there / 5, rel=0.01)
    assert told["stores_bytes"] == sum(path.stat().st_size for path in store.glob("*.arrow"))


def test_hosts_of_a_topology() -> None:
    wanted = {
        "v5e:2x4": 1,
        "v5e:1x1": 1,
        "v5e:16x16": 64,
        "v6e-8": 1,
        "v4-32": 4,
        "v5p:4x4x4": 16,
        "v3-8": 1,
        "v3-32": 4,
    }
    wanted |= {"h100:8": 1, "h100:16": 2, "rtx4090:1": 1, "cpu:8": 1}
    assert {name: topology.read(name).hosts for name in wanted} == wanted
    assert topology.read("v5e:4x4", 2).hosts == 8


def test_stores_that_are_not_here_are_counted_by_the_tokens_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--gin_file=cpt.gin", "--topology=v5e:16x16", "--gin.plan.compile=False"]
    asked += ["--gin.Mixture.stores=['gs://bucket/store', 'nowhere']", "--gin.Mixture.cache_gb=2.0"]
    plan.main([*asked, "--gin.plan.token_budget=1000000000", "--json"])
    told = json.loads(capsys.readouterr().out)["machines"]
    assert told["stores"] == {"gs://bucket/store": None, "nowhere": None} and told["stores_bytes"] is None
    assert told["tokens_bytes"] == 4e9 and told["cache_bytes"] == 2e9 and told["hosts"] == 64
    plan.main(asked)
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("each of 64 hosts (4 devices) needs RAM: ")]
    assert words.size(told["restore_bytes"]) in line
    assert any("in RUN_DIR" in line for line in lines) and any("not all on a disk" in line for line in lines)
