"""`plan` as a person calls it: on simulated devices, on TPUs that are not there, and with what does not go together."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from t_elaine import assembly, plan, planned
from t_elaine.planning import topology
from t_elaine.planning.compile import ASSIGNMENT, TooLarge, compiled_anew
from t_elaine.training.step import batch_shapes
from tests import tiny_runs

TINY = [
    "--gin_file=cpt.gin",
    *(f"--gin.LlamaConfig.{name}" for name in ("layers=2", "embed=64", "mlp=128", "q_heads=4", "kv_heads=2")),
    *(f"--gin.LlamaConfig.{name}" for name in ("head_dim=16", "vocab_size=512")),
    *("--gin.Mixture.sequence_length=64", "--gin.Mixture.batch_tokens=1024", "--gin.Loop.steps=1000"),
    *("--gin.ComputeConfig.remat='none'", "--gin.ComputeConfig.dtype='float32'", "--gin.ComputeConfig.loss_chunk=64"),
]
LAYER, TABLE = 64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 128, 512 * 64


class Seen(Exception):
    """Ends a command where the test has seen enough."""


@pytest.fixture(autouse=True)
def platforms() -> Iterator[None]:
    before = jax.config.jax_platforms  # type: ignore[attr-defined]
    yield
    jax.config.update("jax_platforms", before)


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    plan.main([*TINY, *arguments, "--json"])
    return dict(json.loads(capsys.readouterr().out))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert plan.main([*TINY, *arguments]) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text and "\nmend: " in text
    return text[text.index("error: ") :]


def test_a_program_that_jax_keeps_is_compiled_anew_for_its_dump(tmp_path: Path) -> None:
    lowered = jax.jit(lambda x: x * 3 + 1).lower(1.0)
    dump = lambda name: {"xla_dump_to": str(tmp_path / name), "xla_dump_hlo_as_text": True}  # noqa: E731
    lowered.compile(compiler_options=dump("kept"))
    with compiled_anew():
        lowered.compile(compiler_options=dump("anew"))
    assert list((tmp_path / "anew").glob(f"*{ASSIGNMENT}"))
    lowered.compile(compiler_options=dump("found"))
    assert not list(tmp_path.glob(f"found/*{ASSIGNMENT}")), "outside it is found again"


def test_a_step_on_simulated_devices(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "step.hlo"
    record = asked(capsys, "--topology=cpu:8", f"--hlo_out={file}")
    parameters = 2 * (LAYER + 2 * 64) + 2 * TABLE + 64
    assert record["model"]["parameters"] == parameters
    assert record["batch"] == {"accumulation": 2, "rows": 8, "length": 64, "tokens": 1024}
    assert 4 * parameters / 8 <= record["memory"]["parameters"] <= 1.02 * 4 * parameters / 8 + 5 * 64 * 4
    # Nothing is recomputed: 6 FLOPs a weight and token, and attention over the whole square.
    dense = 6 * (2 * LAYER + TABLE) * 1024 / 8
    square = 12 * 2 * 4 * 16 * 64 * 1024 / 8
    assert record["flops"]["executed"] == pytest.approx(dense + square, rel=0.02)
    assert record["flops"]["model"] == pytest.approx(dense + square / 2)
    assert {row["axes"] for row in record["collectives"]} == {"fsdp"}
    assert "step_seconds" not in record, "a simulated device has no speed"
    assert "ENTRY" in file.read_text()
    assert any(row["source"].startswith("t_elaine/") for row in record["memory"]["largest"])


def test_it_is_the_step_that_train_compiles(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both are stopped where they would compile; their programs differ in nothing but the lengths of the tokens."""
    programs: list[str] = []

    def see(step: Any, *arguments: Any) -> None:
        state, batch = arguments[:2] if len(arguments) > 1 else (step.state_shapes, arguments[0])
        if len(arguments) == 1:  # plan hands over the batch's shape
            batch = batch_shapes(*batch, step.batch_sharding)
        text = step.run.lower(state, batch).as_text()
        programs.append(re.sub(r"dense<[^>]*> : tensor<64x[if]32>", "lengths", text))
        raise Seen

    store = tiny_runs.make_store(tmp_path / "store")
    given = tiny_runs.settings(tmp_path / "run", [store])
    monkeypatch.setattr(assembly, "compiled", see)
    monkeypatch.setattr(planned, "compile_step", see)
    with pytest.raises(Seen):
        assembly.train(**given)
    from t_elaine.planning.assumptions import Assumptions

    with pytest.raises(Seen):
        planned.answered(given, "cpu:8", 1, len(tiny_runs.GROUPS), None, Assumptions(), True, "")
    assert len(programs) == 2 and programs[0] == programs[1]


