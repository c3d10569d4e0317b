"""Recomputation by tensor: what is saved, offloaded or made again changes memory and no gradient."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.errors import UserError
from t_elaine.model import llama
from t_elaine.model.config import OFFLOAD, SAVEABLE, ComputeConfig, LlamaConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.training.building import check_offload
from tests.random_params import random_params

CONFIG = LlamaConfig(vocab_size=64, embed=16, mlp=24, layers=3, q_heads=4, kv_heads=2, head_dim=8)
B, T = 2, 16
OFFLOADED = ("attention", "gate")


def compute(**changes: Any) -> ComputeConfig:
    return ComputeConfig(**{"dtype": "float32", "remat": "names", **changes})


@functools.cache
def rows() -> tuple[np.ndarray, ...]:
    tokens = np.random.default_rng(0).integers(0, 64, (B, T), dtype=np.int32)
    places = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    return tokens, places, np.ones((B, T), np.int32)


def total(params: Any, settings: ComputeConfig) -> jax.Array:
    x = llama.hidden(params, CONFIG, settings, *rows())
    return jnp.sum(x * jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape))


@functools.cache
def gradients(settings: ComputeConfig) -> Any:
    return jax.jit(jax.grad(total), static_argnums=1)(random_params(CONFIG), settings)


@pytest.mark.parametrize(
    "settings", [{"saved": ("q", "gate")}, {"offloaded": OFFLOADED}, {"saved": ("q",), "offloaded": OFFLOADED}], ids=str
)
def test_gradients_do_not_change(settings: dict[str, Any]) -> None:
    found, wanted = gradients(compute(**settings)), gradients(compute(remat="none"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)


@pytest.mark.parametrize("name", SAVEABLE)
def test_exactly_the_named_tensor_is_saved(name: str) -> None:
    """What the backward pass is handed of the layers, beyond what it is handed with nothing saved."""
    shapes = {"q": 4 * 8, "k": 2 * 8, "v": 2 * 8, "attention": 4 * 8, "middle": 16, "gate": 24, "up": 24}

    def kept(settings: ComputeConfig) -> int:
        pullback = jax.eval_shape(
            lambda params: jax.vjp(lambda p: total(p, settings), params)[1], random_params(CONFIG)
        )
        leaves = [leaf for leaf in jax.tree.leaves(pullback) if leaf.ndim > 2 and leaf.shape[0] == CONFIG.layers]
        return sum(leaf.size for leaf in leaves)

    more = kept(compute(saved=(name,))) - kept(compute(saved=()))
    assert more == CONFIG.layers * B * T * shapes[name]


def test_offloaded_tensors_go_to_the_hosts_memory() -> None:
    text = str(jax.make_jaxpr(jax.grad(total), static_argnums=1)(random_params(CONFIG), compute(offloaded=OFFLOADED)))
    assert text.count("<host>") >= 2 * len(OFFLOADED)
    assert "<host>" not in str(jax.make_jaxpr(jax.grad(total), static_argnums=1)(random_params(CONFIG), compute()))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"offloaded": ("colour",)}, "colour"),
        ({"offloaded": ("q",), "remat": "full"}, "offloaded does nothing with remat='full'"),
        ({"saved": ("q", "k"), "offloaded": ("k",)}, "k: both saved on the device and offloaded"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        compute(**settings)


class Memory:
    kind = "device"


class Device:
    """A device that cannot reach its host's memory."""

    device_kind = "abacus"

    def addressable_memories(self) -> list[Memory]:
        return [Memory()]


class Mesh:
    local_devices = (Device(),)


def test_devices_that_reach_no_host_memory_are_refused() -> None:
    with pytest.raises(
        UserError, match=f"attention, gate cannot be kept.*abacus knows device, not {OFFLOAD}"
    ) as caught:
        check_offload(compute(offloaded=OFFLOADED), Mesh())  # type: ignore[arg-type]
    assert "recompute" in caught.value.mend
    check_offload(compute(), Mesh())  # type: ignore[arg-type]
    check_offload(compute(offloaded=OFFLOADED), make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]))


# libtpu prints to both outputs and wants a process of its own.
PROGRAM = """
import json, re
import numpy as np
from jax.experimental import topologies
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.training import step as steps
from t_elaine.training.building import build_step
config = LlamaConfig(vocab_size=2048, embed=256, mlp=512, layers=2, q_heads=2, kv_heads=1, head_dim=128)
mesh = make_mesh(MeshConfig(), topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices)
found = {}
for offloaded in ((), ("attention", "gate")):
    saved = tuple(name for name in ("attention", "gate") if name not in offloaded)
    compute = ComputeConfig(remat="names", saved=saved, offloaded=offloaded, attention="splash", attention_block=128)
    step = build_step(config, compute, None, None, 100, mesh, 2, np.full(2048, 4, np.int32))
    batch = steps.batch_shapes(1, 8, 1024, step.batch_sharding)
    text = step.run.lower(step.state_shapes, batch).compile().as_text()
    found[",".join(offloaded)] = sorted(set(re.findall(r"bf16\\[2,[\\d,]*\\](?=\\{[^}]*S\\(5\\))", text)))
print("found", json.dumps(found))
"""


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: t-elaine[plan]")
def test_compiled_for_a_tpu_they_lie_in_the_hosts_memory() -> None:
    """Memory space 5 is the host's: both layers' tensors stand there, and nothing does where nothing is offloaded."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=600)
    line = next((line for line in done.stdout.splitlines() if line.startswith("found ")), None)
    assert line is not None, done.stdout + done.stderr
    found = json.loads(line.removeprefix("found "))
    assert found[""] == []
    assert len(found["attention,gate"]) == 2, found
