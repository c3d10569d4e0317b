"""The model card: sources, licences and shares are the stores', the parent is named, nothing of the machine is."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from t_elaine import feeding
from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.data.identity import Making
from t_elaine.data.mixture import Mixture
from t_elaine.data.rows import open_mixture
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.data.workers import prepare_stores
from t_elaine.hf import card, card_data, side_files
from tests.data.small_tasks import rows, source, task, write_rows
from tests.data.small_vocabularies import SAMPLE_VOCABULARY
from tests.evaluation.making import make_config

STEPS, BATCH = 6, 256
PROOF: dict[str, Any] = {
    "checkpoint": {"run": "one"},
    "dtype": "float32",
    "prompts": {"en": 22, "ja": 22, "zh": 22, "tokens": 900},
    "tensors": {"count": 20, "differing": []},
    "logits": [],
}
VALIDATION = {"kind": "validation", "step": STEPS, "language": {"ja": {"bits_per_byte": 1.25, "tokens": 321}}}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two prepared stores: one of two languages and licences, one of a source that is private."""
    folder = tmp_path_factory.mktemp("texts")
    english = source(write_rows(folder / "en.jsonl", rows(60)), "papers", licence="CC-BY-4.0", url="https://a.example")
    other = {"language": "ja", "category": "guideline", "licence": "CC-BY-SA-4.0", "url": "https://b.example/x|y"}
    japanese = source(write_rows(folder / "ja.jsonl", rows(40, "ja")), "shishin", **other)
    hidden = {"language": "zh", "category": "notes", "licence": "ward 3 only", "url": "ward 3", "private": True}
    private = source(write_rows(folder / "zh.jsonl", rows(30, "zh")), "ward-notes", **hidden)
    tasks = [task("open", english, japanese), task("closed", private)]
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    making = Making(validation_share=0.2, shards=1)
    prepare_stores(tasks, vocabulary, folder / "stores", making, workers=1, console=Console(file=io.StringIO()))
    return [folder / "stores" / one.name for one in tasks]


@pytest.fixture(scope="module")
def mixture(stores: list[Path]) -> Mixture:
    weights = {"open": 3.0, "closed": 1.0}
    return Mixture(stores=tuple(map(str, stores)), weights=weights, sequence_length=32, batch_tokens=BATCH)


@pytest.fixture
def run(tmp_path: Path, mixture: Mixture) -> Path:
    """What training leaves in a run folder of all that a card reads."""
    run = tmp_path / "one"
    run.mkdir()
    plan = open_mixture(mixture)
    (run / "data.json").write_text(json.dumps(feeding.data_record(mixture)))
    realised = {"step": STEPS} | plan.describe(STEPS * plan.rows_per_batch)
    (run / "mixture.json").write_text(json.dumps(realised))
    (run / "metrics.jsonl").write_text(json.dumps(VALIDATION) + "\n")
    return run


def meta(step: int = STEPS, parent: str | None = None) -> CheckpointMeta:
    model = dataclasses.asdict(make_config(load_vocabulary(SAMPLE_VOCABULARY)))
    sha = "v" * 64
    return CheckpointMeta(
        step=step, tokens=BATCH * step, row=0, vocabulary_sha256=sha, model=model, config_hash="c", parent=parent
    )


def rendered(run: Path, about: CheckpointMeta) -> str:
    config = make_config(load_vocabulary(SAMPLE_VOCABULARY))
    return card.model_card(str(run), about, config, PROOF)


def source_lines(text: str) -> dict[tuple[str, str], list[str]]:
    """(language, category) → cells of the line in the table of sources."""
    part = text.split("## Training data")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.split("\n") if line[:1] == "|"]
    return {(row[2], row[3]): row for row in cells[2:]}


def test_sources_are_those_of_the_stores(run: Path, stores: list[Path], mixture: Mixture) -> None:
    lines = source_lines(rendered(run, meta()))
    plan = open_mixture(mixture)
    realised = plan.describe(STEPS * plan.rows_per_batch)["sources"]
    total = 0
    for folder in stores:
        manifest = json.loads((folder / "manifest.json").read_text())
        train = [count for count in manifest["counts"] if count["split"] == "train"]
        seen = realised[manifest["name"]]
        for count in train:
            part = count["tokens"] / sum(c["tokens"] for c in train)
            name, _, _, _, tokens, share, passes, licence, _ = lines.pop((count["language"], count["category"]))
            stated = {s["licence"] for s in manifest["licences"].values()}
            assert name == manifest["name"] and (licence in stated or licence == "private")
            assert int(tokens.replace(",", "")) == round(part * seen["tokens"])
            assert share == f"{part * seen['share']:.2%}" and passes == f"{seen['epochs']:.2f}"
            total += int(tokens.replace(",", ""))
    assert not lines and abs(total - STEPS * BATCH) <= 3


