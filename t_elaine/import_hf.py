"""`t-elaine import_hf --hf=FOLDER_OR_NAME --to=RUN_DIR`: a Hugging Face model as a run folder to train from."""

import sys
from pathlib import Path

from t_elaine import cli, paths
from t_elaine.data.vocabulary import load_vocabulary, save_vocabulary
from t_elaine.hf.peft_format import CONFIG, import_adapter
from t_elaine.hf.run_import import ImportedVocabulary, find_model, import_model, refuse_existing
from t_elaine.parallel.mesh import MeshConfig

FLAGS = ("hf", "to", "revision", "vocabulary", "base", "overwrite")


def import_hf(
    hf: str,
    to: str,
    revision: str = "",
    vocabulary: str = "",
    base: str = "",
    overwrite: bool = False,
    untrained: bool = False,
    grow: int = 0,
    mesh: MeshConfig | None = None,
) -> None:
    """Fetch (where `hf` is a name on the hub), check and save a model, its small files and the loss it must start with.

    Args:
        hf: a Hugging Face folder, or owner/name on the hub.
        to: the run folder to make.
        revision: branch, tag or commit on the hub; "" is the default branch.
        vocabulary: tokenizer file or folder, where the model's own folder has none that is read here.
        base: the run folder of an imported model, where `hf` holds adapters for it in PEFT's format.
        overwrite: replace `to` if it is there.
        untrained: accept weights whose loss guessing would beat, as random ones may have.
        grow: give the model rows (the mean of its own) for a --vocabulary with more ids than it has, rounded up to a
            multiple of this, which meshes can divide; exports have the true number. 0: such a vocabulary is refused.
        mesh: devices to read the parameters onto; None: all of them along fsdp.
    """
    refuse_existing(to, overwrite)
    if base or paths.exists(paths.join(hf, CONFIG)):
        return import_adapter(Path(paths.brought_here(hf)), base, to, overwrite)
    folder, origin = find_model(hf, revision or None)
    vocab = load_vocabulary(vocabulary or folder)
    wrapped = ImportedVocabulary(
        sha256=vocab.sha256,
        size=vocab.size,
        bos=vocab.bos,
        encode=vocab.encode_batch,
        save=lambda target: save_vocabulary(vocab, target),
    )
    import_model(folder, to, wrapped, origin, mesh or MeshConfig(), overwrite, untrained, grow=grow)


def main(argv: list[str] | None = None) -> int:
    """The command; see `--help`."""
    return cli.run("import_hf", argv, flags=FLAGS)


if __name__ == "__main__":
    sys.exit(main())
