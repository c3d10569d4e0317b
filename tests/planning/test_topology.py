"""Topologies by name, and what is said of those that do not exist."""

import pytest

from t_elaine.errors import UserError
from t_elaine.planning import topology
from t_elaine.planning.chips import CHIPS, KINDS, family_of
from t_elaine.training.metrics import PEAK_FLOPS


@pytest.mark.parametrize(
    ("name", "shape", "devices"),
    [
        ("v5e:16x16", (16, 16), 256),
        ("v5e-256", (16, 16), 256),
        ("v6e-8", (2, 4), 8),
        ("v5p-128", (4, 4, 4), 64),
        ("v4-32", (2, 2, 4), 16),
        ("v3-8", (2, 2), 8),
        ("V5E:2X4", (2, 4), 8),
        ("cpu:8", (8,), 8),
        ("h100:8", (8,), 8),
    ],
)
def test_names(name: str, shape: tuple[int, ...], devices: int) -> None:
    found = topology.read(name)
    assert (found.shape, found.devices) == (shape, devices)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("v5e:3x5", "v5e:16x16"),
        ("v5e:7", "v5e:2x4"),
        ("v9:2x2", "v5p:16x16x16"),
        ("v5e", "v5e:16x16"),
        ("cpu:x", "cpu:"),
    ],
)
def test_one_that_does_not_exist_is_refused_with_those_that_do(name: str, there: str) -> None:
    with pytest.raises(UserError) as caught:
        topology.read(name)
    assert name in caught.value.what and there in caught.value.mend


def test_slices_multiply_the_chips() -> None:
    assert topology.read("v5e:4x4", 4).devices == 64
    for name, slices in (("h100:8", 2), ("v5e:4x4", 0)):
        with pytest.raises(UserError):
            topology.read(name, slices)


def test_peaks_are_what_the_clock_and_the_matrix_units_give() -> None:
    """FLOP a cycle: cores x 4 units x side^2 x 2 (v3 core: 2 units); within 1 % of the published peak."""
    widths = {"v3": 65536, "v4": 262144, "v5e": 131072, "v5p": 262144, "v6e": 524288}
    for family, width in widths.items():
        assert CHIPS[family].clock * width == pytest.approx(CHIPS[family].peak, rel=0.01), family


def test_a_number_of_chips_means_the_most_even_shape() -> None:
    assert topology.read("v5p-512").shape == (4, 8, 8)


def test_a_device_of_jax_is_a_chip_of_ours_with_the_peak_that_mfu_is_counted_by() -> None:
    assert set(KINDS.values()) == set(CHIPS)
    for kind, peak in PEAK_FLOPS.items():
        if kind != "NVIDIA H100 PCIe":  # planned for as the SXM form
            assert CHIPS[family_of(kind)].peak == peak, kind
    kinds = ("TPU v5 lite", "TPU v5", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "TPU v9")
    assert [family_of(kind) for kind in kinds] == ["v5e", "v5p", "a100", "h100", "TPU v9"]