def test_licences_and_addresses(run: Path) -> None:
    text = rendered(run, meta())
    lines = source_lines(text)
    assert lines["en", "textbook"][7:] == ["CC-BY-4.0", "https://a.example"]
    assert lines["ja", "guideline"][7:] == ["CC-BY-SA-4.0", r"https://b.example/x\|y"]
    assert "Licences of the texts, as whoever prepared them stated: CC-BY-4.0, CC-BY-SA-4.0, private." in text
    assert "trained on texts in en, ja, zh" in text and "- en\n- ja\n- zh" in text


def test_a_private_source_shows_no_name(run: Path) -> None:
    text = rendered(run, meta()) + (run / "data.json").read_text()
    assert "ward" not in text.replace(str(run), "") and "private (" in text


def test_an_earlier_checkpoint_saw_less(run: Path) -> None:
    whole, half = (source_lines(rendered(run, meta(step))) for step in (STEPS, STEPS // 2))
    for key, line in whole.items():
        assert abs(int(line[4].replace(",", "")) / 2 - int(half[key][4].replace(",", ""))) <= 1
    assert "in proportion for step 3" in rendered(run, meta(STEPS // 2))
    assert "| ja | 1.2500 | 321 |" in rendered(run, meta()) and "1.2500" not in rendered(run, meta(STEPS // 2))


def test_what_is_not_recorded_is_said(run: Path) -> None:
    text = rendered(run, meta())
    assert "first weights were random" in text and "had not been judged" in text
    record = json.loads((run / "data.json").read_text())
    old = {name: {key: store[key] for key in ("folder", "shards")} for name, store in record.items()}
    (run / "data.json").write_text(json.dumps(old))
    assert rendered(run, meta()).count(f"| {card_data.UNKNOWN} |") >= 2
    for name in ("data.json", "mixture.json", "metrics.jsonl"):
        (run / name).unlink()
    assert "No training data are recorded" in rendered(run, meta())


def test_parent_and_its_terms(run: Path) -> None:
    side_files.keep_origin(str(run), "lab/parent@0123abc")
    (run / "parent" / "LICENSE").write_text("terms")
    (run / "parent" / "README.md").write_text("---\nlicense: llama3\n---\n")
    text = rendered(run, meta(parent="/somewhere/secret/imported/checkpoints/0"))
    assert "base_model: lab/parent\n" in text and "`lab/parent@0123abc`, with its commit" in text
    assert "`license: llama3`" in text and "bind whoever uses them: LICENSE." in text
    assert "secret" not in text and "Between the two" not in text
    text = rendered(run, meta(parent="/somewhere/secret/first/checkpoints/40"))
    assert "the run `first`, up to step 40" in text and "secret" not in text
    (run / "parent" / "origin.json").unlink()
    assert "It started from `first`" in rendered(run, meta(parent="/somewhere/secret/first/checkpoints/40"))


def test_evaluations_of_this_step(run: Path) -> None:
    figure = {"value": 0.5, "low": 0.25, "high": 0.75}
    sides = {"child": figure, "parent": {"value": 1.5, "low": None, "high": None}, "difference": figure}
    models = {
        "child": {"path": str(run), "kind": "run", "step": STEPS},
        "parent": {"path": "/somewhere/secret/imported", "kind": "run", "step": 0},
    }
    exam = {"suite": "samples/en", "questions": 26, "chance": 0.2, "headline": "text", "scores": {"text": sides}}
    found = {
        "models": models,
        "bits_per_byte": [{"level": "language", "language": "ja", "documents": 8, **sides}],
        "exams": [exam],
    }
    (run / "evaluation").mkdir()
    (run / "evaluation" / f"step-{STEPS}.json").write_text(json.dumps(found))
    text = rendered(run, meta())
    assert "| ja | 8 | 0.500 [0.250, 0.750] | 1.500 | 0.500 [0.250, 0.750] |" in text and "`imported, step 0`" in text
    assert "| samples/en | 26 | 0.200 |" in text and "had not been judged" not in text and "secret" not in text
    assert "had not been judged" in rendered(run, meta(STEPS - 1))


def test_what_the_training_took_is_told(tmp_path: Path) -> None:
    starts = [
        {"first_step": 0, "last_step": 400, "devices": 256, "kind": "TPU v5 lite", "chip_hours": 90.0},
        {"first_step": 400, "last_step": 1000, "devices": 64, "kind": "TPU v6 lite", "chip_hours": 33.4},
    ]
    record = {"starts": starts, "chip_hours": 123.4, "money": 148.08, "price_per_chip_hour": 1.2}
    assert card_data.cost(str(tmp_path)) == ""
    (tmp_path / "chip_hours.json").write_text(json.dumps(record))
    kinds = "256 × TPU v5 lite, 64 × TPU v6 lite, in 2 starts"
    told = f"Training took 123 chip-hours up to step 1,000 ({kinds}), 148.08 at 1.2 each."
    assert card_data.cost(str(tmp_path)) == told
