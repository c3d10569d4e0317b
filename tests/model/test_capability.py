"""Attention that cannot run is replaced with a warning; what can run is left alone; the table knows every choice."""

from pathlib import Path

import pytest

from t_elaine.errors import UserError
from t_elaine.model.capability import KERNELS, usable
from t_elaine.model.config import ComputeConfig


@pytest.mark.parametrize("name", KERNELS)
def test_settings_and_table_agree(name: str) -> None:
    compute = ComputeConfig(attention=name, attention_block=128)
    for platform in KERNELS[name].platforms:
        assert usable(compute, 512, 128, platform) == (compute, "")


def test_no_other_choice_is_accepted() -> None:
    with pytest.raises(UserError, match="flash9") as caught:
        ComputeConfig(attention="flash9")
    assert all(name in str(caught.value) for name in KERNELS)


@pytest.mark.parametrize(
    ("platform", "length", "block", "told"),
    [
        ("cpu", 512, 128, "made for tpu, and this is cpu"),
        ("gpu", 512, 128, "made for tpu, and this is gpu"),
        ("tpu", 500, 128, "rows of 500 in blocks of 128"),
        ("tpu", 384, 256, "rows of 384 in blocks of 256"),
        ("tpu", 512, 64, "multiples of 128"),
        ("tpu", 64, 1024, "rows of 64 in blocks of 64"),
    ],
)
def test_splash_gives_way_with_a_warning(platform: str, length: int, block: int, told: str) -> None:
    found, warning = usable(ComputeConfig(attention="splash", attention_block=block), length, 128, platform)
    assert found == ComputeConfig(attention="reference", attention_block=block)
    assert told in warning and "'reference'" in warning


def test_a_row_shorter_than_the_block_is_one_block() -> None:
    compute = ComputeConfig(attention="splash", attention_block=1024)
    assert usable(compute, 256, 128, "tpu") == (compute, "")


def test_over_pieces_another_kernel_takes_the_place_of_one_that_cannot() -> None:
    for name, platform, instead in (("flash_tpu", "tpu", "splash"), ("flash_gpu", "gpu", "blocked")):
        compute = ComputeConfig(attention=name, attention_block=128)
        found, warning = usable(compute, 1024, 128, platform, pieces=4)
        assert found.attention == instead and "4 pieces" in warning and repr(instead) in warning
        assert usable(found, 1024, 128, platform, pieces=4) == (found, "")


def test_rows_beyond_the_chips_own_memory_take_another_kernel() -> None:
    """The border, and the bytes, are libtpu's: docs/attention.md."""
    compute = ComputeConfig(attention="flash_tpu", attention_block=1024)
    assert usable(compute, 18432, 128, "tpu") == (compute, "")
    found, warning = usable(compute, 20480, 128, "tpu")
    assert found.attention == "splash" and "rows of 20480 take 68 MiB" in warning and "use 64" in warning
    assert usable(ComputeConfig(attention="flash_tpu", attention_block=512), 20480, 128, "tpu")[1] == ""
    assert usable(compute, 24576, 64, "tpu")[0].attention == "splash"  # half a lane takes a whole one
    assert usable(compute, 8192, 128, "tpu", device="TPU v5 lite") == (compute, "")
    assert usable(compute, 8192, 128, "tpu", device="TPU v4")[0].attention == "splash"


def test_triton_takes_powers_of_two() -> None:
    found, warning = usable(ComputeConfig(attention="flash_gpu", attention_block=96), 960, 128, "gpu")
    assert found.attention == "reference" and "powers of two, and this is 96" in warning


def test_the_page_has_the_same_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "attention.md").read_text(encoding="utf-8")
    names = lambda several: ", ".join(several) or "–"  # noqa: E731
    for name, kernel in KERNELS.items():
        parts = [
            " / ".join(map(names, (part.ran, part.interpreted, part.compiled))) if part else "cannot"
            for part in (kernel.whole, kernel.pieces)
        ]
        instead = "itself" if kernel.pieces else f"`{kernel.instead}`"
        assert f"| `{name}` | {', '.join(kernel.platforms)} | {parts[0]} | {parts[1]} | {instead} |" in page


def test_the_table_claims_no_run_on_hardware_that_was_not_there() -> None:
    """To be changed by whoever runs the checks on an accelerator, with the checks' output in docs/attention.md."""
    parts = [part for kernel in KERNELS.values() for part in (kernel.whole, kernel.pieces) if part]
    assert {machine for part in parts for machine in part.ran} == {"x86-64"}


def test_the_block_must_divide_a_piece() -> None:
    compute = ComputeConfig(attention="splash", attention_block=512)
    assert usable(compute, 1024, 128, "tpu", pieces=2) == (compute, "")
    found, warning = usable(compute, 3072, 128, "tpu", pieces=4)
    assert found.attention == "reference" and "rows of 768 in blocks of 512" in warning


def test_a_row_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="two chunks for each of 4 pieces"):
        usable(ComputeConfig(), 100, 128, "cpu", pieces=4)
