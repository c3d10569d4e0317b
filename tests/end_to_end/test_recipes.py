"""Every recipe, in miniature: its own settings on a tiny model and tiny stores that bear its stores' names."""

import ast
import json
import re
from pathlib import Path

import pytest

from t_elaine import train
from t_elaine.paths import shipped
from tests import tiny_runs

RECIPES = shipped("gin_configs") / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.gin"))
TINY = """
LlamaConfig.vocab_size = 64
LlamaConfig.embed = 16
LlamaConfig.mlp = 24
LlamaConfig.layers = 2
LlamaConfig.q_heads = 2
LlamaConfig.kv_heads = 1
LlamaConfig.head_dim = 8
ComputeConfig.dtype = 'float32'
ComputeConfig.loss_chunk = 8
Mixture.sequence_length = 16
Mixture.batch_tokens = 128
Mixture.overlong = 'truncate'
Mixture.planned_tokens = 256
Loop.steps = 2
Loop.evaluate_tokens = 100
"""


def stores_of(recipe: Path) -> tuple[str, ...]:
    """The stores that a recipe names, itself or through what it includes."""
    text = recipe.read_text(encoding="utf-8")
    found = re.search(r"^STORES = (\(.*?\))", text, re.MULTILINE | re.DOTALL)
    if found:
        return ast.literal_eval(found.group(1))
    included = re.findall(r"^include '(.*)'", text, re.MULTILINE)
    return next(stores_of(shipped("gin_configs") / name) for name in included)


def whole(recipe: Path) -> str:
    """A recipe's text, and that of what it includes."""
    text = recipe.read_text(encoding="utf-8")
    included = re.findall(r"^include '(.*)'", text, re.MULTILINE)
    return "\n".join([text, *(whole(shipped("gin_configs") / name) for name in included)])


PREFERRING = {"preferred_rpo"}
PARENTS = {
    "jmedllm_lora": "jmedllm_full",
    "mmedlm_finetune_lora": "mmedlm_finetune_full",
    "preferred_rpo": "jmedllm_full",
}


def trained(name: str, folder: Path, cache: str) -> Path:
    """Train a recipe's miniature; one that needs a start stands on the miniature of another recipe."""
    parent = str(trained(PARENTS[name], folder, cache)) if name in PARENTS else None
    places = [folder / name / Path(store).name for store in stores_of(RECIPES / f"{name}.gin")]
    kind = {"pairs": name in PREFERRING, "answers": "include 'sft.gin'" in whole(RECIPES / f"{name}.gin")}
    stores = tuple(str(tiny_runs.make_store(place, **kind)) for place in places)
    run = folder / name / "run"
    own = {"STORES": stores, "RUN_DIR": str(run), "train.compilation_cache": cache, "Start.checkpoint": parent}
    tiny = folder / f"{name}.gin"
    tiny.write_text(TINY + "".join(f"{key} = {value!r}\n" for key, value in own.items()))
    assert train.main([f"--gin_file=recipes/{name}.gin", f"--gin_file={tiny}"]) == 0
    return run


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("bench_8k", "smollm2_cpt")])
def test_a_recipe_trains(name: str, tmp_path: Path, cache: str) -> None:
    run = trained(name, tmp_path, cache)
    assert [line["step"] for line in tiny_runs.lines(run) if line["kind"] == "train"] == [1, 2]
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


@pytest.mark.full
def test_a_run_anneals_on_a_mixture_of_its_own(tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    """gin_configs/anneal.gin after cpt.gin: from half of the run on other weights and shares, the rate down to 0."""
    stores = stores_of(shipped("gin_configs") / "cpt.gin")
    made = tuple(str(tiny_runs.make_store(tmp_path / Path(store).name)) for store in stores)
    own = {"STORES": made, "RUN_DIR": str(tmp_path / "run"), "train.compilation_cache": cache}
    own |= {"Start.checkpoint": None, "Schedule.decay_fraction": 0.5}
    own |= {"annealing/Phase.from_tokens": 512}
    tiny = tmp_path / "tiny.gin"
    tiny.write_text(TINY + "".join(f"{key} = {value!r}\n" for key, value in own.items()))
    files = [f"--gin_file={file}" for file in ("cpt.gin", "anneal.gin", tiny)]
    assert train.main([*files, "--gin.Loop.steps=8"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    shares = (
        "medical_en 0.283, medical_ja 0.283, medical_zh 0.283, general_en 0.090, general_ja 0.030, general_zh 0.030"
    )
    assert f"from token 512 on: {shares}" in told
    lines = [line for line in tiny_runs.lines(tmp_path / "run") if line["kind"] == "train"]
    rates = [line["learning_rate"] for line in lines]
    assert rates[2] == rates[3] > rates[5] > rates[7] >= 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_where_its_numbers_come_from(name: str) -> None:
    """Each value has a comment beside it, or the heading of its file speaks for the values that it lists."""
    text = (RECIPES / f"{name}.gin").read_text(encoding="utf-8")
    assert text.startswith("# ")
    if "include" in text and name not in ("smollm2_cpt", "bench_8k"):
        assert stores_of(RECIPES / f"{name}.gin")
        numbers = [line for line in text.splitlines() if re.match(r"(Schedule|AdamW)\.\w+ = [\d.]", line)]
        bare = [line for line in numbers if "#" not in line and "0.0" not in line and "b2" not in line]
        assert not bare, f"no source and no word choice beside {bare}"
