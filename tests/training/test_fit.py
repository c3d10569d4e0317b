"""What cannot fit is refused with figures before anything happens; the figures are near the compiler's own."""

import jax
import pytest

from t_elaine.errors import UserError
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from t_elaine.training import fit
from t_elaine.training import step as steps
from t_elaine.training.optimizer import AdamW, Schedule, learning_rate

LLAMA_8B = LlamaConfig(
    vocab_size=128256, embed=4096, mlp=14336, layers=32, q_heads=32, kv_heads=8, head_dim=128, max_position=8192
)


def test_eight_billion_parameters_do_not_fit_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "device_memory", lambda mesh: (24 << 30, "the host's memory"))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(UserError) as caught:
        fit.check_fit(LLAMA_8B, ComputeConfig(), mesh, 1, 4096)
    need = fit.need(LLAMA_8B, ComputeConfig(), mesh, 1, 4096)
    assert need.parameters == 8_030_261_248 * 4 and need.moments == 2 * need.parameters
    text = caught.value.text()
    assert "8.03 B parameters" in text and f"{need.total / 2**30:.1f} GiB" in text and "24.0 GiB" in text
    assert "TPU v5e" in text and "a model of at most" in text


def test_more_devices_share_it() -> None:
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    one = fit.need(LLAMA_8B, ComputeConfig(), make_mesh(MeshConfig(), jax.devices()[:1]), 1, 4096)
    eight = fit.need(LLAMA_8B, ComputeConfig(), mesh, 1, 4096)
    assert eight.parameters < 1.01 * one.parameters / 8


def test_the_hosts_memory_is_shared_by_its_devices() -> None:
    one, _ = fit.device_memory(make_mesh(MeshConfig(), jax.devices()[:1]))
    eight, source = fit.device_memory(make_mesh(MeshConfig()))
    assert eight == one // 8 and "host" in source


def test_gradients_that_are_added_up_stand_beside_those_of_a_microbatch() -> None:
    mesh = make_mesh(MeshConfig())
    one, two, many = (fit.need(LLAMA_8B, ComputeConfig(), mesh, 1, 4096, microbatches=n) for n in (1, 2, 16))
    assert two == many and two.gradients == 2 * one.gradients and two.total - one.total == one.parameters


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "rows"), [("full", 4), ("none", 4)])
def test_the_estimate_is_near_the_compilers_figure(remat: str, rows: int) -> None:
    config = LlamaConfig(vocab_size=512, embed=128, mlp=384, layers=4, q_heads=4, kv_heads=2, head_dim=32)
    compute = ComputeConfig(dtype="float32", remat=remat, loss_chunk=64)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    rate = learning_rate(Schedule(), 10)
    step = steps.make_step(config, compute, AdamW(), rate, mesh, 2, [1] * 512)
    shapes = steps.state_shapes(config, step.state_shardings)
    made = step.run.lower(shapes, steps.batch_shapes(1, rows, 256, step.batch_sharding)).compile()
    analysis = made.memory_analysis()
    compiler = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    estimate = fit.need(config, compute, mesh, rows, 256).total
    assert 0.5 < estimate / compiler < 2, (estimate, compiler)
