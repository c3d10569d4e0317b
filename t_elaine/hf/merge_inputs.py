"""What a merge reads: run folders and Hugging Face folders as one kind of thing, checked before any work begins.

Nothing is merged or written here.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine import parentage, paths
from t_elaine.checkpoints import adapters, layout, reading
from t_elaine.errors import UserError
from t_elaine.hf import exporting, hub, importing, mapping, proof, run_import, side_files, tensors
from t_elaine.hf.importing import Source
from t_elaine.hf.mapping import HfTensor
from t_elaine.model.config import LlamaConfig

# How far a model may see and how random ones begin change no weight's meaning.
MAY_DIFFER = ("max_position", "initializer_range")


@dataclass(frozen=True, kw_only=True)
class Input:
    """A model to merge.

    Args:
        path: as it was given.
        where: the checkpoint's folder or the Hugging Face folder on this machine.
        origin: what it is: a hub name with its commit, or the path; an imported or trained run's own origin.
        fingerprint: sha256 over the sha256 of its weights files (and its base's, where it is adapters).
        config: its shape.
        source: its parameters.
        small: the folder that holds its licences, chat template and generation config.
        vocabulary: where its vocabulary is loaded from.
        facts: what is recorded of it besides (step, tokens, what it was merged from).
    """

    path: str
    where: str
    origin: str
    fingerprint: str
    config: LlamaConfig
    source: Source
    small: str
    vocabulary: str
    facts: dict[str, Any]

    @property
    def told(self) -> str:
        """Path and fingerprint, for messages."""
        return f"{self.path} ({self.fingerprint[:16]}…)"


def open_input(path: str) -> Input:
    """A run folder, RUN_DIR/checkpoints/STEP, a Hugging Face folder, or owner/name on the hub.

    Raises:
        UserError: there is no such model, a file of it is missing or damaged, or it is of a kind that is not read.
    """
    inside = paths.join(path, "config.json")
    is_run = paths.exists(path) and not paths.exists(inside)
    if is_run and not any(name.endswith((".safetensors", ".bin")) for name in paths.listing(path)):
        return _open_run(path)
    return _open_folder(path)


def _open_run(path: str) -> Input:
    run_dir, step = reading.resolve(path)
    where = layout.step_dir(run_dir, step)
    if faults := adapters.faults(run_dir, step):
        mend = "merge another checkpoint of this run, or copy or import it again"
        raise UserError(f"the checkpoint is damaged: {faults[0]}", where, mend)
    meta = reading.read_meta(run_dir, step)
    facts: dict[str, Any] = {"kind": "run", "step": step, "tokens": meta.tokens}
    if merged := side_files.merge_record(run_dir):
        facts["merged"] = merged
    return Input(
        path=path,
        where=where,
        origin=side_files.origin_record(run_dir) or meta.parent or "",
        fingerprint=adapters.fingerprint(run_dir, step),
        config=exporting.config_of(meta),
        source=proof.checkpoint_source(run_dir, step),
        small=parentage.folder(run_dir),
        vocabulary=paths.join(run_dir, "vocabulary"),
        facts=facts,
    )


def _open_folder(path: str) -> Input:
    folder, origin = run_import.find_model(path, None)
    config = importing.read_config(folder)
    proof.check_files(folder)
    infos = tensors.open_tensors(folder)
    importing.check_tensors(infos, config, folder)
    files = sorted({info.file for info in infos.values()})
    return Input(
        path=path,
        where=str(folder),
        origin=origin,
        fingerprint=fingerprint({file.name: paths.file_sha256(file) for file in files}),
        config=config,
        source=importing.hf_source(infos, config),
        small=str(folder),
        vocabulary=str(folder),
        facts={"kind": "hf"},
    )


def fingerprint(digests: dict[str, str]) -> str:
    """sha256 over the sha256 of each weights file, in the order of their names."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def check_alike(inputs: Sequence[Input]) -> None:
    """All have one shape, and no two are the same model.

    Raises:
        UserError: two models differ in what decides what their weights mean, or do not differ at all.
    """
    first = inputs[0]
    for other in inputs[1:]:
        ours, theirs = dataclasses.asdict(first.config), dataclasses.asdict(other.config)
        lines = [
            f"{name}: {ours[name]} there, {theirs[name]} here"
            for name in ours
            if ours[name] != theirs[name] and name not in MAY_DIFFER
        ]
        if lines:
            what = f"{other.told} is not of the shape of {first.told}: {'; '.join(lines)}"
            raise UserError(what, other.where, "merge models that were trained from one and the same parent")
    for place, one in enumerate(inputs):
        for other in inputs[place + 1 :]:
            if os.path.realpath(one.where) == os.path.realpath(other.where):
                what = f"the same model is given twice: {one.told} and {other.told}"
                raise UserError(what, other.where, "name each model once; a weight says how much it counts")
            if one.fingerprint == other.fingerprint or _same_weights(one, other):
                what = f"two models hold the same weights, bit for bit: {one.told} and {other.told}"
                raise UserError(what, other.where, "name each model once; a weight says how much it counts")


def _same_weights(one: Input, other: Input) -> bool:
    """Smallest tensors first: models that were trained differ in one of the first, so that little is read."""
    listed = sorted(mapping.hf_tensors(one.config), key=lambda tensor: int(np.prod(tensor.shape)))
    return all(
        np.array_equal(one.source(t.weight, t.layer, None), other.source(t.weight, t.layer, None)) for t in listed
    )


def getter(one: Input, tensor: HfTensor) -> Callable[[], np.ndarray]:
    """A function that reads one tensor in our layout, float32.

    Raises (when called):
        UserError: it holds NaN or an infinity.
    """

    def get() -> np.ndarray:
        values = one.source(tensor.weight, tensor.layer, None)
        if not np.isfinite(values).all():
            what = f"{tensor.name} of {one.told} holds NaN or an infinity"
            raise UserError(what, one.where, "leave this model out, or take an older checkpoint of it")
        return values

    return get


def name_of(one: Input) -> str:
    """What a card calls it: a hub name with its commit, of a folder the last part (and a trained run's step)."""
    path = one.path.rstrip("/")
    if one.facts["kind"] == "hf":
        return one.origin if hub.is_name(one.origin.partition("@")[0]) and "@" in one.origin else Path(path).name
    run = path.partition("/checkpoints/")[0].rpartition("/")[2]
    return f"{run}, step {one.facts['step']}" if one.facts["step"] else run


def licences(one: Input) -> list[str]:
    """The licence lines of its card."""
    return parentage.licence_lines_in(one.small)
