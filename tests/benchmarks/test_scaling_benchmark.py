"""benchmarks/scaling.py: its points hang together, what it does where nothing fits, a tiny model through plan."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling
from t_elaine.planning import topology

TINY = [
    *(f"--gin.LlamaConfig.{name}" for name in ("layers=2", "embed=256", "mlp=512", "q_heads=8", "kv_heads=2")),
    *(f"--gin.LlamaConfig.{name}" for name in ("head_dim=32", "vocab_size=512")),
]


@pytest.mark.parametrize("chip", sorted(scaling.FILES))
@pytest.mark.parametrize("chips", (8, 16, 64, 256))
def test_a_chip_has_the_same_tokens_everywhere(chip: str, chips: int) -> None:
    plain = scaling.point(chip, chips)
    assert topology.read(plain["plan.topology"]).chips == chips
    for slices, length in ((1, 8192), (4, 8192), (1, 32768)):
        told = scaling.point(chip, chips, slices, length)
        assert told["Mixture.batch_tokens"] / (chips * slices) == plain["Mixture.batch_tokens"] / chips
        rows = told["train.rows_per_device"] * chips * slices / told["MeshConfig.context"]
        assert rows * length == told["Mixture.batch_tokens"]
    copies = max(1, chips // 8) if chip in ("h100", "a100") else 1
    assert plain["MeshConfig.replica"] == copies


@pytest.mark.parametrize("chip", sorted(scaling.FILES))
def test_rows_are_those_of_the_hardware_file(chip: str) -> None:
    file = Path(__file__).parents[2] / f"gin_configs/hardware/{scaling.FILES[chip]}.gin"
    assert f"train.rows_per_device = {scaling.ROWS[chip]}" in file.read_text(encoding="utf-8")


def test_what_does_not_fit_saves_less_and_efficiency_compares_equal_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(self: Any, settings: dict[str, Any]) -> dict[str, Any]:
        few, saves = settings["plan.topology"] == "v5e:4x4", settings.get("ComputeConfig.remat", "shipped")
        if settings["plan.topology"] == "v5e:2x4" and "Assumptions.memory" not in settings:
            return {"peak": 2e10, "reason": "does not fit"}
        if few and saves == "shipped":
            return {"peak": 2e10, "reason": "does not fit"}
        return {"peak": 1e10, "tokens_per_second_per_chip": 1000.0 - 20 * (not few) + 500 * (saves == "shipped")}

    monkeypatch.setattr(scaling.Asker, "ask", ask)
    asker = scaling.Asker("v5e", False, 0.0, "", ())
    assert asker.best(scaling.point("v5e", 16))["saved"] == "q k v attention"
    assert asker.best(scaling.point("v5e", 256))["tokens_per_second_per_chip"] == 1480
    nowhere = asker.best(scaling.point("v5e", 8))
    assert nowhere["saved"] == "nothing" and nowhere["were"] == 980 and "tokens_per_second_per_chip" not in nowhere
    assert scaling.efficiency(asker, "v5e", 16, 256) == 0.98


@pytest.mark.slow
def test_a_tiny_model_through_plan_and_again_from_what_is_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    few = ["--chips", "16", "256", "--slices", "--lengths", "32768", "--json", f"--folder={tmp_path}"]
    code = scaling.main([*few, "--", *TINY])
    said = capsys.readouterr()
    told = json.loads(said.out.splitlines()[-1])
    assert code == int(told["efficiency"] < 0.95) and said.err.count("trial") == 3
    rates = [found["tokens_per_second_per_chip"] for found in told["points"]]
    assert len(rates) == 3 and all(math.isfinite(rate) and rate > 0 for rate in rates)
    assert told["efficiency"] == pytest.approx(rates[1] / rates[0])
    assert rates[2] < rates[1]  # longer rows have more attention a token
    assert "ARITHMETIC" in said.out and "estimated, not measured" in said.out
    assert scaling.main([*few, "--budget=0", "--", *TINY]) == code
    assert "trial" not in capsys.readouterr().err
