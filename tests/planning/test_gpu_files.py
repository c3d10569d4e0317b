"""The GPU hardware files: `docs/gpu.md` says of them what `plan` says, and XLA knows their options."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from t_elaine import plan

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = ("gpu_24gb_1", "gpu_48gb_1", "gpu_80gb_1", "gpu_80gb_8")
CELLS = (r"`(gpu_\w+)` \(.*\)", r"`(\w+)`", r"(\d+)", r"([\d.]+) of (\d+)", r"([\d,]+|does not fit)", r"([\d.]*)")
ROW = re.compile(r"\| " + r" \| ".join(CELLS) + r" ?\|")


@pytest.fixture(autouse=True)
def platforms() -> Iterator[None]:
    before = jax.config.jax_platforms  # type: ignore[attr-defined]
    yield
    jax.config.update("jax_platforms", before)


def rows() -> list[tuple[str, ...]]:
    text = (REPOSITORY / "docs/gpu.md").read_text(encoding="utf-8")
    return [found.groups() for found in map(ROW.fullmatch, text.splitlines()) if found]


def test_the_table_has_every_file_and_model() -> None:
    assert {(file, model) for file, model, *_ in rows()} == {(f, m) for f in FILES for m in ("llama32_1b", "llama3_8b")}


@pytest.mark.parametrize("row", rows(), ids="-".join)
def test_the_table_says_what_plan_says(row: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    file, model, length, memory, limit, rate, mfu = row
    files = ["cpt.gin", f"models/{model}.gin", f"hardware/{file}.gin"]
    files += ["recipes/bench_8k.gin"] if length == "8192" else []
    code = plan.main([*(f"--gin_file={name}" for name in files), "--gin.plan.compile=False", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["batch"]["length"] == int(length)
    assert f"{told['arithmetic']['total'] / 2**30:.1f}" == memory
    assert told["arithmetic"]["limit"] == int(limit) * 2**30
    fits = rate != "does not fit"
    assert code == (0 if fits else 3)
    if fits:
        assert f"{told['tokens_per_second_per_chip']['sync exposed']:,.0f}" == rate
        assert f"{100 * told['mfu']['sync exposed']:.1f}" == mfu


@pytest.mark.parametrize("file", FILES)
def test_xla_knows_the_options_and_takes_their_values(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """XLA reads options of GPUs on every platform; a misspelt one, or 'true' for 'True', is refused."""
    files = ("cpt.gin", f"hardware/{file}.gin")
    plan.main([*(f"--gin_file={name}" for name in files), "--gin.plan.compile=False", "--json"])
    options = json.loads(capsys.readouterr().out)["compiler_options"]
    options |= {"xla_gpu_deterministic_ops": "True", "xla_gpu_exclude_nondeterministic_ops": "True"}  # docs/gpu.md's
    for name, value in options.items():
        assert int(jax.jit(lambda x: x + 1, compiler_options={name: value})(jnp.ones((), int))) == 2
    with pytest.raises(jax.errors.JaxRuntimeError):
        jax.jit(lambda x: x + 1, compiler_options={"xla_gpu_deterministic_ops": "true"})(jnp.ones(()))


@pytest.mark.parametrize("replica", (1, 2))
def test_copies_keep_gathers_inside_a_machine(replica: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Two machines of eight: with one copy each, only gradients cross the network; with one copy, every gather does."""
    files = [f"--gin_file={name}" for name in ("cpt.gin", "hardware/gpu_80gb_8.gin")]
    plan.main(
        [*files, "--topology=h100:16", f"--gin.MeshConfig.replica={replica}", "--gin.plan.compile=False", "--json"]
    )
    told = json.loads(capsys.readouterr().out)
    whole, fsdp, network, nvlink = 2 * told["model"]["parameters"], 16 // replica, 6.25e9, 450e9
    gathers = 3 * whole * (fsdp - 1) / fsdp * told["batch"]["accumulation"] / (nvlink if replica == 2 else network)
    between = 2 * whole / fsdp / network if replica == 2 else 0.0
    assert told["roofline_seconds"]["collectives"] == pytest.approx(gathers + between, rel=1e-3)
