"""The real run in miniature: a tiny random model and the shipped samples, through the same program from end to end."""

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs

from benchmarks import held_out, real_page, real_road
from t_elaine.data.store import open_store
from t_elaine.errors import UserError
from t_elaine.evaluation.bits_per_byte import documents

SAMPLES = Path(__file__).resolve().parents[2] / "data_tasks" / "samples"
# File of texts → (language, its part of that language's samples, categories in turn).
TEXTS = {
    "corpora/en/pubmedqa_abstracts": ("en", 0, ("PubMed abstract",)),
    "corpora/en/medquad_nih_web": ("en", 1, ("web text",)),
    "corpora/ja/wikipedia_medical_jaquad": ("ja", 0, ("web text",)),
    "corpora/ja/case_and_radiology_reports": ("ja", 1, ("scientific paper", "web text")),
    "corpora/zh/chinaxiv_medical_papers": ("zh", 0, ("scientific paper",)),
    "general_replay/en": ("en", 2, ("general",)),
    "general_replay/ja": ("ja", 2, ("general",)),
    "general_replay/zh": ("zh", 2, ("general",)),
}
MODEL: dict[str, Any] = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
MODEL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rope_theta": 10000.0}
MODEL |= {"max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
BINDINGS = (
    *(f"LlamaConfig.{name}={MODEL[hf]}" for name, hf in (("vocab_size", "vocab_size"), ("embed", "hidden_size"))),
    *("LlamaConfig.mlp=64", "LlamaConfig.layers=2", "LlamaConfig.q_heads=4", "LlamaConfig.kv_heads=2"),
    *("LlamaConfig.head_dim=8", "LlamaConfig.rope_theta=10000.0", "LlamaConfig.max_position=512"),
    *("Mixture.sequence_length=64", "Mixture.batch_tokens=256", "train.rows_per_device=4", "Schedule.peak=1e-2"),
    *("Loop.steps=300", "Loop.evaluate_every=100", "Loop.evaluate_tokens=2000", "Checkpointing.every=50"),
)


def samples(language: str) -> list[dict[str, Any]]:
    lines = (SAMPLES / language / "documents.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def make_texts(folder: Path) -> Path:
    """The shipped samples, dealt to the files that the public texts would be in."""
    for name, (language, part, categories) in TEXTS.items():
        rows = [
            {"id": row["id"], "text": row["text"], "category": categories[i % len(categories)]}
            for i, row in enumerate(samples(language)[part::3])
        ]
        target = folder / f"{name}.jsonl.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        target.write_bytes(gzip.compress(text.encode("utf-8")))
    return folder


def make_model(folder: Path) -> Path:
    """A random Llama with a byte-level tokenizer learnt from the samples."""
    import tokenizers
    import torch
    import transformers

    marks = ["<|endoftext|>", "<|begin|>", "<|end|>"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = tokenizers.decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=512, special_tokens=marks, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([row["text"] for name in ("en", "ja", "zh") for row in samples(name)], trainer)
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=marks[1], eos_token=marks[2])
    whole.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**MODEL, bos_token_id=1, eos_token_id=2, initializer_range=0.2)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def travelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[real_road.Road, dict[str, Any]]]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other on a busy machine take minutes over a model this small
    folder = tmp_path_factory.mktemp("road")
    road = real_road.Road(
        texts=make_texts(folder / "texts"),
        out=folder / "out",
        model=make_model(folder / "model"),
        kills=(50, 150),
        beyond=5,
        length=64,
        limit=6,
        tokens=300,
        bindings=BINDINGS,
        validation_share=0.4,
    )
    yield road, real_road.travel(road)
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_the_road_in_miniature(travelled: tuple[real_road.Road, dict[str, Any]]) -> None:
    road, facts = travelled
    assert [attempt["killed_after"] for attempt in facts["attempts"]] == [50, 150, None]
    assert all(attempt["from"] >= kill for attempt, kill in zip(facts["attempts"][1:], road.kills, strict=True))
    assert all(kill["twice"] == kill["equal"] for kill in facts["redone"])
    assert sum(kill["twice"] for kill in facts["redone"]) > 0
    assert sorted(real_road.train_lines(road.run / "metrics.jsonl")) == list(range(1, 301))
    rows = {(row["level"], row.get("language")): row for row in facts["evaluation"]["bits_per_byte"]}
    for language in ("en", "ja", "zh"):
        for level in ("language", "general"):
            assert rows[level, language]["child"]["value"] < rows[level, language]["parent"]["value"] - 0.2
    assert len(facts["proof"]) == 3 and all(line.endswith("passed") for line in facts["proof"])
    proof = json.loads(next(road.out.rglob("proof.json")).read_text(encoding="utf-8"))
    assert proof["tokenizer"]["begins"] == proof["tokenizer"]["trained"] == [] and proof["tokenizer"]["passed"]
    assert len(facts["reload"]) == 4
    for row in facts["reload"]:
        assert math.isclose(row["ours"], row["transformers"], rel_tol=1e-4)


@pytest.mark.slow
def test_the_page_says_what_the_files_say(travelled: tuple[real_road.Road, dict[str, Any]], tmp_path: Path) -> None:
    road, facts = travelled
    figure, page = tmp_path / "run.png", tmp_path / "page.md"
    real_page.draw(road.run / "metrics.jsonl", road.kills, figure)
    assert figure.read_bytes().startswith(b"\x89PNG") and figure.stat().st_size > 10_000
    text = real_page.section(facts, road.run, figure)
    english = next(row for row in facts["evaluation"]["bits_per_byte"] if row["level"] == "language")
    assert f"medical, English | {english['documents']} |" in text and f"{english['child']['value']:.3f} [" in text
    assert "300 updates" in text and "general, Chinese" in text and "](run.png)" in text
    assert "None" not in text and "nan" not in text
    real_page.put(page, text)
    real_page.put(page, text)
    assert page.read_text(encoding="utf-8").count("## The whole road") == 1


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Numbers\n", encoding="utf-8")
    with pytest.raises(UserError, match="no marks"):
        real_page.put(page, "text")
    assert page.read_text(encoding="utf-8") == "# Numbers\n"


def test_cut_documents_have_the_bytes_of_what_is_left(tmp_path: Path) -> None:
    store = tiny_runs.make_store(tmp_path / "whole", documents=80)
    lengths = np.load(store / "vocabulary" / "byte_lengths.npy")
    whole = documents(open_store(store), "validation", 6)
    cut = documents(open_store(held_out.cut_store(store, tmp_path / "cut", 6, 20)), "validation")
    assert [one.text_hash for one in cut] == [one.text_hash for one in whole]
    assert {len(one.tokens) > 20 for one in whole} == {True, False}
    for ours, theirs in zip(cut, whole, strict=True):
        np.testing.assert_array_equal(ours.tokens, theirs.tokens[:20])
        assert ours.bytes == lengths[ours.tokens].sum() and ours.group == theirs.group
