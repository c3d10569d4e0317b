"""A run that goes on must read on where it was: other stores, seeds, lengths or weights are refused by name."""

from pathlib import Path
from typing import Any

import pytest
import tiny_runs

from t_elaine.data.mixture import Mixture, Phase
from t_elaine.data.row_record import check_same_rows, row_record
from t_elaine.data.rows import open_mixture
from t_elaine.data.store import open_store
from t_elaine.errors import UserError


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("stores")
    return [tiny_runs.make_store(folder / name, documents=40) for name in ("alpha", "beta", "gamma")]


def recorded(stores: list[Path], **changes: Any) -> dict[str, Any]:
    settings = {"sequence_length": 16, "batch_tokens": 64, "weights": {s.name: 1.0 for s in stores}} | changes
    shards = {
        store.name: {shard["file"]: shard["sha256"] for shard in open_store(store).manifest["shards"]}
        for store in stores
    }
    return row_record(open_mixture(Mixture(stores=tuple(map(str, stores)), **settings)), shards)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sequence_length": 32}, "sequence_length: 16 → 32"),
        ({"batch_tokens": 128}, "batch_tokens: 64 → 128"),
        ({"seed": 3}, "seed: 0 → 3"),
        ({"packing": "whole"}, "packing: 'split' → 'whole'"),
        ({"weights": {"alpha": 1.0, "beta": 3.0}}, "weights: (alpha 0.5, beta 0.5) → (alpha 0.25, beta 0.75)"),
        ({"phases": (Phase(from_tokens=80, weights={"alpha": 1.0, "beta": 3.0}),)}, "then (alpha 0.25, beta 0.75)"),
    ],
)
def test_other_rows_are_refused(stores: list[Path], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        check_same_rows(recorded(stores[:2]), recorded(stores[:2], **changes), 10, "runs/one")
    assert told in caught.value.what and "Start.checkpoint = 'runs/one'" in caught.value.mend


def test_the_same_rows_and_phases_to_come_are_accepted(stores: list[Path]) -> None:
    old = recorded(stores[:2])
    check_same_rows(old, recorded(stores[:2]), 10, "runs/one")
    later = (Phase(from_tokens=160, weights={"alpha": 1.0, "beta": 3.0}),)
    check_same_rows(old, recorded(stores[:2], phases=later), 10, "runs/one")


def test_other_stores_are_refused_by_name(stores: list[Path], tmp_path: Path) -> None:
    old = recorded(stores[:2])
    for others, told in ((stores[:1], "beta: left out"), (stores, "gamma: added")):
        with pytest.raises(UserError, match=told):
            check_same_rows(old, recorded(others), 10, "runs/one")
    again = tiny_runs.make_store(tmp_path / "beta", documents=40, seed=1)
    with pytest.raises(UserError, match="beta: made anew since"):
        check_same_rows(old, recorded([stores[0], again]), 10, "runs/one")
    moved = tiny_runs.make_store(tmp_path / "elsewhere" / "beta", documents=40)
    check_same_rows(old, recorded([stores[0], moved]), 10, "runs/one")
