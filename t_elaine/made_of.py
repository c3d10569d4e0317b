"""What a run is made of, written into its folder at each start and compared with what it was begun with.

The part of `assembly` that keeps records; it trains nothing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from t_elaine import changes, feeding, paths
from t_elaine.data.row_record import check_same_rows, row_record
from t_elaine.parallel import agreement
from t_elaine.training import run_folder
from t_elaine.training.start import Begun

if TYPE_CHECKING:
    from t_elaine.assembly import Run

ROWS = "rows.json"


def rows_as_begun(run: "Run", begun: Begun) -> dict[str, Any]:
    """What the run's rows hang on; refuses to go on with other rows than it was begun with."""
    shards = {name: store["shards"] for name, store in feeding.data_record(run.data).items()}
    rows = row_record(run.feed.loader.plan, shards)
    mend = "copy the stores that process 0 reads to those hosts, or let all read one network disk"
    agreement.check_same("the stores", json.dumps(rows, sort_keys=True), ", ".join(run.data.stores), mend)
    path = paths.join(run.folder, ROWS)
    if begun.resumed and paths.exists(path):
        row = begun.step * run.feed.shape[0] * run.feed.shape[1]
        check_same_rows(json.loads(paths.read_text(path)), rows, row, run.folder)
    return rows


def record(
    run: "Run", begun: Begun, rows: Mapping[str, Any], config_text: str, argv: Sequence[str], say: Callable[[str], None]
) -> None:
    """Write down what the run is made of, and carry along what an export will need."""
    if not run_folder.is_main():
        return
    if begun.step:
        before = run_folder.settings_before(run.folder, begun.step)
        if told := changes.sentence(changes.differences(begun.step, before, config_text) if before else []):
            say(told)
    paths.write_text(paths.join(run.folder, ROWS), json.dumps(rows, indent=1) + "\n")
    run_folder.write_records(run.folder, begun.step, config_text, argv, feeding.data_record(run.data))
    run_folder.copy_folder(paths.join(run.data.stores[0], "vocabulary"), paths.join(run.folder, "vocabulary"))
    if begun.parent is not None and not begun.resumed:
        parent = begun.parent.rpartition("/checkpoints/")[0]
        run_folder.copy_folder(paths.join(parent, "parent"), paths.join(run.folder, "parent"))
