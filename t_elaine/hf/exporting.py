"""A checkpoint → a Hugging Face folder: streamed, completed with its small files, proven, and only then given its name.

Memory: blocks of 8 MB from a local disk, two Hugging Face tensors from an object store, and 500 MB. Everything is
written beside the target under a hidden name; a kill at any moment leaves an older export whole. It trains nothing and
asks no tokenizer library; ids come from a function.
"""

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine import columns, paths
from t_elaine.checkpoints import adapters, reading
from t_elaine.checkpoints.layout import CheckpointMeta, step_dir
from t_elaine.errors import UserError
from t_elaine.faults import fault_point
from t_elaine.hf import (
    averaged,
    card_parts,
    chat_files,
    folders,
    growing,
    lm_eval_files,
    mapping,
    proof,
    reference,
    side_files,
    tensors,
    tokenizer_check,
)
from t_elaine.hf.card_rules import Card
from t_elaine.hf.chat_files import ChatTemplate
from t_elaine.hf.importing import Source
from t_elaine.hf.prompts import PROMPTS
from t_elaine.model.config import LlamaConfig, RopeScaling, to_hf

# Names of the tokenizer's files that are there, ids before every training document → the files that lack, by name.
TokenizerFiles = Callable[[Collection[str], Sequence[int]], dict[str, str]]
Beside = Callable[[Path], dict[str, Any]]  # a proven folder that has no name yet → entries of its proof.json
READ_BYTES = 8 << 20  # of a tensor at once, where the checkpoint lies on a local disk


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export did: where it lies, its proof, and seconds by phase (digests, stream, proof)."""

    folder: str
    proof: dict[str, Any]
    seconds: dict[str, float]


def export_checkpoint(
    checkpoint: str,
    to: str,
    encode: Callable[[list[str]], list[np.ndarray]],
    dtype: str = "float32",
    overwrite: bool = False,
    shard_bytes: int = tensors.SHARD_BYTES,
    transformers: bool | None = None,
    tokenizer_files: TokenizerFiles = lambda present, before: {},
    beside: Beside = lambda folder: {},
    beside_bytes: int = 0,
    card: Card | None = None,
    average: bool = False,
    template: ChatTemplate | None = None,
    say: Callable[[str], None] = print,
) -> Exported:
    """Write a checkpoint's parameters as a Hugging Face folder, and prove it.

    Args:
        checkpoint: RUN_DIR (its newest complete checkpoint) or RUN_DIR/checkpoints/STEP.
        to: the folder to make.
        encode: texts → ids, by the vocabulary that the checkpoint was trained with.
        dtype: "float32" (bitwise the checkpoint) or "bfloat16" (rounded to nearest even).
        overwrite: replace `to` if it is there; it stays until the new one is proven.
        shard_bytes: a weights file holds no more than this, unless one tensor does.
        transformers: prove through transformers too; None: where it is installed and the model fits into memory.
        tokenizer_files: makes the files that transformers needs beside the run's vocabulary.
        beside: writes further files into the proven folder (GGUF); what it returns stands in proof.json.
        beside_bytes: what these take on the disk.
        card: what the model card says that no run records; a card that lacks a part is not written (card_parts.py).
        average: write the running average of the weights (`AdamW.average`) instead of the weights.
        template: of the conversations that the run was trained on; None: the tokenizer's own, if any, goes along.
        say: takes lines of progress.

    Raises:
        UserError: no such checkpoint, a damaged one, a target that is there, a full disk, a proof that fails.
    """
    if dtype not in tensors.TAGS:
        raise UserError(f"dtype is {dtype!r}", "export", f"give one of {', '.join(tensors.TAGS)}")
    run_dir, step = reading.resolve(checkpoint)
    meta = reading.read_meta(run_dir, step)
    read = averaged.average_source if average else proof.checkpoint_source
    config, source = config_of(meta), read(run_dir, step)
    if (size := side_files.true_size(run_dir)) is not None:
        config, source = dataclasses.replace(config, vocab_size=size), growing.at_true_size(source, size)
    check_vocabulary(run_dir, meta, config)
    card_parts.check(run_dir, meta, card or Card(), os.path.basename(run_dir.rstrip("/")))
    with _target(to, overwrite, _planned_bytes(config, dtype) + beside_bytes) as folder:
        seconds = {"digests": _timed(lambda: check_digests(run_dir, step))}
        local = not paths.is_remote(run_dir)
        fault_point("export.before_write")
        seconds["stream"] = _timed(lambda: write_weights(folder, source, config, dtype, shard_bytes, local))
        write_side_files(folder, run_dir, meta, config, dtype, tokenizer_files)
        if template is not None:
            chat_files.write(folder, template)
        lm_eval_files.write(folder)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        say(f"wrote {size / 1e9:.3f} GB in {seconds['stream']:.1f} s; proving it")
        prompts = proof.make_prompts(PROMPTS, encode)
        check_ids(prompts, config)
        parameters = _planned_bytes(config, "float32") // 4
        lack = reference.transformers_lack(parameters) if transformers is None else ""
        use = not lack if transformers is None else transformers
        started = time.monotonic()
        found = proof.prove(folder, source, config, dtype, prompts, use)
        if lack:
            found["not_compared"] = {"transformers": lack}
        found["tokenizer"] = compare_tokenizer(folder, run_dir, encode) if transformers is not False else None
        if template is not None:
            compares = transformers is not False and tokenizer_check.is_possible()
            found["chat_template"] = chat_files.compare(folder, template) if compares else {"name": template.name}
        seconds["proof"] = time.monotonic() - started
        found |= {"checkpoint": _described(run_dir, meta), "seconds": {k: round(v, 2) for k, v in seconds.items()}}
        found |= {"average": True} if average else {}
        for line in summary(found):
            say(columns.wrapped(line))
        if not found["passed"]:
            raise _unproven(found, to)
        found |= beside(folder)
        _write_json(folder / "proof.json", found)
        lacking = card_parts.write(folder, run_dir, meta, config, found, card or Card())
        if lacking:
            drafted = card is not None and card.draft
            say(f"the model card {'is a draft' if drafted else 'is not written'}, since it lacks:")
            say(card_parts.told(lacking))
    return Exported(folder=to, proof=found, seconds=seconds)


def config_of(meta: CheckpointMeta) -> LlamaConfig:
    """The model's shape from a checkpoint's record."""
    fields = dict(meta.model)
    if fields.get("rope_scaling"):
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    return LlamaConfig(**fields)


def check_vocabulary(run_dir: str, meta: CheckpointMeta, config: LlamaConfig) -> None:
    """The run's vocabulary is the one that the checkpoint was trained with, and its ids fit the embedding."""
    record = side_files.vocabulary_record(run_dir)
    where = paths.join(run_dir, "vocabulary")
    if not record:
        raise UserError("the run has no vocabulary", where, "copy the vocabulary/ of its store or parent there")
    if record["sha256"] != meta.vocabulary_sha256:
        what = f"the vocabulary has sha256 {record['sha256']}, the checkpoint was trained with {meta.vocabulary_sha256}"
        raise UserError(what, where, "put the vocabulary back that the run was made with")
    if record["size"] > config.vocab_size:
        what = f"the vocabulary has {record['size']} ids, the model's embedding {config.vocab_size} rows"
        raise UserError(what, where, "this tokenizer is not the model's: give the model's own")


