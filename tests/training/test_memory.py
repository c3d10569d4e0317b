"""What a step holds and moves: no whole logits, the state in place, moments and gathers in the types asked for."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.checkpoints import reading
from t_elaine.errors import UserError
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.training import fit, optimizer
from t_elaine.training import step as steps
from t_elaine.training.optimizer import AdamW
from tests import programs, tiny_runs

ALONE = MeshConfig(fsdp=1)
ROWS = 16  # so many that no more than one chunk's errors are kept, which a CPU widens to float32


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [tiny_runs.make_store(tmp_path_factory.mktemp("stores") / "alpha")]


def logits_of(text: str, rows: int) -> list[str]:
    """Float32 values of the program with as many elements as all logits of `rows` rows, a vocabulary among them."""
    V, whole = programs.CONFIG.vocab_size, rows * programs.LENGTH * programs.CONFIG.vocab_size
    shapes = {shape: [int(n) for n in shape.split(",")] for shape in re.findall(r"\bf32\[(\d[\d,]*)\]", text)}
    return [shape for shape, sizes in shapes.items() if V in sizes and np.prod(sizes) >= whole]


@pytest.mark.parametrize(("chunk", "made"), [(8, False), (programs.LENGTH, True)])
def test_all_logits_exist_only_where_chunking_is_off(chunk: int, made: bool) -> None:
    compute = ComputeConfig(dtype="bfloat16", loss_chunk=chunk)
    text = programs.compiled(programs.tiny_step(ALONE, compute, devices=1, z_loss=1e-4), ROWS).as_text()
    assert bool(logits_of(text, ROWS)) == made


@pytest.mark.parametrize("adamw", [AdamW(), AdamW(first_moment_dtype="bfloat16")], ids=lambda a: a.first_moment_dtype)
def test_the_whole_state_is_updated_in_place(adamw: AdamW) -> None:
    step = programs.tiny_step(MeshConfig(), adamw=adamw)
    done = programs.compiled(step)
    leaves = jax.tree.leaves(step.state_shapes)
    held = sum(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int) * leaf.dtype.itemsize for leaf in leaves)
    assert done.memory_analysis().alias_size_in_bytes == held
    (aliases,) = re.findall(r"input_output_alias=\{(.*?)\}, entry", done.as_text())
    assert len(re.findall(r"\{\d+\}: \(\d+, \{\}", aliases)) == len(leaves)


def test_matrices_are_gathered_and_gradients_summed_in_bfloat16() -> None:
    found = programs.collectives_of(programs.partitioned(programs.tiny_step(MeshConfig())))
    gathers = [name for name in found if name.startswith("all-gather")]
    assert len(gathers) > 4 and all(" bf16[" in name for name in gathers)
    large = [name for name in found if re.search(r"\[\d+,\d+\]", name) and "[4,3]" not in name]
    assert all(" bf16[" in name for name in large), large
    compute = ComputeConfig(dtype="float32", loss_chunk=8)
    wide = programs.collectives_of(programs.partitioned(programs.tiny_step(MeshConfig(), compute)))
    assert not any(" bf16[" in name for name in wide), "the test above can fail"


def test_tables_are_gathered_in_each_microbatch_and_not_kept_for_all() -> None:
    """Outside the loop a gathered table would live from the first microbatch to the last."""
    step = programs.tiny_step(MeshConfig(), ComputeConfig(dtype="bfloat16", loss_chunk=8))
    text = programs.compiled(step, accumulation=4).as_text()
    outside = text[text.index("\nENTRY ") :]
    V, D = programs.CONFIG.vocab_size, programs.CONFIG.embed
    whole = re.compile(rf"\[({V},{D}|{D},{V})\]\S* all-gather")
    assert whole.search(text) and not whole.search(outside)


def test_the_first_moment_is_rounded_where_it_is_stored() -> None:
    """One update from zero: the same parameters as with float32; the moment is the float32 one, rounded."""
    params = {"w": jnp.linspace(-1, 1, 12, dtype=jnp.float32).reshape(3, 4)}
    gradients = {"w": jnp.cos(jnp.arange(12, dtype=jnp.float32)).reshape(3, 4)}
    found = {}
    for dtype in optimizer.MOMENTS:
        adamw = AdamW(first_moment_dtype=dtype)
        state = optimizer.init_optimizer(params, dtype)
        found[dtype] = optimizer.update(adamw, {"w": True}, params, gradients, state, jnp.float32(0.1))
    (wide, wide_state, _), (narrow, narrow_state, _) = found["float32"], found["bfloat16"]
    np.testing.assert_array_equal(wide["w"], narrow["w"])
    np.testing.assert_array_equal(wide_state["mu"]["w"].astype(jnp.bfloat16), narrow_state["mu"]["w"])
    assert narrow_state["mu"]["w"].dtype == jnp.bfloat16 and narrow_state["nu"]["w"].dtype == jnp.float32


def test_no_other_dtype_is_taken() -> None:
    with pytest.raises(UserError, match="float16"):
        AdamW(first_moment_dtype="float16")


def last_state(run_dir: Path, step: int, moment: str) -> Any:
    """The optimizer's state in a checkpoint, as it was stored."""
    reader = reading.tensor_reader(run_dir, step, "optimizer")
    found = {name: reader(f"opt_state/{name}/layers/mlp/gate", None, None) for name in ("mu", "nu")}
    assert (found["mu"].dtype, found["nu"].dtype) == (np.dtype(jnp.dtype(moment)), np.dtype("float32"))
    return found


