"""Runs an evaluation: opens what is asked for, judges child and parent alike, keeps the result in one JSON file.

Two runs with the same identity (models, data, prompts, limits) give the same file; another identity never overwrites
it unasked. How numbers become a result is `summary.py`'s; what is kept of an evaluation that was killed, `kept.py`'s.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from t_elaine import paths
from t_elaine.checkpoints import reading
from t_elaine.data.store import Store, open_store, verify_store
from t_elaine.data.vocabulary import Vocabulary
from t_elaine.errors import UserError
from t_elaine.evaluation import bits_per_byte, mmedbench_files, protocols, suites
from t_elaine.evaluation.bits_per_byte import Document, Held
from t_elaine.evaluation.engines import SERVED, Model, Scorer, make_engine
from t_elaine.evaluation.exams import check_protocols, load, sittings
from t_elaine.evaluation.options import ExamScores, exam_requests, sit
from t_elaine.evaluation.parts import NONE, Parts
from t_elaine.evaluation.progress import progress
from t_elaine.evaluation.protocols import LikelihoodProtocol
from t_elaine.evaluation.sitting import Sitting
from t_elaine.evaluation.suites import Suite
from t_elaine.model.config import ComputeConfig

FORMAT = 1
LIKELIHOOD = "likelihood"


@dataclass(frozen=True, kw_only=True)
class Material:
    """What models are judged on. `held`: a list of documents a store; `sittings`: exams that are answered in text."""

    stores: tuple[Store, ...]
    held: tuple[list[Document], ...]
    split: str
    suites: tuple[Suite, ...]
    protocol: LikelihoodProtocol
    limit: int
    sittings: tuple[Sitting, ...] = ()

    @property
    def scored(self) -> bool:
        """Whether anything is judged by likelihoods."""
        return bool(self.stores or self.suites)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """All that was measured on one model."""

    model: Model
    held: list[Held]
    exams: list[ExamScores]


def gather(
    stores: Sequence[str],
    exams: Sequence[str],
    split: str,
    limit: int,
    ways: Sequence[str] = (LIKELIHOOD,),
    suites_dir: str = "",
) -> Material:
    """Open stores and exams.

    Args:
        stores, split: of the held-out text.
        exams: see `exams.load`.
        limit: documents of each store and questions of each exam, 0 for all.
        ways: protocols of the exams, LIKELIHOOD or of `exams.ASKED`.
        suites_dir: folder of the published exams.

    Raises:
        UserError: nothing to judge by, an unknown protocol, a store that is damaged, or a store or exam that cannot be
            read.
    """
    if not stores and not (exams and ways):
        raise UserError("there is nothing to judge by", "evaluate", "give --stores=FOLDER,… or --exams=samples/en,…")
    if limit < 0:
        raise UserError(f"limit is {limit}", "evaluate.limit", "give a number of items, or 0 for all")
    written = [way for way in ways if way != LIKELIHOOD]
    check_protocols(written)
    for spec in exams if LIKELIHOOD in ways else ():
        mmedbench_files.refuse_likelihood(spec)
    opened = tuple(open_store(folder) for folder in stores)
    for folder in stores:
        verify_store(folder, split)
    return Material(
        stores=opened,
        held=tuple(bits_per_byte.documents(store, split, limit) for store in opened),
        split=split,
        suites=tuple(suites.load_suite(spec, limit, suites_dir) for spec in exams if LIKELIHOOD in ways),
        protocol=protocols.load_protocol(LIKELIHOOD),
        limit=limit,
        sittings=tuple(
            sitting for spec in exams if written for sitting in sittings([load(spec, suites_dir)], written, limit)
        ),
    )


def judge(
    model: Model,
    material: Material,
    mesh: Mesh,
    compute: ComputeConfig,
    *,
    batch_rows: int,
    length: int,
    console: Console,
    other: Callable[[Model], AbstractContextManager[Scorer]] | None = None,
    parts: Parts = NONE,
) -> Judged:
    """Load a model and score everything; its parameters are freed at the end.

    Args:
        model: opened.
        material: what it is judged on.
        mesh, compute, batch_rows, length: of our own engine.
        console: for progress.
        other: opens the model in another engine instead.
        parts: of the scores, from an earlier start.

    Raises:
        UserError: a store was made with another vocabulary, or the model cannot take rows of this length.
    """
    if not material.scored:
        return Judged(model=model, held=[], exams=[])
    for store in material.stores:
        check_vocabulary(store, model)
    before = begins(material, model.vocabulary)
    exams = [exam_requests(model.vocabulary, suite, material.protocol, before, length) for suite in material.suites]
    total = sum(len(document.tokens) for held in material.held for document in held)
    total += sum(len(request.tokens) for exam in exams for request in exam.flat())
    special = np.zeros(max(model.vocabulary.size, 1), bool)
    special[list(model.vocabulary.special_ids)] = True
    byte_lengths = model.vocabulary.byte_lengths()
    made = partial(make_engine, config=model.config, compute=compute, mesh=mesh, batch_rows=batch_rows, length=length)
    opened: AbstractContextManager[Scorer] = nullcontext(made(model.load(mesh))) if other is None else other(model)
    with opened as engine, progress(console, f"scoring {model.path}", total) as done:
        held = [
            bits_per_byte.measure(engine, store.name, documents, special, byte_lengths, done, parts)
            for store, documents in zip(material.stores, material.held, strict=True)
        ]
        scored = [sit(engine, suite, exam, done, parts) for suite, exam in zip(material.suites, exams, strict=True)]
    return Judged(model=model, held=held, exams=scored)


def check_vocabulary(store: Store, model: Model) -> None:
    """Refuse to score tokens of one vocabulary with a model of another."""
    theirs, ours = store.vocabulary["sha256"], model.vocabulary.sha256
    if theirs != ours:
        what = f"the store was made with the vocabulary {theirs[:16]}…, {model.path} has {ours[:16]}…"
        raise UserError(what, str(store.folder), "prepare the held-out text again with this model's vocabulary")


def begins(material: Material, vocabulary: Vocabulary) -> list[int]:
    """Ids that stand before a prompt: what stands before the stores' documents, else the vocabulary's BOS if any."""
    for store in material.stores:
        if "framing" in store.manifest:
            return [int(i) for i in store.manifest["framing"]["ids"][0]]
    return [] if vocabulary.bos is None else [vocabulary.bos]


def identity(material: Material, models: Sequence[Model], settings: dict[str, Any]) -> dict[str, Any]:
    """What a result depends on: digests of models and data, and `settings`; not the mesh nor the rows at a time."""
    return {
        "format": FORMAT,
        "models": [model.identity for model in models],
        "stores": {store.name: digest(store.manifest) for store in material.stores},
        "prompts_begin": [
            begins(material, model.vocabulary) for model in models if model.kind != SERVED or material.scored
        ],
        "split": material.split,
        "exams": {suite.name: suite.sha256 for suite in material.suites},
        "protocol": material.protocol.sha256,
        "limit": material.limit,
        **({"generated": _asked(material.sittings)} if material.sittings else {}),
        **settings,
    }


def _asked(sittings: Sequence[Sitting]) -> dict[str, list[str]]:
    """All that is asked and how it is graded, by exam and protocol."""
    return {f"{one.exam.name} {one.protocol}": [one.prompts_sha256, one.rules.sha256] for one in sittings}


def digest(content: Any) -> str:
    """sha256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def result_path(model: Model, name: str, to: str) -> str:
    """Where a result goes: `to`, or the run folder's evaluation/; `name`, or the step.

    Raises:
        UserError: the model is no run folder and `to` is not given.
    """
    folder = to
    if not to:
        if model.kind != "run":
            what = f"{model.path} is no run folder, so the result has no place of its own"
            raise UserError(what, "evaluate.to", "give --to=FOLDER for the result")
        folder = paths.join(reading.resolve(model.path)[0], "evaluation")
    return paths.join(folder, f"{name or f'step-{model.step}'}.json")