def check_ids(prompts: list[proof.Prompt], config: LlamaConfig) -> None:
    """No prompt has an id that the embedding lacks."""
    largest = max((int(prompt.ids.max()) for prompt in prompts), default=0)
    if largest >= config.vocab_size:
        what = f"the vocabulary gives id {largest}, the model's embedding has {config.vocab_size} rows"
        raise UserError(what, "vocabulary/", "this tokenizer is not the model's: give the model's own")


def check_digests(run_dir: str, step: int) -> None:
    """The checkpoint's files are what was written.

    Raises:
        UserError: a file is damaged or missing.
    """
    if faults := adapters.faults(run_dir, step):
        raise UserError(
            f"the checkpoint is damaged: {faults[0]}", step_dir(run_dir, step), "export another checkpoint of this run"
        )


def write_weights(
    folder: Path, source: Source, config: LlamaConfig, dtype: str, shard_bytes: int, in_blocks: bool = True
) -> None:
    """Stream every tensor into safetensors files (and an index, where there is more than one).

    Args:
        folder: to write into.
        source: the parameters.
        config: the model.
        dtype: "float32" or "bfloat16".
        shard_bytes: a file holds no more than this, unless one tensor does.
        in_blocks: read a tensor in runs of rows; False for sources that would read the whole again for each.
    """
    listed = {tensor.name: tensor for tensor in mapping.hf_tensors(config)}

    def produce(name: str) -> Iterator[np.ndarray]:
        fault_point("export.mid_write")
        weight, layer = listed[name].weight, listed[name].layer
        for box in mapping.row_boxes(weight, config, READ_BYTES) if in_blocks else [None]:
            yield mapping.to_hf(weight, source(weight, layer, box))

    tensors.write_tensors(folder, _planned(config, dtype), produce, shard_bytes, reading_ahead=in_blocks)