@pytest.mark.slow
def test_a_run_with_a_bfloat16_moment_resumes_bitwise_and_may_change(stores: list[Path], tmp_path: Path) -> None:
    narrow = {"first_moment_dtype": "bfloat16", "evaluate_tokens": 0}
    assert tiny_runs.train_here(tmp_path / "whole", stores, steps=6, every=3, **narrow) == 0
    # The same schedule, stopped at its half and begun again.
    constant = {"kind": "constant", **narrow}
    assert tiny_runs.train_here(tmp_path / "once", stores, steps=6, every=3, **constant) == 0
    assert tiny_runs.train_here(tmp_path / "twice", stores, steps=3, every=3, **constant) == 0
    assert tiny_runs.train_here(tmp_path / "twice", stores, steps=6, every=3, **constant) == 0
    one, two = (last_state(tmp_path / name, 6, "bfloat16") for name in ("once", "twice"))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    params = [tiny_runs.parameters(tmp_path / name, 6) for name in ("once", "twice")]
    for name, values in params[0].items():
        np.testing.assert_array_equal(values, params[1][name])
    # Another dtype on resume: converted.
    again = {**constant, "first_moment_dtype": "float32"}
    assert tiny_runs.train_here(tmp_path / "twice", stores, steps=9, every=3, **again) == 0
    last_state(tmp_path / "twice", 9, "float32")
    # Parameters alone: a run may start from it, whatever its moments are.
    start = {"checkpoint": str(tmp_path / "once"), "evaluate_tokens": 0}
    assert tiny_runs.train_here(tmp_path / "child", stores, steps=2, **start) == 0


def test_the_fit_counts_the_moments_that_are_there() -> None:
    mesh = make_mesh(MeshConfig())
    wide, narrow = (
        fit.need(programs.CONFIG, programs.COMPUTE, mesh, 1, 32, first_moment_dtype=dtype)
        for dtype in optimizer.MOMENTS
    )
    assert wide.moments == 2 * wide.parameters and narrow.moments == 1.5 * narrow.parameters
    step = programs.tiny_step(MeshConfig(), adamw=AdamW(first_moment_dtype="bfloat16"))
    leaves = [leaf for name in ("mu", "nu") for leaf in jax.tree.leaves(step.state_shapes["opt_state"][name])]
    held = sum(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int) * leaf.dtype.itemsize for leaf in leaves)
    assert narrow.moments == held


def test_the_z_loss_is_reported_and_not_in_the_nats() -> None:
    """Metrics with and without it: the same sums by group; what is minimised differs by what is reported."""
    found = {}
    for z_loss in (0.0, 1e-2):
        step = programs.tiny_step(
            MeshConfig(fsdp=2), ComputeConfig(dtype="float32", loss_chunk=8), devices=2, z_loss=z_loss
        )
        rng = np.random.default_rng(0)
        arrays = {name: rng.integers(0, 512, (2, 4, 32), dtype=np.int32) for name in ("tokens", "targets")}
        arrays |= {name: np.ones((2, 4, 32), np.int32) for name in ("segments", "positions")}
        arrays |= {"groups": np.zeros((2, 4, 32), np.int32), "weights": np.ones((2, 4, 32), np.float32)}
        fresh = lambda key: steps.init_state(steps.llama.init(programs.CONFIG, key))  # noqa: E731
        state = jax.jit(fresh, out_shardings=step.state_shardings)(jax.random.key(0))
        _, found[z_loss] = step.run(state, jax.device_put(arrays, step.batch_sharding))
    plain, with_z = found[0.0], found[1e-2]
    assert "z_loss" not in plain
    np.testing.assert_allclose(plain["sums"], with_z["sums"], rtol=1e-6)
    assert with_z["z_loss"] > 0.3  # (ln 512)² / 100
    np.testing.assert_allclose(with_z["loss"] - plain["loss"], with_z["z_loss"], rtol=1e-4)
    assert float(with_z["grad_norm"]) != float(plain["grad_norm"])
