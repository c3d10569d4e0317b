"""Runs on preferences: the same loop and step, the start's sums kept once, what does not fit refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t_elaine.checkpoints import adapters
from t_elaine.errors import UserError
from t_elaine.forgetting import Forgetting
from t_elaine.model.lora import Lora
from t_elaine.training.preference import Preference
from tests.end_to_end.test_lora_runs import make_base
from tests.tiny_runs import lines, make_store, parameters, train_here

RPO = Preference(beta=0.2, rpo_alpha=0.5)
SHORT: dict[str, Any] = {"steps": 6, "every": 2, "evaluate_every": 3, "packing": "whole", "preference": RPO}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start, a store of pairs, and a run of six steps that was not stopped."""
    folder = tmp_path_factory.mktemp("preferences")
    make_base(folder / "base")
    make_store(folder / "pairs", pairs=True)
    assert again(folder, "whole") == 0
    return folder


def again(made: Path, name: str, **changes: Any) -> int:
    stores = changes.pop("stores", [made / "pairs"])
    return train_here(made / name, stores, **{"checkpoint": str(made / "base"), **SHORT, **changes})


def test_a_run_learns_to_prefer(made: Path) -> None:
    found = lines(made / "whole")
    first, *_, last = [line for line in found if line["kind"] == "validation"]
    assert first["margin"] == 0 and first["reward_chosen"] == 0 and first["pairs"] > 10
    assert last["margin"] > 0.01 and last["accuracy"] > 0.6 and last["loss"] < first["loss"]
    steps = [line for line in found if line["kind"] == "train"]
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert steps[0]["loss"] == pytest.approx(np.log(2) + 0.5 * steps[0]["chosen_nll"], rel=1e-5)
    assert set(steps[0]["language"]) == {"en", "ja", "zh"}
    assert sum(part["pairs"] for part in steps[0]["language"].values()) == steps[0]["pairs"]
    assert json.loads((made / "whole" / "status.json").read_text())["state"] == "finished"


def test_a_stopped_run_goes_on_bitwise_with_the_sums_that_are_kept(made: Path, capsys: Any) -> None:
    again(made, "stopped", stop_at=4)
    before = (made / "stopped" / "reference.npz").read_bytes()
    again(made, "stopped")
    assert "read from" in capsys.readouterr().out
    assert (made / "stopped" / "reference.npz").read_bytes() == before
    one, other = parameters(made / "whole", 6), parameters(made / "stopped", 6)
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    assert lines(made / "whole") == lines(made / "stopped")


def test_adapters_learn_to_prefer_and_their_checkpoints_hold_no_base(made: Path) -> None:
    lora = Lora(rank=4, alpha=8, targets=("all-linear",), base="nf4")
    again(made, "lora", lora=lora, peak=3e-2)
    found = [line for line in lines(made / "lora") if line["kind"] == "validation"]
    assert found[0]["margin"] == 0 and found[-1]["margin"] > 0.001
    again(made, "lora stopped", lora=lora, peak=3e-2, stop_at=4)
    again(made, "lora stopped", lora=lora, peak=3e-2)
    assert lines(made / "lora") == lines(made / "lora stopped")


REFUSED = {
    "an ordinary objective": ({"preference": None}, "stores of preferences"),
    "another packing": ({"packing": "split"}, "'split'"),
    "no start": ({"checkpoint": None}, "there is none"),
    "z-loss": ({"z_loss": 1e-4}, "z_loss"),
    "dropout": ({"lora": Lora(rank=2, dropout=0.1)}, "dropout is 0.1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(made: Path, name: str) -> None:
    changes, told = REFUSED[name]
    with pytest.raises(UserError, match=told):
        again(made, "refused", **changes)
    assert not (made / "refused").exists()


def test_ordinary_stores_and_mixed_ones_are_refused(made: Path) -> None:
    ordinary = make_store(made / "ordinary")
    with pytest.raises(UserError, match="documents or conversations"):
        again(made, "refused", stores=[ordinary])
    with pytest.raises(UserError, match="'ordinary' does not"):
        again(made, "refused", stores=[made / "pairs", ordinary])


def test_sums_of_another_start_or_other_stores_are_refused_with_both_fingerprints(made: Path) -> None:
    again(made, "begun", steps=2)
    kept = made / "begun" / "reference.npz"
    with np.load(kept) as found:
        record = json.loads(found["record"].tobytes())
    (made / "other").mkdir()
    (made / "other" / kept.name).write_bytes(kept.read_bytes())
    start = make_base(made / "another base", 0.5)
    theirs = adapters.fingerprint(start, 0)
    with pytest.raises(UserError, match="another start") as caught:
        again(made, "other", checkpoint=str(start))
    assert theirs in caught.value.text() and record["parent"] in caught.value.text()
    with pytest.raises(UserError, match="another start") as caught:
        again(made, "other", stores=[make_store(made / "again" / "pairs", documents=90, seed=4, pairs=True)])
    assert record["stores"]["pairs"] in caught.value.text()
    with pytest.raises(UserError, match="sequence_length: 16 there, 20 here"):
        again(made, "other", sequence_length=20, batch_tokens=160)


def test_sums_that_are_gone_or_damaged_are_told(made: Path) -> None:
    again(made, "gone", stop_at=2)
    kept = made / "gone" / "reference.npz"
    kept.write_bytes(kept.read_bytes()[:-30])
    with pytest.raises(UserError, match="cannot be read"):
        again(made, "gone")
    kept.unlink()
    with pytest.raises(UserError, match="are gone"):
        again(made, "gone")


def test_the_guard_against_forgetting_reads_stores_of_its_own(made: Path) -> None:
    limits = Forgetting(general=None, stores=(str(make_store(made / "text")),))
    assert again(made, "guarded", steps=2, forgetting=limits) == 0
    found = [line for line in lines(made / "guarded") if line["kind"] == "validation"]
    for line in found:
        assert line["margin"] is not None and set(line["language"]["en"]) > {"margin", "pairs"}
        assert all(figures["bits_per_byte"] > 0 for figures in line["group"].values()) and len(line["group"]) == 3
    kept = json.loads((made / "guarded" / "parent_figures.json").read_text())
    assert kept["figures"] == found[0]["group"]
