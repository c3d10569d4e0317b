"""The proof of an export: that the files compute what the checkpoint computes.

Three claims, each from disk and a layer at a time: every tensor is bitwise the checkpoint's (rounded to the exported
dtype); logits through our importer are the checkpoint's (to within rounding, for bfloat16); logits of an independent
program that reads the exported folder by itself equal the importer's. Tolerances are fixed here. It changes no file.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine.checkpoints import adapters
from t_elaine.errors import UserError
from t_elaine.hf import importing, mapping, reference, tensors, walking
from t_elaine.hf.importing import Source
from t_elaine.model.config import LlamaConfig
from t_elaine.paths import file_sha256

NAME = "proof.json"
COLUMNS = 8192
LONGEST = 32
FEWEST_PROMPTS, FEWEST_LANGUAGES = 64, 3

# Logits of all prompts' tokens [tokens, stop - start] for a range of the vocabulary.
Logits = Callable[[int, int], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest accepted differences of logits.

    Args:
        same: of the importer's path against a checkpoint that was not rounded; absolute.
        independent: of another float32 program against the importer's path; a share of the largest logit (of 1, where
            that is smaller). Two sound float32 programs differ by 2e-5 of it on SmolLM2-135M, whose logits reach 37,
            and each of them by about as much from float64.
        rounding: of the exported model against the unrounded checkpoint: root mean square of the difference over that
            of the logits. Rounding to bfloat16 is what the user asked for; past this it is damage.
    """

    same: float
    independent: float
    rounding: float


