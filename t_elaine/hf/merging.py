"""Several models → one run folder, a tensor at a time: checkpoints/0, vocabulary/, parent/ with merge.json, probe.json.

The folder appears whole or not at all. The arithmetic is `merge_methods.py`'s, what is merged `merge_inputs.py`'s.
Memory: the models' own of one tensor each, and about as many again; a run folder is written layer by layer.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine import __version__, parentage, paths
from t_elaine.checkpoints.produced import Produced
from t_elaine.checkpoints.writing import save_params
from t_elaine.errors import UserError
from t_elaine.faults import fault_point
from t_elaine.hf import folders, mapping, merge_inputs, merge_methods, probe, proof, reference, run_import, side_files
from t_elaine.hf.importing import Source
from t_elaine.hf.mapping import HfTensor, Weight
from t_elaine.hf.merge_inputs import Input
from t_elaine.hf.merge_methods import Merging
from t_elaine.hf.run_import import ImportedVocabulary
from t_elaine.model.config import LlamaConfig, to_hf


@dataclass(frozen=True, kw_only=True)
class Merge:
    """What is merged and how.

    Args:
        base: the model that differences are taken from (slerp: t = 0); None: none.
        models: the others, in the order of their weights.
        carrier: whose tokenizer, chat template and generation config the result has.
        how: settled for these models.
    """

    base: Input | None
    models: tuple[Input, ...]
    carrier: Input
    how: Merging

    @property
    def inputs(self) -> tuple[Input, ...]:
        """All models, the base first."""
        return (*([self.base] if self.base else []), *self.models)


def check_roles(method: str, base: str, models: Sequence[str]) -> None:
    """Refuse a number of models, or a base, that the method has no use for; nothing is opened.

    Raises:
        UserError: which is missing or too many.
    """
    if method not in merge_methods.METHODS:
        return  # `merge_methods.settled` says what there is
    where = f"merge.method = {method!r}"
    if method in merge_methods.ON_DIFFERENCES:
        if not base:
            raise UserError("there is no base to take differences from", where, "give --base=, the models' parent")
        if not models:
            raise UserError("there is no model to merge into the base", where, "give --models=A,B")
    elif method == "slerp" and len(models) + bool(base) != 2:
        what = f"slerp goes from one model to another, {len(models) + bool(base)} are given"
        raise UserError(what, where, "give --models=A,B, or --base=A --models=B")
    elif method == "linear" and base:
        raise UserError("linear knows no base", where, "name it among --models, with its weight")
    elif method == "linear" and len(models) < 2:
        raise UserError(f"{len(models)} model is given, and none to merge with", where, "give --models=A,B")


def merge_models(
    merge: Merge,
    to: str,
    vocabulary: ImportedVocabulary,
    commit: str | None = None,
    overwrite: bool = False,
    untrained: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Merge into a run folder.

    Args:
        merge: models that `merge_inputs.check_alike` has passed.
        to: the run folder to make; local.
        vocabulary: the carrier's.
        commit: of this program, for the record.
        overwrite: replace `to` if it is there.
        untrained: accept a result that guessing would beat.
        say: takes lines of progress.

    Raises:
        UserError: a tensor with NaN, a target that is there, a full disk, a result worse than guessing.
    """
    config = merge.carrier.config
    if vocabulary.size > config.vocab_size:
        what = f"the tokenizer has {vocabulary.size} ids, the models' embedding {config.vocab_size} rows"
        raise UserError(what, merge.carrier.vocabulary, "take the tokenizer of another of the models (--carrier=)")
    title = f"merge ({merge.how.method}) of {', '.join(merge_inputs.name_of(one) for one in merge.inputs)}"
    origin = title.replace("/", " ")  # of an origin with slashes only the last part is shown
    with folders.new_folder(to, overwrite, 4 * mapping.parameters(config), "merge") as building:
        run_dir = str(building)
        write_small_files(merge, run_dir, vocabulary, origin, commit)
        fault_point("merge.before_save")
        save_params(run_dir, 0, merged_params(merge, config), run_import.first_meta(config, vocabulary, origin))
        loss, by = probe_loss(run_dir, config, vocabulary)
        say(f"loss of the probe: {loss:.4f} nats a token ({by})")
        if not untrained:
            _check_loss(loss, config, to)
    say(f"{title}: {len(mapping.hf_tensors(config))} tensors in {to}")


def merged_params(merge: Merge, config: LlamaConfig) -> dict[str, Any]:
    """The tree of parameters, each made when it is written."""
    listed = {(tensor.weight.path, tensor.layer): tensor for tensor in mapping.hf_tensors(config)}
    tree: dict[str, Any] = {}
    for weight in mapping.weights(config):
        *parents, last = weight.path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        one = mapping.our_shape(weight, config)
        shape = (config.layers, *one) if weight.stacked else one
        make = partial(_merged_tensor, merge, config, listed, weight)
        node[last] = Produced(shape=shape, make=make, stacked=weight.stacked)
    return tree


