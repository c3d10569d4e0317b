"""Memory: what arithmetic says is near what the compiler said, and the compiler's dump is read at its worst moment."""

import dataclasses

import jax
import pytest

from t_elaine.errors import UserError
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.planning import advice, answer, hlo, memory, topology, words
from t_elaine.planning import compile as compiling
from t_elaine.planning.assumptions import Assumptions, rates
from t_elaine.planning.question import Question
from tests.planning.programs import NESTED

LLAMA_8B = LlamaConfig(vocab_size=128256, embed=4096, mlp=14336, layers=32, q_heads=32, kv_heads=8, head_dim=128)
USUAL = ComputeConfig(
    remat="names",
    saved=("q", "k", "v", "attention"),
    attention="splash",
    attention_block=1024,
    attention_fused_backward=True,
    loss_chunk=2048,
)
GIB = 2**30


def question(name: str = "v5e:16x16", rows: int = 1, compute: ComputeConfig = USUAL, model: LlamaConfig = LLAMA_8B):  # type: ignore[no-untyped-def]
    where = topology.read(name)
    mesh = {"replica": 1, "fsdp": where.devices, "context": 1, "tensor": 1}
    return Question(
        model=model,
        compute=compute,
        topology=where,
        mesh=mesh,
        shape=(1, rows * where.devices, 8192),
        steps=1000,
        assumed=Assumptions(),
        rates=rates(Assumptions(), where.chip, where.devices),
    )


@pytest.mark.parametrize(("layers", "peak"), [(32, 11.60), (4, 5.13)])
def test_arithmetic_is_near_the_compilers_peak(layers: int, peak: float) -> None:
    """libtpu 0.0.51's peak for Llama-3-8B's shape on v5e 16x16, in GiB (docs/tpu.md)."""
    told = question(model=dataclasses.replace(LLAMA_8B, layers=layers)).needs().total / GIB
    assert told == pytest.approx(peak, rel=0.05)


def test_what_surely_does_not_fit_is_decided_without_a_compiler() -> None:
    asked = question(rows=4)
    told = answer.arithmetic(asked)
    assert told["decided"] and told["least"] > 15.75 * GIB
    record = answer.by_arithmetic(asked, "arithmetic alone, which decides it")
    text = words.text(record)
    over = told["total"] - told["limit"]
    assert f"DOES NOT FIT by arithmetic by {over / GIB:.2f} GiB" in text
    assert "train.rows_per_device = 1: about" in text and "fits then" in text
    assert "estimated, not measured" in text


def test_what_to_change_is_said_with_its_effect_and_the_effect_is_true() -> None:
    asked = question(rows=2)
    over = asked.needs().total - 15.75 * GIB
    assert over > 0
    told = advice.too_large(asked, over)
    assert any("fits then" in line for line in told) and any("even then" in line for line in told)
    for steps in advice.ways(asked):
        saves = {name: asked.needs().total - other.needs().total for name, other in steps}
        enough = [name for name, saved in saves.items() if saved >= over]
        lines = [line for line in told if line.partition(": about")[0] in saves]
        assert all(("fits then" in line) == bool(enough) for line in lines)
        assert not enough or lines[0].startswith(enough[0])  # the mildest that is enough


def test_more_chips_are_named_by_a_topology_that_exists() -> None:
    asked = question("v5e:2x4", compute=ComputeConfig(attention="splash", attention_block=1024))
    told = advice.more_chips(asked, asked.needs().total - 15.75 * GIB)
    name = told.split("'")[1]
    larger = question(name, compute=asked.compute)
    assert larger.needs().total <= 15.75 * GIB
    assert topology.read(name).chips > 8


def test_memory_that_is_free_is_spent_on_saving_more() -> None:
    assert advice.save_more(question(), 4.15 * GIB) == ("q", "k", "v", "attention", "middle")
    assert advice.save_more(question(), 0.5 * GIB) == ()
    offloading = dataclasses.replace(USUAL, saved=("q", "k", "v"), offloaded=("attention",))
    assert "attention" not in advice.save_more(question(compute=offloading), 4.15 * GIB)


def test_a_refusal_of_the_compiler_becomes_the_same_plain_answer() -> None:
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (20.83G) exceeds available HBM (15.75G). HLO module: jit_step."
    )
    assert memory.refused(message) == (20.83 * GIB, 15.75 * GIB)
    older = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 15.82G of 15.75G hbm. Exceeded capacity"
    assert memory.refused(older) == (15.82 * GIB, 15.75 * GIB)
    assert memory.refused("anything else") == (0.0, 0.0)


ASSIGNMENT = """\
BufferAssignment:
allocation 0: size 4096, page 0, parameter 1, shape |f32[1024]| at ShapeIndex {}, maybe-live-out:
 value: <1 param.1 @0> (size=4096,offset=0): f32[1024]{0}
allocation 1: size 900, page 0, preallocated-temp:
 value: <2 early @0> (size=600,offset=0): f32[150]{0:T(128)}
 value: <3 late{0} @0> (size=500,offset=0): f32[125]{0:T(128)}
 value: <4 same (phi) @0> (size=500,offset=0): f32[125]{0:T(128)}
 value: <5 matmul @0> (size=200,offset=600): bf16[100]{0:T(128)}
allocation 2: size 9000, color 1, page 0, preallocated-temp:
 value: <6 on_chip @1> (size=9000,offset=0): f32[2250]{0:T(128)S(1)}
"""
LIVES = """\
HloLiveRange (max 20):
  InstructionSequence:
    0:early
  BufferLiveRange:
    early{}:1-4
    late{0}:5-9
    same{}:8-12
    matmul{}:6-7
    on_chip{}:1-20
"""


def test_the_worst_moment_is_found_in_the_dump() -> None:
    rows = memory.largest(ASSIGNMENT, LIVES, hlo.parse(NESTED))
    assert [(row["bytes"], row["name"]) for row in rows] == [(500, "late"), (200, "matmul")]
    assert rows[1]["source"] == "t_elaine/model/llama.py:77" and rows[1]["shape"] == "bf16[100]"
    assert rows[1]["operation"].endswith("dot_general")


def test_two_names_of_one_place_are_one_buffer() -> None:
    rows = memory.at_peak(memory.temporaries(ASSIGNMENT), {("late", "0"): (1, 9), ("same", ""): (2, 5)})
    assert [row.bytes for row in rows] == [500]


def test_a_kernel_that_outgrows_the_chips_own_memory_is_not_told_as_a_step_that_does_not_fit() -> None:
    said = (
        "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\nRan out of memory in memory space vmem while allocating"
    )
    said += " on stack for %flash.1 = (bf16[1,32,8192,64]) custom-call(). Scoped allocation with size 67.71M and limit"
    error = jax.errors.JaxRuntimeError(f"{said} 64.00M exceeded scoped vmem limit by 3.71M.")
    with pytest.raises(UserError, match=r"VMEM.*size 67\.71M and limit 64\.00M"):
        compiling._refused(error, 1.0, "")