TOLERANCES = {
    "float32": Tolerance(same=1e-4, independent=1e-4, rounding=1e-6),
    "bfloat16": Tolerance(same=np.inf, independent=1e-4, rounding=0.05),
}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids [T] of a prompt, and its language."""

    language: str
    ids: np.ndarray


def make_prompts(texts: dict[str, tuple[str, ...]], encode: Callable[[list[str]], list[np.ndarray]]) -> list[Prompt]:
    """The texts as prompts of at most 32 tokens."""
    return [
        Prompt(language=language, ids=np.asarray(ids[:LONGEST], np.int64))
        for language, group in texts.items()
        for ids in encode(list(group))
        if len(ids)
    ]


def checkpoint_source(run_dir: str, step: int) -> Source:
    """The parameters as a checkpoint holds them, adapters merged into their base."""
    read = adapters.whole_reader(run_dir, step)
    return lambda weight, layer, box: read(weight.path, layer, box)


def prove(
    folder: Path, checkpoint: Source, config: LlamaConfig, dtype: str, prompts: Sequence[Prompt], transformers: bool
) -> dict[str, Any]:
    """Compare an exported folder with the checkpoint it was made from.

    Args:
        folder: the exported files.
        checkpoint: the parameters that were exported.
        config: the model.
        dtype: "float32" or "bfloat16", as exported.
        prompts: at least 64, in three languages; fewer prove nothing and fail.
        transformers: run transformers too (the whole model in memory); the numpy reference always runs.

    Returns:
        what proof.json holds; `passed` says whether every claim holds.
    """
    languages = [prompt.language for prompt in prompts]
    counts = {language: languages.count(language) for language in dict.fromkeys(languages)}
    proof: dict[str, Any] = {
        "dtype": dtype,
        "prompts": {**counts, "tokens": sum(len(prompt.ids) for prompt in prompts)},
        "config_read_back_equal": importing.read_config(folder) == config,
        "tensors": compare_tensors(folder, checkpoint, config, dtype),
    }
    sound = proof["config_read_back_equal"] and not proof["tensors"]["differing"]
    enough = len(prompts) >= FEWEST_PROMPTS and len(counts) >= FEWEST_LANGUAGES
    proof["logits"] = (
        compare_logits(folder, checkpoint, config, dtype, prompts, transformers) if sound and enough else []
    )
    proof["files"] = {path.name: file_sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    # `passed` is what other programs read; the second name says what it speaks of, beside the tokenizer's own verdict.
    proof["passed"] = sound and enough and all(entry["passed"] for entry in proof["logits"])
    proof["weights_and_logits_passed"] = proof["passed"]
    return proof


def check_files(folder: Path) -> bool:
    """Compare a folder's weights with the digests that its proof.json holds, if it has one that holds any.

    Returns:
        whether there was something to compare with.

    Raises:
        UserError: a file differs, or there are others than those that were proven.
    """
    try:
        read = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError as problem:
        mend = f"export the model again, or remove {NAME} if the weights are meant to be without it"
        raise UserError(f"{NAME} cannot be read ({problem!r})", str(folder / NAME), mend) from problem
    recorded = read.get("files") if isinstance(read, dict) else None
    if not isinstance(recorded, dict):  # someone else's file of that name
        return False
    mend = f"copy or export the folder again; if the weights were changed on purpose, remove {NAME}"
    found = {path.name for path in folder.glob("*.safetensors")}
    if found != set(recorded):
        told = [f"{name} is missing" for name in sorted(set(recorded) - found)]
        told += [f"{name} is not among them" for name in sorted(found - set(recorded))]
        raise UserError(f"the weights are not the files that {NAME} proves: {told[0]}", str(folder), mend)
    for name, expected in recorded.items():
        if (digest := file_sha256(folder / name)) != expected:
            what = f"{name} is damaged or was changed: its sha256 is {digest}, {NAME} has {expected}"
            raise UserError(what, str(folder / name), mend)
    return True


def compare_tensors(folder: Path, checkpoint: Source, config: LlamaConfig, dtype: str) -> dict[str, Any]:
    """Every tensor of the folder, in the importer's layout, bitwise against the checkpoint's rounded to `dtype`."""
    infos = tensors.open_tensors(folder)
    importing.check_tensors(infos, config, folder)
    target = tensors.DTYPES[tensors.TAGS[dtype]]
    differing = []
    for tensor in mapping.hf_tensors(config):
        info = infos[tensor.name]
        theirs = mapping.from_hf(tensor.weight, config, partial(tensors.read, info))
        ours = checkpoint(tensor.weight, tensor.layer, None)
        if theirs.dtype != target or not _bitwise_equal(ours, theirs):
            differing.append(tensor.name)
    return {"count": len(infos), "bytes": sum(info.nbytes for info in infos.values()), "differing": differing}


def _bitwise_equal(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Block by block, so that no third copy of the tensor exists. As integers: -0.0 is not 0.0, a NaN equals itself."""
    bits = np.dtype(f"u{theirs.itemsize}")
    step = max(1, tensors.BLOCK_BYTES * len(ours) // ours.nbytes)
    for start in range(0, len(ours), step):
        one = np.ascontiguousarray(ours[start : start + step].astype(theirs.dtype, copy=False))
        other = np.ascontiguousarray(theirs[start : start + step])
        if one.shape != other.shape or not np.array_equal(one.view(bits), other.view(bits)):
            return False
    return ours.shape == theirs.shape


def compare_logits(
    folder: Path, checkpoint: Source, config: LlamaConfig, dtype: str, prompts: Sequence[Prompt], transformers: bool
) -> list[dict[str, Any]]:
    """Largest differences of logits by language, for each pair of computations; the first tensor of a pair is ours."""
    limit = TOLERANCES[dtype]
    rows = [prompt.ids for prompt in prompts]
    exported = importing.hf_source(tensors.open_tensors(folder), config)
    compare = partial(
        measure, languages=[prompt.language for prompt in prompts for _ in prompt.ids], size=config.vocab_size
    )
    x_ND = walking.hidden(config, exported, rows)

    def through_importer() -> Logits:
        return _logits(x_ND, walking.head_reader(config, exported, at_once=False))

    entries = []
    y_ND = walking.hidden(config, checkpoint, rows)
    unrounded = _logits(y_ND, walking.head_reader(config, checkpoint, at_once=True))
    found = compare(through_importer(), unrounded, absolute=limit.same, relative=limit.rounding)
    entries.append({"ours": "importer", "theirs": "checkpoint", **found})
    del unrounded
    model = reference.NumpyModel(folder)
    z_ND = model.hidden(rows)
    independent = _logits(z_ND, model.head_columns)
    entries.append(
        {"ours": "importer", "theirs": model.name, **compare(through_importer(), independent, scaled=limit.independent)}
    )
    if transformers:
        name, run = reference.transformers_logits(folder)
        whole = np.concatenate([part for start in range(0, len(rows), 8) for part in run(rows[start : start + 8])])
        found = compare(through_importer(), lambda start, stop: whole[:, start:stop], scaled=limit.independent)
        entries.append({"ours": "importer", "theirs": name, **found})
    return entries


def _logits(x_ND: np.ndarray, columns: Callable[[int, int], np.ndarray]) -> Logits:
    return lambda start, stop: x_ND @ columns(start, stop)


def measure(
    ours: Logits,
    theirs: Logits,
    languages: Sequence[str],
    size: int,
    absolute: float = np.inf,
    scaled: float = np.inf,
    relative: float = np.inf,
) -> dict[str, Any]:
    """Differences between two computations of the logits [tokens, size].

    Args:
        ours: columns of the one.
        theirs: columns of the other.
        languages: of each token.
        size: of the vocabulary.
        absolute: largest difference that passes.
        scaled: the same, as a share of the largest logit of `theirs` (of 1, where that is smaller).
        relative: largest root mean square of the difference, over that of `theirs`, that passes.
    """
    names = list(dict.fromkeys(languages))
    member = np.array([names.index(language) for language in languages])
    largest, squares, scale = np.zeros(len(names)), np.zeros(len(names)), np.zeros(len(names))
    top = 0.0
    for start in range(0, size, COLUMNS):
        b_Nv = theirs(start, min(start + COLUMNS, size))
        difference_Nv = np.abs(ours(start, min(start + COLUMNS, size)) - b_Nv)
        top = max(top, float(np.abs(b_Nv).max()))
        # A NaN must not pass: comparisons below are written so that it fails them.
        np.maximum.at(largest, member, difference_Nv.max(axis=1))
        np.add.at(squares, member, np.square(difference_Nv, dtype=np.float64).sum(axis=1))
        np.add.at(scale, member, np.square(b_Nv, dtype=np.float64).sum(axis=1))
    ratio = np.sqrt(squares / scale)
    limit = {"largest": min(absolute, scaled * max(top, 1.0)), "relative_rms": relative}
    return {
        "largest": dict(zip(names, largest.tolist(), strict=True)),
        "relative_rms": dict(zip(names, ratio.tolist(), strict=True)),
        "largest_logit": top,
        "limit": {name: value for name, value in limit.items() if value < np.inf},
        "passed": bool(np.all(largest <= limit["largest"]) and np.all(ratio <= relative)),
    }
