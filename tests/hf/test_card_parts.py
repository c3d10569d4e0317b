"""A card is whole or not written; it says the same in three languages; the parent's licence rules name and notices."""

import dataclasses
import json
import re
import string
from pathlib import Path
from typing import Any

import pytest

from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.errors import UserError
from t_elaine.hf import card, card_data, card_parts, card_rules
from t_elaine.hf.card_rules import Card
from tests.data.small_vocabularies import SAMPLE_VOCABULARY
from tests.evaluation.making import make_config

STEP = 6
CONFIG = make_config(load_vocabulary(SAMPLE_VOCABULARY))
FIGURE = {"value": 0.5, "low": 0.25, "high": 0.75}
SIDES = {"child": FIGURE, "parent": {"value": 0.625, "low": None, "high": None}, "difference": FIGURE}
SOURCE = {"name": "papers", "language": "en", "category": "textbook", "licence": "CC-BY-4.0", "private": False}
STORE = {
    "trained_on": [{"language": "en", "category": "textbook", "tokens": 900}],
    "sources": [{**SOURCE, "url": "https://a.example"}, {**SOURCE, "name": "5f1d", "url": "", "private": True}],
}
SEEN = {"known": True, "seen": 3, "half": 1, "unseen": 23, "scores": {"text": SIDES}, "items": {}, "base": ""}
EXAM = {"suite": "samples/en", "questions": 26, "chance": 0.2, "headline": "text", "scores": {"text": SIDES}}
RESULT: dict[str, Any] = {
    "models": {
        "child": {"path": "one", "kind": "run", "step": STEP},
        "parent": {"path": "/somewhere/parent", "kind": "run", "step": 0},
    },
    "bits_per_byte": [
        {"level": level, "language": "en", "documents": documents, **SIDES}
        for level, documents in (("language", 8), ("general", 7))
    ],
    "exams": [{**EXAM, "contamination": SEEN}],
}
ENTRY = {
    "file": "model-q8_0.gguf",
    "bytes": 143_042_208,
    "held_out": "validation split",
    "bits_per_byte": [{"level": "language", "language": "en", "difference": FIGURE}],
    "exams": [{"answers_changed": 2, "questions": 26}],
    "greedy": [{"ids": [1, 2, 3], "as_float": 2}],
}
PROOF: dict[str, Any] = {
    "checkpoint": {"run": "one"},
    "dtype": "float32",
    "prompts": {"en": 22, "ja": 22, "zh": 22, "tokens": 900},
    "tensors": {"count": 20, "differing": []},
    "logits": [{"ours": "importer", "theirs": "checkpoint", "largest": {"en": 1e-5, "ja": 2e-5, "zh": 3e-5}}],
    "gguf": {"q8_0": ENTRY},
}


def meta(step: int = STEP, parent: str | None = "/x/imported/checkpoints/0") -> CheckpointMeta:
    model = dataclasses.asdict(CONFIG)
    return CheckpointMeta(
        step=step, tokens=1536, row=0, vocabulary_sha256="v" * 64, model=model, config_hash="c", parent=parent
    )