def _merged_tensor(
    merge: Merge,
    config: LlamaConfig,
    listed: dict[tuple[str, int | None], HfTensor],
    weight: Weight,
    layer: int | None,
) -> np.ndarray:
    tensor = listed[weight.path, layer]
    fault_point("merge.mid_save")
    how = merge_methods.for_layer(merge.how, layer, config.layers)
    base = merge_inputs.getter(merge.base, tensor) if merge.base else None
    models = [merge_inputs.getter(model, tensor) for model in merge.models]
    values = merge_methods.merge(how, tensor.name, base, models)
    if not np.isfinite(values).all():
        what = f"the merged {tensor.name} is not finite, though the models' are"
        raise UserError(what, "merge", "give smaller weights: numbers grew past float32")
    return values


def write_small_files(
    merge: Merge, run_dir: str, vocabulary: ImportedVocabulary, origin: str, commit: str | None
) -> None:
    """vocabulary/ and parent/: the carrier's files, everybody's licences, origin.json and merge.json."""
    with tempfile.TemporaryDirectory(prefix="merge-") as temporary:
        vocabulary.save(Path(temporary))
        folders.copy_into(Path(temporary), paths.join(run_dir, "vocabulary"), last="vocabulary.json")
    there = parentage.folder(run_dir)
    paths.make_folder(there)
    for name in side_files.carried(paths.listing(merge.carrier.small)):
        _copy(paths.join(merge.carrier.small, name), Path(there, name))
    others = [one for one in merge.inputs if one is not merge.carrier]
    for number, one in enumerate(others, 2):
        for name in filter(parentage.is_legal, paths.listing(one.small)):
            _copy_beside(paths.join(one.small, name), Path(there), name, number)
    side_files.keep_origin(run_dir, origin)
    text = json.dumps(record(merge, commit), indent=1, ensure_ascii=False)
    paths.write_text(paths.join(there, parentage.MERGE), text + "\n")


def _copy(source: str, target: Path) -> None:
    with paths.open_file(source) as incoming:
        target.write_bytes(incoming.read(side_files.LARGEST))


def _copy_beside(source: str, folder: Path, name: str, number: int) -> None:
    """Another model's licence, under its own name unless a different file has that."""
    target = folder / name
    if target.exists() and paths.file_sha256(target) == paths.file_sha256(source):
        return
    _copy(source, target if not target.exists() else folder / f"{name}.{number}")


def record(merge: Merge, commit: str | None) -> dict[str, Any]:
    """What merge.json holds: method, settings, and the models with their fingerprints and weights."""
    weights = (*([None] if merge.base else []), *merge.how.weights)
    densities = (*([None] if merge.base else []), *merge.how.density)
    parents = [
        {
            "role": "base" if one is merge.base else "model",
            "name": merge_inputs.name_of(one),
            "path": one.path,
            "origin": one.origin,
            "fingerprint": one.fingerprint,
            "weight": weight,
            "density": density,
            "licence": merge_inputs.licences(one),
            "small_files": one is merge.carrier,
            **one.facts,
        }
        for one, weight, density in zip(merge.inputs, weights, densities, strict=True)
    ]
    how = {name: value for name, value in dataclasses.asdict(merge.how).items() if name not in ("weights", "density")}
    return {**how, "parents": parents, "t_elaine": __version__, "commit": commit}


class SourceModel(reference.NumpyModel):
    """The independent numpy model, reading a checkpoint's tensors in Hugging Face's layout instead of files."""

    def __init__(self, config: LlamaConfig, source: Source) -> None:
        self.config = to_hf(config, "float32")
        self.listed = {tensor.name: tensor for tensor in mapping.hf_tensors(config)}
        self.tensors = self.listed  # type: ignore[assignment]  # it looks at their names alone
        self.heads, self.kv_heads, self.head_dim = config.q_heads, config.kv_heads, config.head_dim
        self.source = source

    def get(self, name: str, box: Sequence[slice] | None = None) -> np.ndarray:
        """One tensor in float32; a box is read where both layouts have the same axes."""
        weight, layer = self.listed[name].weight, self.listed[name].layer
        ours, theirs = weight.ours.split(), weight.theirs.split()
        wanted = [box[theirs.index(axis)] for axis in ours] if box is not None else None
        return mapping.to_hf(weight, self.source(weight, layer, wanted))


def probe_loss(run_dir: str, config: LlamaConfig, vocabulary: ImportedVocabulary) -> tuple[float, str]:
    """Write probe.json, as an import does: what training must start with. Returns (loss, by which program)."""
    rows = probe.probe_rows(vocabulary.encode, vocabulary.bos)
    model = SourceModel(config, proof.checkpoint_source(run_dir, 0))
    loss = reference.mean_loss(model.logits(rows), rows)
    found = {
        "rows": [row.tolist() for row in rows],
        "loss": loss,
        "reference": model.name,
        "losses": {model.name: loss},
    }
    paths.write_text(paths.join(run_dir, "probe.json"), json.dumps(found) + "\n")
    return loss, model.name


def _check_loss(loss: float, config: LlamaConfig, to: str) -> None:
    try:
        run_import.check_loss(loss, config, Path(to))
    except UserError as problem:
        mend = "give other weights, or a smaller scale; to keep it all the same: --gin.merge.untrained=True"
        raise UserError(f"the merged model is broken: {problem.what}", to, mend) from problem
