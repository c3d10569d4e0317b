"""`t-elaine export --checkpoint=RUN_DIR --to=FOLDER`: a checkpoint as a Hugging Face folder, with its proof."""

import functools
import os
import sys
from pathlib import Path
from typing import Any

from t_elaine import cli, learnt, paths, quantised
from t_elaine.checkpoints import reading
from t_elaine.data.hf_files import hf_files
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.errors import UserError
from t_elaine.evaluation.quantised import QuantisedCheck
from t_elaine.hf import card_parts, card_rules, hub, side_files
from t_elaine.hf.card_rules import Card
from t_elaine.hf.exporting import config_of, export_checkpoint
from t_elaine.hf.peft_format import export_adapter

FLAGS = ("checkpoint", "to", "dtype", "overwrite", "quantize", "adapter", "average", "push", "public")


def export(
    checkpoint: str,
    to: str,
    dtype: str = "float32",
    overwrite: bool = False,
    quantize: tuple[str, ...] = (),
    adapter: bool = False,
    average: bool = False,
    check: QuantisedCheck | None = None,
    card: Card | None = None,
    push: str = "",
    public: bool = False,
) -> None:
    """Write safetensors, tokenizer, licence, model card and proof; nothing keeps its final name unproven.

    Args:
        checkpoint: RUN_DIR (its newest complete checkpoint) or RUN_DIR/checkpoints/STEP.
        to: the folder to make.
        dtype: "float32" (bitwise the checkpoint) or "bfloat16" (rounded, half the size).
        overwrite: replace `to` if it is there.
        quantize: GGUF files for llama.cpp beside the weights: some of q8_0, q5_1, q5_0, q4_1, q4_0, f16, bf16, f32
        adapter: of a run with adapters write these alone, in PEFT's format; otherwise they are merged into their base
        average: write the running average of the weights that the run kept (AdamW.average) instead of the weights
        check: what these are judged on, beside the float weights
        card: what the model card says that no run records; a card that lacks a part is not written, nor pushed
        push: owner/name on the hub to upload the proven folder to; "" uploads nothing.
        public: make the pushed repository public; otherwise it is private.
    """
    if push and not hub.is_name(push):
        raise UserError(f"{push!r} is not owner/name", "--push", "for example --push=my-lab/llama-3.1-8b-med")
    if push and paths.is_remote(to):
        raise UserError(
            "only a local folder can be pushed", f"--to={to}", "export to a local folder, or upload it later"
        )
    formats, card = quantised.check_names(quantize), card or Card()
    if adapter:
        return export_adapter(checkpoint, to, overwrite)
    run_dir, step = reading.resolve(checkpoint)
    meta, name = reading.read_meta(run_dir, step), os.path.basename(run_dir.rstrip("/"))
    if push:
        card_parts.check_push(run_dir, meta, card, push, public)
    vocabulary = load_vocabulary(paths.join(run_dir, "vocabulary"))

    def beside(folder: Path) -> dict[str, Any]:
        if not formats:
            return {}
        title, before = card_rules.title(run_dir, name, card), side_files.begins(run_dir)
        return quantised.write_all(folder, formats, vocabulary, before, title, check or QuantisedCheck())

    done = export_checkpoint(
        checkpoint,
        to,
        vocabulary.encode_batch,
        dtype,
        overwrite,
        tokenizer_files=functools.partial(hf_files, vocabulary),
        beside=beside,
        beside_bytes=quantised.needed_bytes(config_of(meta), formats),
        card=card,
        average=average,
        template=learnt.chat_template(run_dir, vocabulary),
    )
    print(f"exported to {done.folder}; " + ", ".join(f"{name} {took:.1f} s" for name, took in done.seconds.items()))
    if push:
        print(f"pushed to {hub.push(Path(to), push, public)}")


def main(argv: list[str] | None = None) -> int:
    """The command; see `--help`."""
    return cli.run("export", argv, flags=FLAGS)


if __name__ == "__main__":
    sys.exit(main())
