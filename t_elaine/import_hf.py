"""`t-elaine import_hf --hf=FOLDER_OR_NAME --to=RUN_DIR`: a Hugging Face model as a run folder to train from."""

import sys

from t_elaine import cli
from t_elaine.data.vocabulary import load_vocabulary, save_vocabulary
from t_elaine.hf.run_import import ImportedVocabulary, find_model, import_model, refuse_existing
from t_elaine.parallel.mesh import MeshConfig

FLAGS = ("hf", "to", "revision", "vocabulary", "overwrite")


def import_hf(
    hf: str,
    to: str,
    revision: str = "",
    vocabulary: str = "",
    overwrite: bool = False,
    untrained: bool = False,
    mesh: MeshConfig | None = None,
) -> None:
    """Fetch (where `hf` is a name on the hub), check and save a model, its small files and the loss it must start with.

    Args:
        hf: a Hugging Face folder, or owner/name on the hub.
        to: the run folder to make.
        revision: branch, tag or commit on the hub; "" is the default branch.
        vocabulary: tokenizer file or folder, where the model's own folder has none that is read here.
        overwrite: replace `to` if it is there.
        untrained: accept weights whose loss guessing would beat, as random ones may have.
        mesh: devices to read the parameters onto; None: all of them along fsdp.
    """
    refuse_existing(to, overwrite)
    folder, origin = find_model(hf, revision or None)
    vocab = load_vocabulary(vocabulary or folder)
    wrapped = ImportedVocabulary(
        sha256=vocab.sha256,
        size=vocab.size,
        bos=vocab.bos,
        encode=vocab.encode_batch,
        save=lambda target: save_vocabulary(vocab, target),
    )
    import_model(folder, to, wrapped, origin, mesh or MeshConfig(), overwrite, untrained)


def main(argv: list[str] | None = None) -> int:
    """The command; see `--help`."""
    return cli.run("import_hf", argv, flags=FLAGS)


if __name__ == "__main__":
    sys.exit(main())
