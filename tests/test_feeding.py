"""What a run reads: held-out text that is lacking is named."""

from pathlib import Path

import tiny_runs

from t_elaine import feeding
from t_elaine.data.mixture import Mixture
from t_elaine.data.store import read_manifest, write_manifest


def test_stores_without_held_out_text_are_named(tmp_path: Path) -> None:
    stores = [tiny_runs.make_store(tmp_path / name) for name in ("whole", "bare")]
    manifest = read_manifest(stores[1])
    manifest["shards"] = [shard for shard in manifest["shards"] if shard["split"] == "train"]
    write_manifest(stores[1], manifest)
    told: list[str] = []

    def rows(*chosen: Path, tokens: int = 200) -> int:
        told.clear()
        data = Mixture(stores=tuple(map(str, chosen)), sequence_length=16, batch_tokens=128)
        return len(feeding.held_out_rows(data, tiny_runs.GROUPS, tokens, told.append))

    assert rows(stores[0]) == 3 and not told
    assert rows(*stores) == 3 and told[0].startswith("warning: no held-out text in bare")
    assert rows(stores[1]) == 0 and told[0].startswith("warning: no store has held-out text")
    assert rows(stores[1], tokens=0) == 0 and not told, "nothing was to be measured"