def write_side_files(
    folder: Path, run_dir: str, meta: CheckpointMeta, config: LlamaConfig, dtype: str, tokenizer_files: TokenizerFiles
) -> None:
    """config.json (RoPE in both spellings, token ids), generation_config.json, tokenizer, chat template, licence."""
    present = side_files.write_beside(run_dir, folder, meta.vocabulary_sha256)
    if set(side_files.VOCABULARY_FILES) & set(present):
        for name, text in tokenizer_files(present, side_files.begins(run_dir)).items():
            (folder / name).write_text(text, encoding="utf-8")
    parent, record = side_files.parent_config(run_dir), side_files.vocabulary_record(run_dir)
    ids = {f"{name}_token_id": parent.get(f"{name}_token_id", record.get(name)) for name in ("bos", "eos", "pad")}
    ids = {name: value for name, value in ids.items() if value is not None}
    _write_json(folder / "config.json", {**to_hf(config, dtype), **ids})
    if not (folder / "generation_config.json").exists():
        _write_json(folder / "generation_config.json", ids)


def compare_tokenizer(
    folder: Path, run_dir: str, encode: Callable[[list[str]], list[np.ndarray]]
) -> dict[str, Any] | None:
    """What transformers makes of text, beside the run's vocabulary; None where transformers is not installed."""
    if not tokenizer_check.is_possible():
        return None
    texts = [text for group in PROMPTS.values() for text in group]
    return tokenizer_check.compare(folder, encode, side_files.begins(run_dir), texts)


def summary(found: dict[str, Any]) -> list[str]:
    """The proof in lines for a terminal."""
    pieces = found["tensors"]
    differing = (
        f", {len(pieces['differing'])} differ: {', '.join(pieces['differing'][:3])}" if pieces["differing"] else ""
    )
    lines = [f"tensors: {pieces['count']}, each bitwise the checkpoint's as {found['dtype']}{differing}"]
    if differing:
        lines = [f"tensors: {pieces['count']}{differing}"]
    for entry in found["logits"]:
        largest = ", ".join(f"{language} {value:.2e}" for language, value in entry["largest"].items())
        verdict = "passed" if entry["passed"] else "FAILED"
        lines.append(f"logits, {entry['ours']} against {entry['theirs']}: largest difference {largest}; {verdict}")
    lines += [f"logits, not compared through {name}: {lack}" for name, lack in found.get("not_compared", {}).items()]
    if found.get("tokenizer"):
        lines.append(tokenizer_check.summary(found["tokenizer"]))
    if found.get("chat_template"):
        lines.append(chat_files.summary(found["chat_template"]))
    return lines


def _planned(config: LlamaConfig, dtype: str) -> list[tensors.Planned]:
    return [tensors.Planned(name=t.name, tag=tensors.TAGS[dtype], shape=t.shape) for t in mapping.hf_tensors(config)]


def _planned_bytes(config: LlamaConfig, dtype: str) -> int:
    return sum(tensor.nbytes for tensor in _planned(config, dtype))


def _described(run_dir: str, meta: CheckpointMeta) -> dict[str, Any]:
    return {
        "run": os.path.basename(run_dir.rstrip("/")),
        "step": meta.step,
        "tokens": meta.tokens,
        "config_hash": meta.config_hash,
        "vocabulary_sha256": meta.vocabulary_sha256,
    }


def _timed(action: Callable[[], None]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _unproven(found: dict[str, Any], to: str) -> UserError:
    """The proof that failed is kept beside the target, the weights are not."""
    kept = f"{to.rstrip('/')}.unproven.json"
    paths.write_text(kept, json.dumps(found, ensure_ascii=False, indent=2) + "\n")
    return UserError(
        "the exported files do not compute what the checkpoint computes; nothing was left under the final name",
        kept,
        "do not use this checkpoint's weights elsewhere; report the proof that was kept here",
    )


@contextmanager
def _target(to: str, overwrite: bool, needed: int) -> Iterator[Path]:
    """A local folder to build in. An object store gets its files when all is well, proof.json last."""
    if not paths.is_remote(to):
        with folders.new_folder(to, overwrite, needed, "export") as building:
            yield building
        return
    folders.refuse_existing(paths.exists(paths.join(to, "proof.json")), to, overwrite)
    with tempfile.TemporaryDirectory(prefix="export-") as temporary:
        yield Path(temporary)
        if paths.exists(paths.join(to, "proof.json")):  # an older export is whole no longer
            paths.remove(paths.join(to, "proof.json"))
        folders.copy_into(Path(temporary), to, last="proof.json")
