"""The check at the start of a run: every kernel passes it, one that lets documents see each other is refused."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from t_elaine.errors import UserError
from t_elaine.model import attention, capability
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.training import packed
from tests.tiny_runs import make_store, train_here

MODEL = LlamaConfig(vocab_size=500, embed=64, mlp=96, layers=3, q_heads=4, kv_heads=2, head_dim=16)
ALONE = MeshConfig(fsdp=1)


@pytest.fixture
def leaking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention that is causal and knows no documents."""
    right = attention.visible
    same = lambda query, key, places: right(jnp.ones_like(query), jnp.ones_like(key), places)  # noqa: E731
    monkeypatch.setattr(attention, "visible", same)
    packed.differences.cache_clear()
    yield
    packed.differences.cache_clear()


def check(mesh: MeshConfig = ALONE, length: int = 48, **compute: Any) -> str:
    devices = make_mesh(mesh, jax.devices()[: 1 if mesh == ALONE else 8])
    said: list[str] = []
    settings = ComputeConfig(**{"attention_block": 16, "dtype": "float32", "loss_chunk": 16, **compute})
    packed.check_packing(MODEL, settings, devices, length, said.append)
    return said[0]


@pytest.mark.parametrize(
    ("mesh", "compute"),
    [
        (ALONE, {}),
        (ALONE, {"attention": "blocked", "dtype": "bfloat16"}),
        (MeshConfig(fsdp=2, context=2, tensor=2), {"attention": "blocked"}),
    ],
)
def test_right_kernels_pass(mesh: MeshConfig, compute: dict[str, Any]) -> None:
    said = check(mesh, **compute)
    assert repr(compute.get("attention", "reference")) in said and " s" in said


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["reference", "blocked"])
def test_a_kernel_that_leaks_is_refused(leaking: None, name: str, dtype: str) -> None:
    with pytest.raises(UserError, match="packed into a row do not compute") as caught:
        check(attention=name, dtype=dtype)
    assert name in caught.value.what and dtype in caught.value.what
    assert "'reference'" in caught.value.mend


def test_the_tolerance_lies_far_from_rounding_and_from_leaks(leaking: None) -> None:
    found = packed.differences(packed.tiny(MODEL, one()), settings(), one(), 48)
    assert min(found.values()) > 3 * packed.TOLERANCE["bfloat16"]


def test_rounding_lies_far_below_the_tolerance() -> None:
    for dtype, tolerance in packed.TOLERANCE.items():
        found = packed.differences(packed.tiny(MODEL, one()), settings(dtype=dtype), one(), 48)
        assert max(found.values()) < tolerance / 3


def settings(**changes: Any) -> ComputeConfig:
    return ComputeConfig(**{"attention": "blocked", "attention_block": 16, "dtype": "float32", **changes})


@functools.cache
def one() -> jax.sharding.Mesh:
    return make_mesh(ALONE, jax.devices()[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, kernel in capability.KERNELS.items() if kernel.whole.interpreted])
def test_kernels_for_other_hardware_pass_where_they_are_interpreted(name: str) -> None:
    model = LlamaConfig(vocab_size=500, embed=64, mlp=96, layers=3, q_heads=4, kv_heads=2, head_dim=128)
    compute = ComputeConfig(attention=name, attention_block=128, dtype="float32")
    found = packed.differences(packed.tiny(model, one()), compute, one(), 256)
    assert max(found.values()) < 1e-5


def test_training_is_refused(leaking: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="packed into a row do not compute"):
        train_here(tmp_path / "run", [make_store(tmp_path / "store")])
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_second_run_of_one_process_finds_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    monkeypatch.setattr(packed, "_run", None)  # would raise if it were called
    check()


@pytest.mark.parametrize("length", [2, 3, 8, 16, 48, 8192])
def test_documents_fit_the_row(length: int) -> None:
    spans = packed.documents(length)
    assert spans[-1][1] <= length and all(start < stop for start, stop in spans)
    assert length < 8 or len(spans) == 3
