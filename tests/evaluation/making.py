"""Small things to judge: a byte-level vocabulary, a random model as a run folder, a store with a held-out split."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tokenizers

from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.checkpoints.writing import save_params
from t_elaine.data.store import Labels, Row, ShardWriter, write_manifest
from t_elaine.data.vocabulary import Vocabulary, load_vocabulary, save_vocabulary
from t_elaine.model.config import LlamaConfig
from t_elaine.paths import file_sha256
from tests.random_params import random_params

TEXTS = {
    ("en", "textbook"): ["The heart has four chambers.", "Insulin lowers the glucose of the blood. " * 6],
    ("ja", "web text"): ["心臓には四つの部屋がある。", "インスリンは血糖を下げるホルモンである。" * 5],
    ("zh", "general"): ["心脏有四个腔室。", "胰岛素降低血糖。" * 9],
}


def make_vocabulary(folder: Path) -> Vocabulary:
    """A byte-level BPE with a few merges, <bos> and <eos>."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for group in TEXTS.values() for text in group], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return load_vocabulary(folder)


def make_config(vocabulary: Vocabulary) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary.size,
        embed=16,
        mlp=32,
        layers=2,
        q_heads=4,
        kv_heads=2,
        head_dim=4,
        max_position=256,
        initializer_range=0.2,
    )


def make_run(folder: Path, vocabulary: Vocabulary, seed: int = 0, step: int = 7) -> Path:
    """A random model as a run folder."""
    config = make_config(vocabulary)
    params = jax.device_put(random_params(config, seed))
    meta = CheckpointMeta(
        step=step,
        tokens=1000 * step,
        row=0,
        vocabulary_sha256=vocabulary.sha256,
        model=dataclasses.asdict(config),
        config_hash="0" * 64,
        has_optimizer=False,
    )
    save_params(str(folder), step, params, meta)
    save_vocabulary(vocabulary, folder / "vocabulary")
    return folder


def make_store(
    folder: Path,
    vocabulary: Vocabulary,
    texts: dict[tuple[str, str], Sequence[str]] | None = None,
    *,
    frame: bool = True,
    trained: Sequence[tuple[int, int]] | None = None,
) -> Path:
    """A store whose documents are all held out. frame: BOS and EOS around each; trained: spans of every document."""
    folder.mkdir(parents=True)
    texts = texts or TEXTS
    labels = Labels(
        languages=tuple(dict.fromkeys(a for a, _ in texts)),
        categories=tuple(dict.fromkeys(b for _, b in texts)),
        sources=("made",),
    )
    writer = ShardWriter(folder / "validation-00000-of-00001.arrow", labels, batch_tokens=64)
    flat = [(group, text) for group, members in texts.items() for text in members]
    for i, ((language, category), text) in enumerate(flat):
        ids = vocabulary.encode(text)
        tokens = np.concatenate([[vocabulary.bos], ids, [vocabulary.eos]]) if frame else ids
        writer.add(
            Row(
                tokens=tokens.astype(np.uint32),
                id=f"doc-{i}",
                language=language,
                category=category,
                source="made",
                bytes=len(text.encode()),
                text_hash=(i * 7919) % 101,
                trained=trained,
            )
        )
    path = writer.close()
    shard = {"file": path.name, "split": "validation", "size": path.stat().st_size, "sha256": file_sha256(path)}
    manifest = {
        "name": folder.name,
        "groups": [list(group) for group in texts],
        "vocabulary": vocabulary.describe(),
        "shards": [shard],
    }
    write_manifest(folder, manifest)
    save_vocabulary(vocabulary, folder / "vocabulary")
    return folder


def make_place(folder: Path) -> Path:
    """A child at step 7, a parent at step 0, and a store of held-out text, with one vocabulary."""
    vocabulary = make_vocabulary(folder / "vocabulary")
    make_run(folder / "child", vocabulary, seed=0, step=7)
    make_run(folder / "parent", vocabulary, seed=1, step=0)
    make_store(folder / "held", vocabulary)
    return folder
