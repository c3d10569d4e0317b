"""Meshes and rules: what fits is laid out as the table says, what does not is refused by name."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from t_elaine.errors import UserError
from t_elaine.model import llama
from t_elaine.model.config import LlamaConfig
from t_elaine.parallel import sharding
from t_elaine.parallel.mesh import AXES, MeshConfig, make_mesh, mesh_shape

CONFIG = LlamaConfig(vocab_size=64, embed=16, mlp=24, layers=2, q_heads=4, kv_heads=2, head_dim=4)


@pytest.mark.parametrize(
    ("config", "devices", "shape"),
    [
        (MeshConfig(), 8, (1, 8, 1, 1)),
        (MeshConfig(replica=2, tensor=2), 8, (2, 2, 1, 2)),
        (MeshConfig(fsdp=2, context=2, tensor=-1), 8, (1, 2, 2, 2)),
        (MeshConfig(fsdp=1), 1, (1, 1, 1, 1)),
    ],
)
def test_one_size_may_be_what_is_left(config: MeshConfig, devices: int, shape: tuple[int, ...]) -> None:
    assert mesh_shape(config, devices) == shape
    assert make_mesh(config, jax.devices()[:devices]).axis_names == AXES


@pytest.mark.parametrize(
    "config",
    [MeshConfig(fsdp=3), MeshConfig(tensor=3), MeshConfig(fsdp=-1, tensor=-1), MeshConfig(fsdp=0), MeshConfig(fsdp=-2)],
)
def test_sizes_that_do_not_use_the_devices_are_refused(config: MeshConfig) -> None:
    with pytest.raises(UserError, match=r"mesh of replica=1, fsdp=") as caught:
        mesh_shape(config, 8)
    assert caught.value.mend


def test_a_copy_that_spans_two_slices_is_refused() -> None:
    assert mesh_shape(MeshConfig(replica=4), 32, slices=2) == (4, 8, 1, 1)
    with pytest.raises(UserError, match="replica=1 on 2 slices of 16 chips") as caught:
        mesh_shape(MeshConfig(), 32, slices=2)
    assert "make MeshConfig.replica 2 or a multiple" in caught.value.mend


def test_parameters_lie_as_the_table_says() -> None:
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices()[:8])
    shapes = llama.parameter_shapes(CONFIG)
    found = sharding.shardings(llama.parameter_axes(CONFIG), mesh, shapes=shapes)
    assert found["embed"]["table"].spec == P("tensor", "fsdp")
    assert found["layers"]["attention"]["q"].spec == P(None, "fsdp", "tensor", None)
    assert found["layers"]["mlp"]["down"].spec == P(None, "tensor", "fsdp")
    assert found["final_norm"]["scale"].spec == P(None)
    pieces = jax.tree.map(lambda sharding, shape: sharding.shard_shape(shape.shape), found, shapes)
    assert pieces["layers"]["mlp"]["gate"] == (2, 4, 12)


def test_a_dimension_that_does_not_divide_is_named_with_what_would() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4), jax.devices()[:8])
    with pytest.raises(UserError) as caught:
        sharding.shardings(llama.parameter_axes(CONFIG), mesh, shapes=llama.parameter_shapes(CONFIG))
    assert "layers/attention/k: kv_heads is 2" in caught.value.what
    assert "tensor one of 1, 2," in caught.value.mend


def test_two_dimensions_along_one_mesh_axis_are_refused() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:8])
    rules = {**sharding.RULES, "mlp": ("fsdp",)}
    with pytest.raises(UserError, match="embed and mlp both lie along the mesh axis 'fsdp'"):
        sharding.spec(("embed", "mlp"), mesh, rules, name="layers/mlp/gate")


@pytest.mark.parametrize(("axes", "rules", "text"), [
    (("colour",), sharding.RULES, "no rule for the logical axis 'colour'"),
    (("embed",), {"embed": ("pipeline",)}, "names the mesh axis 'pipeline'"),
])  # fmt: skip
def test_unknown_axes_are_refused(axes: tuple[str, ...], rules: sharding.Rules, text: str) -> None:
    with pytest.raises(UserError, match=text):
        sharding.spec(axes, make_mesh(MeshConfig(), jax.devices()[:8]), rules)
