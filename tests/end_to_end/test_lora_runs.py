"""Runs that train adapters: they keep them alone, go on bitwise, and refuse a base that is not theirs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from t_elaine.checkpoints import adapters, layout, reading
from t_elaine.checkpoints.writing import save_params
from t_elaine.errors import UserError
from t_elaine.evaluation.engines import parameter_targets
from t_elaine.hf import proof
from t_elaine.hf.mapping import weights
from t_elaine.model.config import LlamaConfig
from t_elaine.model.lora import Lora
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from tests.random_params import meta_of, random_params
from tests.tiny_runs import lines, make_store, parameters, train_here

CONFIG = LlamaConfig(vocab_size=64, embed=16, mlp=24, layers=2, q_heads=2, kv_heads=1, head_dim=8)
LORA = Lora(rank=2, alpha=4, dropout=0.2, dora=True, base="nf4", targets=("q", "v", "down"))
SHORT: dict[str, Any] = {"steps": 6, "every": 2, "evaluate_every": 3}


def make_base(folder: Path, change: float = 0.0) -> Path:
    """A run folder that holds parameters alone, as an import does."""
    params = random_params(CONFIG)
    params["final_norm"]["scale"] = params["final_norm"]["scale"] + np.float32(change)
    save_params(str(folder), 0, jax.device_put(params), meta_of(CONFIG))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a store, and a run of six steps that was not stopped."""
    folder = tmp_path_factory.mktemp("lora")
    make_base(folder / "base")
    train_here(folder / "whole", [make_store(folder / "store")], checkpoint=str(folder / "base"), lora=LORA, **SHORT)
    return folder


def again(made: Path, name: str, **changes: Any) -> int:
    given = {"checkpoint": str(made / "base"), "lora": LORA, **SHORT, **changes}
    return train_here(made / name, [made / "store"], **given)


def test_a_stopped_run_goes_on_bitwise_and_keeps_adapters_alone(made: Path) -> None:
    again(made, "stopped", stop_at=4)
    again(made, "stopped")
    one, other = parameters(made / "whole", 6), parameters(made / "stopped", 6)
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    assert lines(made / "whole") == lines(made / "stopped")
    held = set(reading.tensors(made / "whole", 6))
    assert held == {
        f"layers/{path}/{part}"
        for path in ("attention/q", "attention/v", "mlp/down")
        for part in ("down", "up", "magnitude")
    }
    found = adapters.fingerprint(made / "base", 0)
    assert reading.read_meta(made / "whole", 6).adapter["fingerprint"] == found


def test_all_readers_see_the_model_that_was_trained(made: Path) -> None:
    """Layer by layer, as export reads, and sharded, as evaluate does; the held-out loss is training's last one."""
    source = proof.checkpoint_source(str(made / "whole"), 6)
    held = adapters.restore_whole(
        made / "whole", 6, parameter_targets(CONFIG, make_mesh(MeshConfig(fsdp=4, replica=2)))
    )
    for weight in weights(CONFIG):
        leaf = held
        for key in weight.path.split("/"):
            leaf = leaf[key]
        for layer in range(2) if weight.stacked else [None]:
            whole = np.asarray(leaf if layer is None else leaf[layer])
            np.testing.assert_allclose(source(weight, layer, None), whole, rtol=1e-5, atol=1e-6)
            box = [slice(1, size - 1) if size > 2 else slice(None) for size in whole.shape]
            np.testing.assert_allclose(source(weight, layer, box), whole[tuple(box)], rtol=1e-5, atol=1e-6)


def test_another_base_is_refused_with_both_fingerprints(made: Path) -> None:
    other = make_base(made / "other", 0.5)
    theirs = adapters.fingerprint(made / "base", 0)
    with pytest.raises(UserError) as caught:
        adapters.base_of({"base": str(other), "fingerprint": theirs}, "here")
    assert theirs in caught.value.text() and adapters.fingerprint(other, 0) in caught.value.text()
    with pytest.raises(UserError, match="fingerprint"):
        again(made, "else", checkpoint=str(other), adapter=str(made / "whole"))
    with pytest.raises(UserError, match="not there"):
        adapters.base_of({"base": str(made / "gone"), "fingerprint": theirs}, "here")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora": dataclasses.replace(LORA, rank=4)}, "rank: 2 there, 4 here"),
        ({"lora": dataclasses.replace(LORA, base="int8")}, "base: nf4 there, int8 here"),
        ({"lora": None}, "adapters was trained here"),
    ],
)
def test_other_settings_are_refused(made: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        again(made, "whole", steps=8, **changes)


def test_adapters_need_a_base(made: Path) -> None:
    with pytest.raises(UserError, match="beside"):
        again(made, "none", checkpoint=None)


def test_adapters_of_a_run_are_taken_over_and_numbers_that_are_none_refused(made: Path) -> None:
    again(made, "taken", adapter=str(made / "whole"), steps=2, peak=1e-30)
    one, other = parameters(made / "whole", 6), parameters(made / "taken", 2)
    np.testing.assert_allclose(one["params/layers/attention/q/up"], other["params/layers/attention/q/up"], rtol=1e-6)
    meta = reading.read_meta(made / "whole", 6)
    shapes = {name: value for name, value in one.items() if name.startswith("params/")}
    tree: dict[str, Any] = {}
    for name, value in shapes.items():
        *parents, last = name.split("/")[1:]
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = jax.numpy.asarray(value)
    tree["layers"]["mlp"]["down"]["up"] = tree["layers"]["mlp"]["down"]["up"].at[0, 0, 0].set(np.nan)
    save_params(str(made / "nan"), 0, tree, dataclasses.replace(meta, has_optimizer=False))
    with pytest.raises(UserError, match="not finite"):
        again(made, "from nan", adapter=str(made / "nan"))
    assert json.loads((layout_meta(made / "nan")).read_text())["adapter"]["lora"]["rank"] == 2


def layout_meta(run: Path) -> Path:
    return Path(layout.step_dir(run, 0)) / "meta" / "metadata"
