"""The command `generate`: let a model write, from a checkpoint or a Hugging Face folder."""

import os
import sys
from collections.abc import Sequence

import jax

from t_elaine import cli, writing
from t_elaine.evaluation.engines import open_model
from t_elaine.generation.sampling import Sampling
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import MeshConfig

ASKED = ("checkpoint", "prompt", "prompts_file", "questions", "template", "chat")
FLAGS = (*ASKED, "max_new", "temperature", "seed", "batch_rows", "to", "overwrite", "offline")


def generate(
    *,
    checkpoint: str,
    prompt: tuple[str, ...] = (),
    prompts_file: str = "",
    questions: str = "",
    template: str = "",
    chat: bool = False,
    sampling: Sampling | None = None,
    max_new: int = 0,
    temperature: float = -1.0,
    seed: int = -1,
    batch_rows: int = 16,
    mesh: MeshConfig | None = None,
    compute: ComputeConfig | None = None,
    to: str = "",
    overwrite: bool = False,
    offline: bool = False,
) -> int:
    """Let a model answer prompts or a set of questions, or talk with it in the terminal.

    Args:
        checkpoint: the model: RUN_DIR, RUN_DIR/checkpoints/STEP, or a folder in Hugging Face format
        prompt: text to answer; may be given several times
        prompts_file: file with a prompt a line, or .jsonl with "prompt"
        questions: a shipped set: card (the sample questions of ELAINE's model card, with its template and sampling)
        template: chat (the model's own), none, a shipped one (elaine, chatml, alpaca, … see docs/chat.md) or a .jinja
            file; "" takes the questions' own, or that of the conversations trained on, or the model's if it has one
        chat: talk in the terminal; Ctrl-C ends an answer, Ctrl-D leaves
        sampling: how answers are written; the likeliest token each time, 256 at most, by default
        max_new: tokens of an answer at most, in place of sampling's; 0 leaves that
        temperature: in place of sampling's; -1 leaves that
        seed: of the draws, in place of sampling's; -1 leaves that
        batch_rows: answers at a time on all devices together; changes speed and memory only
        mesh: how devices are arranged
        compute: how the model is computed; float32 on CPUs and bfloat16 elsewhere by default
        to: file for the answers as JSON Lines, with settings and versions; "" writes none
        overwrite: replace that file
        offline: connect to nothing: refuses paths in an object store
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
        writing.refuse_remote(checkpoint, prompts_file, to)
    asked = writing.gather(prompt, prompts_file, questions, chat)
    how = writing.settled(sampling or asked.sampling, max_new, temperature, seed)
    writing.refuse_existing(to, overwrite)
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    compute = compute or ComputeConfig(dtype=dtype, remat="none")
    writer = writing.open_writer(open_model(checkpoint), mesh, compute, 1 if chat else batch_rows)
    if chat:
        return writing.talk(writer, template, how)
    return writing.answer(writer, asked, template or asked.template, how, to)


def main(argv: Sequence[str] | None = None) -> int:
    """`t-elaine generate`."""
    return cli.run("generate", argv, flags=FLAGS, repeated=("prompt",))


if __name__ == "__main__":
    sys.exit(main())