def test_words_fit_a_hundred_columns_and_say_at_the_top_that_nothing_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("cpu:8", "h100:8"):
        assert plan.main([*TINY, f"--topology={name}", "--gin.Loop.price_per_chip_hour=2.0"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("PLAN: everything below is estimated, not measured.\n") and out.count("not measured") == 1
        assert max(map(len, out.splitlines())) <= 100
    assert "an arithmetic roofline" in out and "at 2 a chip and hour" in out and "nothing compiles for GPUs" in out


def test_hours_and_money_follow_from_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    priced = ["--topology=h100:8", "--gin.Loop.price_per_chip_hour=2.0"]
    run = asked(capsys, *priced)["run"]
    assert run["steps"] == 1000 and run["tokens"] == 1_024_000
    assert run["cost"] == pytest.approx(run["chip_hours"] * 2) and run["chip_hours"] == pytest.approx(8 * run["hours"])
    double = asked(capsys, *priced, "--gin.plan.token_budget=2048000")["run"]
    assert double["steps"] == 2000 and double["hours"] == pytest.approx(2 * run["hours"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--topology=v5e:3x5"], "v5e:4x4"),
        (["--topology=cpu:8", "--gin.MeshConfig.tensor=3"], "does not use 8 device(s) exactly"),
        (["--topology=cpu:8", "--gin.train.rows_per_device=3"], "train.rows_per_device = 1, 2"),
        (["--topology=cpu:8", "--gin.Mixture.batch_tokens=1000"], "batch_tokens = 960 or 1024"),
        (["--topology=cpu:8", "--gin.MeshConfig.fsdp=2", "--gin.MeshConfig.tensor=4"], "does not divide into 4"),
        (["--topology=cpu:8", "--gin.train.compiler_options={'no_such_option': '1'}"], "train.compiler_options"),
        (["--topology=h100:8", "--slices=2"], "slices"),
        (["--topology=v5e:4x4", "--slices=2"], "a copy must not span two slices"),
        (["--topology=cpu:8", "--hlo_out=no/such/folder/step.hlo"], "the program cannot be written there"),
        (["--topology=cpu:8", "--hlo_out=."], "the program cannot be written there"),
    ],
)
def test_what_does_not_go_together_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert expected in refused(capsys, *arguments)


def test_without_libtpu_arithmetic_answers_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(topology, "has_compiler", lambda: False)
    assert plan.main([*TINY, "--topology=v5e:2x4", f"--hlo_out={tmp_path / 'step.hlo'}"]) == 0
    out, err = capsys.readouterr()
    assert "step.hlo was not written: no step was compiled" in err and not list(tmp_path.iterdir())
    assert "libtpu" in out and "not installed" in out and "FITS by arithmetic" in out and "tokens/s/chip" in out


def test_a_refusal_for_memory_ends_with_3_and_what_to_change(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "RESOURCE_EXHAUSTED: CompileTimeHbmOom: the total memory (20.00G) exceeds available HBM (15.75G)."
    monkeypatch.setattr(planned, "compile_step", lambda *_: TooLarge(message=message, seconds=2.0))
    arguments = [*TINY, "--topology=cpu:8", "--gin.train.rows_per_device=2"]
    assert plan.main(arguments) == 3
    out = capsys.readouterr().out
    assert "DOES NOT FIT by 4.25 GiB" in out and "what to change" in out


needs_libtpu = pytest.mark.skipif(
    not topology.has_compiler(), reason="libtpu, which compiles for TPUs, is not installed"
)


@pytest.mark.slow
@needs_libtpu
def test_a_step_compiled_for_a_tpu(capsys: pytest.CaptureFixture[str]) -> None:
    wide = ["--gin.LlamaConfig.head_dim=128", "--gin.Mixture.sequence_length=256", "--gin.Mixture.batch_tokens=1024"]
    kernel = ["--gin.ComputeConfig.attention='splash'", "--gin.ComputeConfig.dtype='bfloat16'"]
    record = asked(capsys, "--topology=v5e:2x2", *wide, *kernel, "--gin.ComputeConfig.attention_block=256")
    assert record["memory"]["fits"] and record["memory"]["limit"] == 15.75 * 2**30
    layer = 64 * 128 * (4 + 2 + 2 + 4) + 3 * 64 * 128
    dense = 6 * (2 * layer + TABLE) * 256
    assert record["flops"]["matmuls"] == pytest.approx(dense, rel=0.02)  # nothing is recomputed
    square = 2 * 4 * 256 * 256 * 128  # one block: the whole square; forward 2 matmuls, backward 4 and 3
    assert record["flops"]["attention"] == 2 * 9 * square
    assert {row["axes"] for row in record["collectives"]} == {"fsdp"}
    steps = record["step_seconds"]
    assert 0 < steps["hidden"] <= steps["sync exposed"] <= steps["exposed"]
    assert sum(record["parts"].values()) == pytest.approx(steps["exposed"])
    assert record["loops"] and not record["loops_not_read"]


@pytest.mark.slow
@needs_libtpu
def test_what_the_compiler_refuses_is_told_with_its_buffers_near_the_arithmetic(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Llama-3.2-1B on one v5e: the state fits, the step does not, which only the compiler can say."""
    whole = ["--gin_file=cpt.gin", "--gin_file=models/llama32_1b.gin", "--gin.Mixture.batch_tokens=4096"]
    kernel = ["--gin.ComputeConfig.attention='splash'", "--gin.ComputeConfig.attention_block=512"]
    assert plan.main([*whole, *kernel, "--topology=v5e:1x1", "--json"]) == 3
    record = json.loads(capsys.readouterr().out)
    assert not record["arithmetic"]["decided"] and record["by"] == "the compiler, which refuses it"
    memory = record["memory"]
    assert memory["peak"] > memory["limit"] == 15.75 * 2**30
    assert record["arithmetic"]["total"] == pytest.approx(memory["peak"], rel=0.1)
    assert any(row["source"].startswith("t_elaine/model/") for row in memory["largest"])
    assert any("plan.topology = 'v5e:2x2' fits" in way for way in record["change"])
