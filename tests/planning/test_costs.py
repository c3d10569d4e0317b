# ruff: noqa: E501 (an instruction stands on one line)
"""The estimate of hand-written programs, each sum worked out by hand beside it."""

import pytest

from t_elaine.planning import collectives, costs, hlo, loops
from t_elaine.planning.assumptions import Assumptions, Rates, rates
from t_elaine.planning.chips import CHIPS
from tests.planning.programs import FUSED, KERNELS, NESTED

MESH = {"replica": 1, "fsdp": 2, "context": 1, "tensor": 2}


def figures(**assumed: float | None) -> Rates:
    return rates(Assumptions(**assumed), CHIPS["v5e"], 4)


def counted(text: str, **assumed: float | None) -> costs.Costs:
    return costs.count(hlo.parse(text), figures(**assumed), MESH)


def test_loops_run_as_often_as_they_do() -> None:
    found = counted(NESTED)
    assert found.loops == [("long", 4), ("short", 3)] and not found.unread
    matmul = found.kinds["matmul"]
    assert matmul.times == 12 and matmul.seconds == pytest.approx(12 * 1000 / 1.5e9)
    assert found.matmul_flops == matmul.flops == 12 * 2 * 64 * 128 * 256
    assert found.phases["forward"] == pytest.approx(matmul.seconds)


def test_a_loop_that_cannot_be_read_counts_as_assumed_and_is_named() -> None:
    text = NESTED.replace('backend_config={"known_trip_count":{"n":"4"}}', "metadata={}")
    found = counted(text, default_trips=7)
    assert found.unread == ["long"] and found.kinds["matmul"].times == 21


@pytest.mark.parametrize(("bound", "direction", "trips"), [("9", "LT", 7), ("5", "LE", 4), ("-1", "GT", 3)])
def test_trips_follow_from_condition_start_and_step(bound: str, direction: str, trips: int) -> None:
    text = NESTED.replace("%five = s32[] constant(5)", f"%five = s32[] constant({bound})")
    text = text.replace("direction=LT", f"direction={direction}")
    module = hlo.parse(text)
    short = module.computations["long.body"].instructions["short"]
    assert loops.trips(module, short) == trips


def test_copies_branches_and_prefetches() -> None:
    found = counted(NESTED)
    assert found.kinds["copies"].seconds == pytest.approx(500 / 1.5e9)
    assert found.kinds["other instructions"].seconds == pytest.approx(70 / 1.5e9)  # the dearer branch
    assert found.host == pytest.approx(64 * 128 * 2, rel=0.001)


def test_collectives_take_their_bytes_over_the_links_and_name_their_mesh_axes() -> None:
    found = {call.kind: (call, times) for call, times in counted(NESTED).collectives}
    gather, times = found["all-gather"]
    assert times == 4 and not gather.asynchronous and gather.axes == "fsdp x tensor" and gather.group == 4
    assert gather.seconds == pytest.approx(128 * 256 * 2 * 3 / 4 / (4 * 45e9))
    scatter, _ = found["reduce-scatter"]
    assert scatter.asynchronous and scatter.bytes == 4096 * 64 * 2
    steps = counted(NESTED).steps()
    compute = 12 * 1000 / 1.5e9 + 570 / 1.5e9
    assert steps["sync exposed"] == pytest.approx(compute + 4 * gather.seconds)
    assert steps["exposed"] == pytest.approx(compute + 4 * gather.seconds + scatter.seconds)
    assert steps["hidden"] == pytest.approx(compute)


@pytest.mark.parametrize(
    ("call", "seconds"),
    [
        ("all-reduce(%left), replica_groups={{0,1,2,3}}", 2 * 3 / 4 / (4 * 45e9)),
        ("reduce-scatter(%left), replica_groups={{0,1},{2,3}}", 1 / 2 / (2 * 45e9)),  # two of four chips: one axis
        ("collective-permute(%left), source_target_pairs={{0,0},{0,2},{1,1}}", 1 / 45e9),
        ("all-to-all(%left), replica_groups={{0,1,2,3}}", 2 / 8 / 45e9),  # rings of two
    ],
)
def test_each_kind_passes_on_its_share(call: str, seconds: float) -> None:
    text = NESTED.replace("all-gather(%left), channel_id=1, replica_groups={{0,1,2,3}}", f"{call}, channel_id=1")
    (found,) = [c for c, _ in counted(text).collectives if not c.asynchronous]
    assert found.seconds == pytest.approx(64 * 128 * 2 * seconds)
    assert found.axes == {"collective-permute": "fsdp", "reduce-scatter": "tensor"}.get(found.kind, "fsdp x tensor")


