"""Tiny models of every supported family for the tests of this folder: config.json dictionaries and distinct tensors."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine.hf import mapping, run_import, tensors
from t_elaine.model import config as model_config
from t_elaine.parallel.mesh import MeshConfig

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED["original_max_position_embeddings"] = 64
FAMILIES: dict[str, dict[str, Any]] = {
    "llama3": BASE,
    "llama31": {**BASE, "rope_scaling": SCALED},
    "llama32_tied": {**BASE, "rope_scaling": {**SCALED, "factor": 32.0}, "tie_word_embeddings": True},
    "qwen2": {
        **{key: value for key, value in BASE.items() if key not in ("attention_bias", "mlp_bias")},
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": False,
    },
}


def distinct_values(shape: tuple[int, ...], seed: int, dtype: str = "float32") -> np.ndarray:
    """Random values, all different from those of any other seed with near certainty."""
    scale = 0.1 if len(shape) > 1 else 1.0
    values = np.random.default_rng(seed).normal(float(len(shape) == 1), scale, shape).astype(np.float32)
    return values.astype(tensors.DTYPES[tensors.TAGS[dtype]])


def write_model(folder: Path, family: str, dtype: str = "float32", shard_bytes: int = tensors.SHARD_BYTES) -> Path:
    """A Hugging Face folder (config.json and weights) of a tiny model; no two tensors hold the same values."""
    folder.mkdir(parents=True)
    config = model_config.from_hf(FAMILIES[family])
    listed = mapping.hf_tensors(config)
    seeds = {tensor.name: number for number, tensor in enumerate(listed)}
    shapes = {tensor.name: tensor.shape for tensor in listed}
    planned = [tensors.Planned(name=t.name, tag=tensors.TAGS[dtype], shape=t.shape) for t in listed]
    tensors.write_tensors(folder, planned, lambda n: distinct_values(shapes[n], seeds[n], dtype), shard_bytes)
    (folder / "config.json").write_text(json.dumps({**FAMILIES[family], "dtype": dtype}), encoding="utf-8")
    return folder


def encode(texts: list[str]) -> list[np.ndarray]:
    """A stand-in for a tokenizer of 320 ids: one id a UTF-8 byte, after the specials."""
    return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) + 10 for text in texts]


def save_vocabulary(folder: Path) -> None:
    """What a run folder's vocabulary/ holds, as far as import and export look into it."""
    record = {"kind": "huggingface", "sha256": VOCABULARY_SHA256, "size": 320, "bos": 1, "eos": 2, "pad": None}
    (folder / "vocabulary.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "tokenizer.json").write_text(TOKENIZER, encoding="utf-8")


TOKENIZER = '{"stand-in": true}'
VOCABULARY_SHA256 = hashlib.sha256(TOKENIZER.encode()).hexdigest()


def add_small_files(folder: Path) -> Path:
    """What comes with a model beside its weights."""
    texts = {
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": "{}",
        "generation_config.json": '{"temperature": 0.6}',
        "chat_template.jinja": "{{ messages }}",
        "LICENSE": "Parent's licence",
        "NOTICE.txt": "Parent's notice",
        "USE_POLICY.md": "Parent's policy",
        "README.md": "---\nlicense: llama3\nother: x\n---\nThe parent.",
        "training_args.bin": "a pickle that nobody may carry along",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def imported(folder: Path, to: Path, origin: str = "lab/parent@0123abc", **options: Any) -> Path:
    """Import a folder with the stand-in vocabulary, transformers left out."""
    vocabulary = run_import.ImportedVocabulary(
        sha256=VOCABULARY_SHA256, size=320, bos=1, encode=encode, save=save_vocabulary
    )
    run_import.import_model(folder, str(to), vocabulary, origin, MeshConfig(), **options)
    return to


def add_tokenizer(folder: Path, extra: int = 0) -> Path:
    """A real byte-level tokenizer.json of 259 ids (and `extra` more), with its config, for the commands themselves."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pieces = {"<pad>": 0, "<s>": 1, "</s>": 2} | {character: i for i, character in enumerate(alphabet, 3)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=pieces, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = tokenizers.decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>", *(f"<extra_{i}>" for i in range(extra))])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return folder


def whole_model(folder: Path, family: str = "llama3", **options: Any) -> Path:
    """A tiny model as a hub would have it: weights, config, a real tokenizer and all small files."""
    return add_tokenizer(add_small_files(write_model(folder, family, **options)))


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path → bytes of every file."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
