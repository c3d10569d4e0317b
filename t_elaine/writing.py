"""The root of generate: joins a model, its folder's manners and the engine, as `assembly` does for train."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax

from t_elaine import paths
from t_elaine.checkpoints import reading
from t_elaine.errors import UserError
from t_elaine.evaluation.engines import Model
from t_elaine.generation import asking, conversation, templates
from t_elaine.generation.asking import Item
from t_elaine.generation.batch import Engine
from t_elaine.generation.engine import make_engine
from t_elaine.generation.manners import Manners, read_manners
from t_elaine.generation.sampling import Sampling
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command is asked: items, and the template and sampling that come with them."""

    items: tuple[Item, ...]
    template: str
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A loaded model."""

    model: Model
    manners: Manners
    engine: Engine
    compute: ComputeConfig


def refuse_remote(*places: str) -> None:
    """Raise UserError for a path in an object store."""
    for place in places:
        if paths.is_remote(place):
            raise UserError("--offline, and this path is not on this machine", place, "copy it here first")


def refuse_existing(to: str, overwrite: bool) -> None:
    """Raise UserError where the file for answers is there already."""
    if to and paths.exists(to) and not overwrite:
        raise UserError("this file is there already", to, "give another --to, or --overwrite")


def gather(prompt: Sequence[str], prompts_file: str, questions: str, chat: bool) -> Asked:
    """What is asked: prompts, a file of them, a shipped set, or a conversation; one of the four.

    Raises:
        UserError: none of them, or several.
    """
    given = [bool(prompt), bool(prompts_file), bool(questions), chat]
    if sum(given) != 1:
        what = "nothing to answer is given" if not any(given) else "several things to answer are given"
        raise UserError(what, "generate", "give one of --prompt=TEXT, --prompts_file=FILE, --questions=card, --chat")
    if questions:
        found = asking.load_questions(questions)
        return Asked(items=found.items, template=found.template, sampling=found.sampling)
    texts = asking.read_prompts(prompts_file) if prompts_file else prompt
    items = tuple(Item(number=number, text=text) for number, text in enumerate(texts, 1))
    return Asked(items=items, template="", sampling=Sampling())


def settled(sampling: Sampling, max_new: int, temperature: float, seed: int) -> Sampling:
    """The sampling with what flags say in place of its own."""
    if max_new < 0:
        raise UserError(f"max_new is {max_new}", "generate.max_new", "give at least 1, or 0 for the default")
    given = {"max_new": max_new or None, "temperature": temperature, "seed": seed}
    changes = {name: value for name, value in given.items() if value is not None and value >= 0}
    if "max_new" in changes:
        changes["min_new"] = min(sampling.min_new, max_new)
    return replace(sampling, **changes)  # type: ignore[arg-type]


def open_writer(model: Model, mesh: MeshConfig | None, compute: ComputeConfig, rows: int) -> Writer:
    """Load a model onto the devices.

    Args:
        model: opened, not yet loaded.
        mesh: how devices are arranged; None takes `default_mesh`.
        compute: dtype.
        rows: answers at a time.
    """
    devices = make_mesh(mesh or default_mesh(model.config, jax.device_count()))
    params = model.load(devices)
    engine = make_engine(params, model.config, compute, devices, model.vocabulary, rows=rows, donate=True)
    return Writer(
        model=model, manners=read_manners(small_files(model), model.vocabulary), engine=engine, compute=compute
    )


def small_files(model: Model) -> list[str]:
    """Folders of what lies beside its weights (templates, end ids), the ones to be believed first."""
    if model.kind != "run":
        return [model.path]
    run_dir = reading.resolve(model.path)[0]
    return [paths.join(run_dir, "vocabulary"), paths.join(run_dir, "parent"), run_dir]


def default_mesh(config: LlamaConfig, devices: int) -> MeshConfig:
    """Heads over all devices where everything divides, since weights then stay where they are; else rows over them."""
    divides = not any(size % devices for size in (config.q_heads, config.kv_heads, config.mlp, config.vocab_size))
    return MeshConfig(fsdp=1, tensor=devices) if divides else MeshConfig()


def answer(writer: Writer, asked: Asked, template: str, sampling: Sampling, to: str) -> int:
    """Answer all items: each is printed, and written to the file, as it is finished."""
    name, chosen = templates.choose(template, writer.model.vocabulary, writer.manners)
    about = {"template": name, "dtype": writer.compute.dtype, "batch_rows": writer.engine.rows}
    about |= {"model": writer.model.describe(), "versions": asking.versions()}
    with paths.open_file(to or os.devnull, "wb") as file:
        for record in asking.ask(writer.engine, asked.items, chosen, sampling, writer.manners.end_ids, about):
            print(asking.readable(record), flush=True)
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
            file.flush()
    if to:
        print(f"{len(asked.items)} answers: {to}")
    return 0


def talk(writer: Writer, template: str, sampling: Sampling) -> int:
    """A conversation in the terminal."""
    _, chosen = templates.choose(template, writer.model.vocabulary, writer.manners)
    conversation.converse(writer.engine, chosen, sampling, writer.manners.end_ids)
    return 0