def test_an_asynchronous_collective_counts_once_and_a_cut_sum_is_a_scatter() -> None:
    calls = [(call.kind, call.axes, call.asynchronous, times) for call, times in counted(FUSED).collectives]
    assert calls == [("all-gather", "fsdp", True, 1), ("reduce-scatter", "tensor", False, 1)]
    assert counted(FUSED).kinds["matmul"].seconds == pytest.approx(300 / 1.5e9)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("channel_id=1", [[0, 1, 2, 3]]),
    ],
)
def test_groups_are_read_however_they_are_written(text: str, groups: list[list[int]]) -> None:
    program = NESTED.replace("replica_groups={{0,1,2,3}}", text)
    call = hlo.parse(program).computations["long.body"].instructions["whole"]
    assert sorted(map(sorted, collectives.members(call, 4))) == groups


def test_attention_kernels_cost_their_executed_blocks() -> None:
    found = {call.name: call for call, _ in counted(KERNELS).attention}
    square = 2 * 32 * 8192 * 8192 * 128
    assert found["forward"].flops == 2 * square * 36 / 64 and found["forward"].blocks == "1024x1024"
    assert (found["dkv"].matmuls, found["dq"].matmuls, found["fused"].matmuls) == (4, 3, 5)
    assert found["dkv"].flops == 4 * square / 2  # blocks unknown: half of the square
    assert found["forward"].seconds == pytest.approx(found["forward"].flops / (0.5 * 197e12))
    assert counted(KERNELS, attention_block=2048).attention[1][0].causal == 10 / 16
    assert counted(KERNELS, causal_share=1.0).attention_flops == 14 * square
    other = counted(KERNELS).kinds["other kernels"]
    assert other.seconds == pytest.approx(2 * 32 * 8192 * 128 * 2 / 819e9)
    named = counted(KERNELS, kernel_shares={"mha_fwd": 0.7}).attention[0][0]  # type: ignore[arg-type]
    assert named.seconds == pytest.approx(named.flops / (0.7 * 197e12))


def test_a_cap_bounds_what_has_no_matmul() -> None:
    dear = NESTED.replace('"estimated_cycles":"500"', '"estimated_cycles":"500000"')
    capped = counted(dear, cap_memory_bound=1.5)
    assert capped.kinds["copies"].seconds == pytest.approx(1.5 * (64 + 128) * 256 * 2 / 819e9)
    assert capped.kinds["matmul"].seconds == counted(dear).kinds["matmul"].seconds


def test_a_batched_product_written_as_a_convolution_counts_real_products_only() -> None:
    window = "window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf"
    text = NESTED.replace("bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)", "bf16[8,16,32]{2,1,0} parameter(0)")
    text = text.replace("bf16[128,256]{1,0:T(8,128)(2,1)} parameter(1)", "bf16[8,32,64]{2,1,0} parameter(1)")
    text = text.replace(
        "ROOT %y = bf16[64,256]{1,0:T(8,128)(2,1)} convolution(%x, %w), dim_labels=bf_io->bf",
        f"ROOT %y = bf16[8,16,64]{{2,1,0}} convolution(%x, %w), {window}",
    )
    assert counted(text).matmul_flops == 12 * 2 * 8 * 16 * 32 * 64


def test_source_lines_are_those_of_this_package() -> None:
    module = hlo.parse(NESTED)
    matmul = module.computations["short.body"].instructions["matmul"]
    assert module.source(matmul, "t_elaine/") == "t_elaine/model/llama.py:77"


def test_between_slices_the_runtime_carries_sums_over_the_network() -> None:
    told = '_xla_megascale_transfer_type="ALL_REDUCE"'
    text = f"""\
HloModule slices

ENTRY %main (a: f32[1024]) -> f32[1024] {{
  %a = f32[1024]{{0}} parameter(0)
  %t = token[] after-all()
  %send = (f32[1024]{{0}}, u32[], token[]) send(%a, %t), channel_id=1, is_host_transfer=true, frontend_attributes={{{told}}}
  %sent = token[] send-done(%send), channel_id=1
  ROOT %b = f32[1024]{{0}} copy(%a), backend_config={{"estimated_cycles":"1"}}
}}
"""
    mesh = {"replica": 2, "fsdp": 2, "context": 1, "tensor": 1}
    found = costs.count(hlo.parse(text), figures(), mesh, slices=2).collectives
    ((call, times),) = found
    assert (call.kind, call.axes, call.group, call.asynchronous, times) == ("all-reduce", "replica", 2, True, 1)
    assert call.seconds == pytest.approx(4096 / 6.25e9)