def put(run: Path, name: str, content: Any) -> None:
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with everything that a whole card needs."""
    run = tmp_path / "one"
    put(run, "data.json", {"open": STORE})
    seen = {"open": {"tokens": 1536, "share": 1.0, "epochs": 1.7}}
    put(run, "mixture.json", {"step": STEP, "sources": seen})
    put(run, "config.gin", "AdamW.b1 = 0.9\n")
    put(run, "command.txt", "python -m t_elaine.train --gin_file=cpt.gin --gin_file='/x/recipes/mine.gin'\n")
    start = {"first_step": 0, "last_step": STEP, "devices": 8, "kind": "TPU v5 lite", "chip_hours": 2.5}
    put(run, "chip_hours.json", {"starts": [start], "chip_hours": 2.5})
    put(run, f"evaluation/step-{STEP}.json", RESULT)
    put(run, "parent/origin.json", {"origin": "lab/parent@0123abc"})
    put(run, "parent/README.md", "---\nlicense: apache-2.0\n---\n")
    put(run, "parent/LICENSE", "terms")
    return run


def written(run: Path, settings: Card | None = None, about: CheckpointMeta | None = None) -> tuple[Path, list[str]]:
    out = run.parent / "out"
    out.mkdir(exist_ok=True)
    found = card_parts.write(out, str(run), about or meta(), CONFIG, PROOF, settings or Card())
    return out, [lack.part for lack in found]


def test_a_whole_card_stands_in_three_languages_with_the_same_figures(run: Path) -> None:
    out, lacking = written(run)
    assert lacking == [] and sorted(path.name for path in out.iterdir()) == sorted(card.FILES.values())
    texts = {language: (out / name).read_text(encoding="utf-8") for language, name in card.FILES.items()}

    def figures(text: str) -> list[str]:
        return sorted(re.findall(r"\| [^|\n]*\d[^|\n]*(?= \|)", text.partition("# ")[2].replace("`", "")))

    assert figures(texts["en"]) == figures(texts["ja"]) == figures(texts["zh"]) and len(figures(texts["en"])) > 20
    for text in texts.values():
        for told in ("1,536", "CC-BY-4.0", "2.5", "8 × TPU v5 lite", "143.0", "lab/parent@0123abc", "AdamW.b1 = 0.9"):
            assert told in text
        assert "private (5f1d)" in text and "title = {5f1d}" not in text and "somewhere" not in text
        assert text.count("@misc{") == 3 and "recipe: cpt.gin, mine.gin" in text
    assert texts["en"].startswith("---\nmodel_name: ") and "base_model: lab/parent\n" in texts["en"]
    assert "license: apache-2.0\n" in texts["en"] and "- gguf\n" in texts["en"]
    assert "診断" in texts["ja"] and "诊断" in texts["zh"] and "diagnose" in texts["en"]


@pytest.mark.parametrize(
    ("gone", "part", "command"),
    [
        ("data.json", "training data with licences", "prepare"),
        ("mixture.json", "realised token shares", "train"),
        ("config.gin", "recipe", "train"),
        ("chip_hours.json", "chip-hours", "train"),
        ("parent/README.md", "licence", "Card.licence"),
    ],
)
def test_each_missing_part_is_named_with_what_makes_it(run: Path, gone: str, part: str, command: str) -> None:
    (run / gone).unlink()
    out, lacking = written(run)
    assert lacking == [part] and list(out.iterdir()) == []
    assert command in card_parts.told(card_parts.lacks(str(run), meta(), Card()))


def test_what_the_evaluation_lacks_is_told_apart(run: Path) -> None:
    file = f"evaluation/step-{STEP}.json"
    put(run, file, {**RESULT, "bits_per_byte": RESULT["bits_per_byte"][:1]})
    assert written(run)[1] == ["forgetting"]
    put(run, file, {**RESULT, "exams": [EXAM]})
    assert written(run)[1] == ["contamination"]
    put(run, file, {**RESULT, "exams": [{**EXAM, "contamination": {"known": False, "why": "not recorded"}}]})
    assert written(run)[1] == ["contamination"]
    put(run, file, {**RESULT, "exams": []})
    assert written(run)[1] == ["evaluation", "contamination"]
    (run / file).unlink()
    assert written(run)[1] == ["evaluation", "forgetting", "contamination"]
    (run / "parent/origin.json").unlink()
    put(run, file, {**RESULT, "bits_per_byte": []})
    out, lacking = written(run, Card(licence="mit"), meta(parent=None))
    assert lacking == [] and "nothing to forget" in (out / "README.md").read_text()


def test_a_draft_says_what_it_lacks_on_top_and_is_not_pushed_in_public(run: Path) -> None:
    (run / "chip_hours.json").unlink()
    out, lacking = written(run, Card(draft=True))
    assert lacking == ["chip-hours"]
    for name, word in zip(card.FILES.values(), ("Draft", "下書き", "草稿"), strict=True):
        first = (out / name).read_text(encoding="utf-8").partition("# ")[2].split("\n\n")[2]
        assert word in first and "chip-hours" in first
    with pytest.raises(UserError, match="lacks 1 parts:\n  chip-hours"):
        card_parts.check_push(str(run), meta(), Card(), "lab/one", False)
    with pytest.raises(UserError, match="lacks 1 parts"):
        card_parts.check_push(str(run), meta(), Card(draft=True), "lab/one", True)
    card_parts.check_push(str(run), meta(), Card(draft=True), "lab/one", False)


def test_a_model_that_was_not_trained_needs_only_its_parents_papers(run: Path) -> None:
    for path in (*run.glob("*.json"), run / "config.gin", *run.glob("evaluation/*")):
        path.unlink()
    assert written(run, about=meta(step=0))[1] == []
    put(run, "parent/origin.json", {"origin": "a folder"})
    assert written(run, about=meta(step=0))[1] == ["base_model"]
    assert written(run, Card(base_model="lab/parent"), meta(step=0))[1] == []


@pytest.mark.parametrize(
    ("licence", "refused", "allowed", "made"),
    [
        ("license: llama3", "Med-8B", "Llama-3-Med-8B", "# Llama 3 one"),
        ("license: other\nlicense_name: llama3.1", "Med Llama", "llama_3.1 med", "# Llama one"),
        ("license: apache-2.0", None, "Med", "# one"),
    ],
)
def test_the_parents_licence_rules_the_name(run: Path, licence: str, refused: str, allowed: str, made: str) -> None:
    put(run, "parent/README.md", f"---\n{licence}\n---\n")
    out, lacking = written(run)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert lacking == [] and made in text
    assert "**Built with" in text if refused else "Built with" not in text
    assert (out / "NOTICE").exists() == bool(refused)
    if refused:
        assert "All Rights Reserved" in (out / "NOTICE").read_text()
        with pytest.raises(UserError, match="asks that the model's name begins with"):
            card_parts.check(str(run), meta(), Card(name=refused), "one")
        with pytest.raises(UserError, match="asks that"):
            card_parts.check_push(str(run), meta(), Card(), f"lab/{refused.replace(' ', '-')}", False)
        (run / "parent/LICENSE").unlink()
        assert written(run)[1] == ["the text of the parent's licence"]
    assert card_parts.check(str(run), meta(), Card(name=allowed), "one") is not None


def test_what_to_cite(run: Path, tmp_path: Path) -> None:
    named = card_rules.citations(str(run), "meta-llama/Llama-3.1-8B@abc", Card())
    assert "2407.21783" in named[0] and "papers" in named[1] and "a.example" in named[1] and len(named) == 3
    own = "@article{own,\n  title = {Own}\n}"
    put(run, "parent/README.md", f"---\nlicense: mit\n---\nCite:\n```\n{own}\n```\n")
    assert card_rules.citations(str(run), "meta-llama/Llama-3.1-8B@abc", Card())[0] == own
    put(tmp_path, "more.bib", "@misc{more}")
    assert card_rules.citations(str(run), "", Card(bib=str(tmp_path / "more.bib")))[-1] == "@misc{more}"
    with pytest.raises(UserError, match="no such file of BibTeX"):
        card_rules.citations(str(run), "", Card(bib="nowhere.bib"))


def test_the_words_of_all_languages_have_the_same_places() -> None:
    """Or a figure would stand in one language alone."""

    def places(value: Any) -> Any:
        if isinstance(value, str):
            return sorted(name for _, name, _, _ in string.Formatter().parse(value) if name)
        if isinstance(value, dict):
            return {key: places(one) for key, one in value.items()}
        return [places(one) for one in value]

    english, *others = (places(card_data.words(language)) for language in card_data.LANGUAGES)
    assert all(other == english for other in others)