def existing(path: str, wanted: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The result that already stands at `path` if it is of the same identity; None where there is none to keep.

    Raises:
        UserError: a result of another identity stands there, or something that is no result.
    """
    if overwrite or not paths.exists(path):
        return None
    mend = "give --overwrite to replace it, or --name=OTHER to keep both"
    try:
        result = json.loads(paths.read_text(path))
        found = result["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("the file there is no evaluation result", path, mend) from error
    if found == wanted:
        return dict(result)
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    raise UserError(f"a result of another evaluation stands there; different: {', '.join(keys)}", path, mend)


@contextmanager
def writable(path: str) -> Iterator[None]:
    """Make the result's folder and try to write in it: not being allowed to must show before hours of scoring.

    A folder that was made for nothing goes again.

    Raises:
        UserError: nothing can be written there.
    """
    folder = path.rpartition("/")[0] or "."
    trial = paths.join(folder, f".trial-{os.getpid()}")
    made = not paths.is_remote(folder) and not paths.exists(folder)
    try:
        paths.make_folder(folder)
        if not paths.is_remote(folder):
            paths.write_text(trial, "")
            os.unlink(trial)
    except OSError as error:
        what = f"the result cannot be written: {error.strerror or error}"
        raise UserError(what, folder, "give another --to=FOLDER") from error
    try:
        yield
    finally:
        if made and not paths.listing(folder):
            os.rmdir(folder)


def save(path: str, result: dict[str, Any]) -> None:
    """Write a result whole or not at all."""
    paths.make_folder(path.rpartition("/")[0])
    paths.write_text(path, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
