"""A Hugging Face model → a run folder: checkpoints/0, vocabulary/, parent/ and probe.json.

Puts together what the other files of this folder do; the command adds the tokenizer library.
"""

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t_elaine import paths
from t_elaine.checkpoints.layout import CheckpointMeta, complete_steps
from t_elaine.checkpoints.writing import save_params
from t_elaine.errors import UserError
from t_elaine.faults import fault_point
from t_elaine.hf import folders, growing, hub, importing, mapping, probe, proof, reference, side_files, tensors
from t_elaine.model import llama
from t_elaine.model.config import LlamaConfig
from t_elaine.parallel import sharding
from t_elaine.parallel.mesh import MeshConfig, make_mesh


@dataclass(frozen=True, kw_only=True)
class ImportedVocabulary:
    """What an import needs of the model's tokenizer: identity, number of ids, BOS, encoder, and how it is kept."""

    sha256: str
    size: int
    bos: int | None
    encode: Callable[[list[str]], list[np.ndarray]]
    save: Callable[[Path], None]


def _judge(folder: Path) -> None:
    importing.read_config(folder)


def find_model(hf: str, revision: str | None) -> tuple[Path, str]:
    """(folder, origin) of a local folder or, where there is none of that name, of owner/name on the hub.

    Config and tensors' names are judged before the hub sends weights.
    """
    if paths.is_remote(hf):
        try:
            return Path(paths.brought_here(hf)), hf
        except FileNotFoundError as error:
            raise UserError("there is no such folder in the object store", hf, "check the path") from error
    folder = Path(hf)
    if folder.is_dir():
        if revision:
            raise UserError("a local folder has no revision", f"--hf={hf}", "leave --revision out")
        return folder, hf
    if not hub.is_name(hf):
        raise UserError("there is no such folder, and it is no owner/name on the hub", hf, "check the path")
    snapshot = hub.fetch(hf, revision, judge=_judge)
    return snapshot.folder, f"{snapshot.name}@{snapshot.commit}"


def import_model(
    folder: Path,
    to: str,
    vocabulary: ImportedVocabulary,
    origin: str,
    mesh_config: MeshConfig,
    overwrite: bool = False,
    untrained: bool = False,
    say: Callable[[str], None] = print,
    grow: int = 0,
) -> None:
    """Make a run folder of a Hugging Face folder: checkpoints/0, vocabulary/, parent/, probe.json.

    Args:
        folder: config.json, safetensors, tokenizer and small files.
        to: the run folder; it appears whole or not at all.
        vocabulary: the model's tokenizer.
        origin: what the checkpoint's record names as parent.
        mesh_config: devices to read the parameters onto.
        overwrite: replace `to` if it is there.
        untrained: accept a probe loss that guessing would beat.
        say: takes lines of progress.
        grow: give the model rows for a vocabulary with more ids, rounded up to a multiple of this; 0: none.

    Raises:
        UserError: whatever the folder lacks or the model cannot represent, by name; a full disk.
    """
    refuse_existing(to, overwrite)
    config = importing.read_config(folder)
    if proof.check_files(folder):
        say("the weights are those of an export, by the digests in its proof.json")
    infos = tensors.open_tensors(folder)
    importing.check_tensors(infos, config, folder)
    source, old = importing.hf_source(infos, config), config
    if grow:
        config = growing.grown_config(old, vocabulary.size, grow)
        source = growing.grown(source, old, config)
        say(f"{vocabulary.size - old.vocab_size:,} new ids, rows padded to {config.vocab_size:,}")
    if vocabulary.size > config.vocab_size:
        what = f"the tokenizer has {vocabulary.size} ids, the model's embedding {config.vocab_size} rows"
        raise UserError(what, str(folder), "give the model's own tokenizer (--vocabulary=)")
    mesh = make_mesh(mesh_config)
    shapes = llama.parameter_shapes(config)
    layout = sharding.shardings(llama.parameter_axes(config), mesh, sharding.RULES, shapes)
    meta = first_meta(config, vocabulary, origin)

    def fill(run_dir: str) -> None:
        loss = save_side_files(folder, run_dir, vocabulary, old, say)
        if loss is not None and not untrained:
            check_loss(loss, config, folder)
        side_files.keep_origin(run_dir, origin)
        if grow:
            side_files.keep_growth(run_dir, old.vocab_size, vocabulary.size)
        params = importing.load_params(source, config, layout)
        fault_point("import_hf.before_save")
        save_params(run_dir, 0, params, meta)

    if paths.is_remote(to):
        fill(to)  # the checkpoint's digests come last and make the folder whole
    else:
        with folders.new_folder(to, overwrite, 4 * mapping.parameters(config), "import_hf") as building:
            fill(str(building))
    say(f"imported {len(infos)} tensors from {origin} to {to}")


def save_side_files(
    folder: Path, run_dir: str, vocabulary: ImportedVocabulary, config: LlamaConfig, say: Callable[[str], None]
) -> float | None:
    """Everything of the run folder but the checkpoint; returns the probe's loss, None where the model lacks ids."""
    with tempfile.TemporaryDirectory(prefix="import-") as temporary:
        vocabulary.save(Path(temporary))
        folders.copy_into(Path(temporary), paths.join(run_dir, "vocabulary"), last="vocabulary.json")
    side_files.keep_parent(folder, run_dir)
    if vocabulary.size > config.vocab_size:
        say("no loss to start with is recorded: the reference model lacks some of the ids")
        return None
    rows = probe.probe_rows(vocabulary.encode, vocabulary.bos)
    found = probe.make_probe(folder, rows, not reference.transformers_lack(mapping.parameters(config)))
    paths.write_text(paths.join(run_dir, "probe.json"), json.dumps(found) + "\n")
    say(f"loss of the probe: {found['loss']:.4f} nats a token ({found['reference']})")
    return float(found["loss"])


def check_loss(loss: float, config: LlamaConfig, folder: Path) -> None:
    """Raise UserError if guessing would do better: the only sign of a fitting tokenizer that is another model's."""
    if loss > math.log(config.vocab_size) + 1:
        what = f"its loss is {loss:.2f} nats a token, where guessing among {config.vocab_size} ids has "
        what += f"{math.log(config.vocab_size):.2f}: these are not the trained weights, or not this model's tokenizer"
        mend = "give the model's own tokenizer (--vocabulary=); for random weights: --gin.import_hf.untrained=True"
        raise UserError(what, str(folder), mend)


def refuse_existing(to: str, overwrite: bool) -> None:
    """Raise UserError if the target is there and may not be replaced; on an object store it never may."""
    if paths.is_remote(to):
        folders.refuse_existing(bool(complete_steps(to)), to, overwrite=False)
    else:
        folders.refuse_existing(Path(to).exists(), to, overwrite)


def first_meta(config: LlamaConfig, vocabulary: ImportedVocabulary, origin: str) -> CheckpointMeta:
    """The record of a checkpoint that was imported or merged: step 0, no optimizer."""
    return CheckpointMeta(
        step=0,
        tokens=0,
        row=0,
        vocabulary_sha256=vocabulary.sha256,
        model=dataclasses.asdict(config),
        config_hash="",
        parent=origin,
        has_optimizer=False,
    )
