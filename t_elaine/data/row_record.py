"""What the rows of a run hang on, written down, so that a run that goes on reads on where it was.

Row k is a function of the stores and of the mixture. A resume under other ones would repeat some documents and never
read others without a word; hence it is refused. The record is a plain dictionary; who keeps it is not decided here.
"""

from collections.abc import Mapping
from typing import Any

from t_elaine.data.rows import RowPlan
from t_elaine.errors import UserError

SETTINGS = ("sequence_length", "batch_tokens", "seed", "packing", "overlong", "window_tokens", "split")


def row_record(plan: RowPlan, shards: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Everything that decides what stands in a row.

    Args:
        plan: of the run.
        shards: store name → file → sha256.
    """
    split = plan.mixture.split
    names = [source.name for source in plan.sources]
    return {
        "mixture": {name: getattr(plan.mixture, name) for name in SETTINGS},
        "stores": {
            name: {file: digest for file, digest in shards[name].items() if file.startswith(f"{split}-")}
            for name in names
        },
        "phases": [
            {"first_row": phase.first_row, "weights": dict(zip(names, phase.weights, strict=True))}
            for phase in plan.phases
        ],
    }


def check_same_rows(old: Mapping[str, Any], new: Mapping[str, Any], row: int, run_dir: str) -> None:
    """Refuse to go on under other rows. Phases that begin at `row` or later may differ: none of them was read.

    Args:
        old: the record that the run was begun with.
        new: what the settings now lead to.
        row: the next row to read.
        run_dir: for the message.

    Raises:
        UserError: naming each difference.
    """
    told = [
        f"{name}: {old['mixture'].get(name)!r} → {value!r}"
        for name, value in new["mixture"].items()
        if old["mixture"].get(name) != value
    ]
    for name in sorted({*old["stores"], *new["stores"]}):
        if name not in new["stores"]:
            told.append(f"store {name}: left out")
        elif name not in old["stores"]:
            told.append(f"store {name}: added")
        elif old["stores"][name] != new["stores"][name]:
            told.append(f"store {name}: made anew since, with other content")
    if not told:  # other stores have other weights: said already
        before, after = ([p for p in record["phases"] if p["first_row"] < max(row, 1)] for record in (old, new))
        told += [] if before == after else [f"weights: {_weights(before)} → {_weights(after)}"]
    if told:
        mend = (
            "give the run what it was begun with (other weights from now on: Mixture.phases); or begin another RUN_DIR "
            f"from these weights: Start.checkpoint = {run_dir!r}"
        )
        raise UserError(f"the run was begun with other rows; {'; '.join(told)}", run_dir, mend)


def _weights(phases: list[dict[str, Any]]) -> str:
    shown = (", ".join(f"{name} {weight:.4g}" for name, weight in phase["weights"].items()) for phase in phases)
    return " then ".join(f"({weights})" for weights in shown)
