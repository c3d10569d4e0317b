"""What a model loses by being rounded to fewer bits: bits per byte, exam answers and greedy text, beside the float one.

Both are computed by our own program from their files' values, in float32, on the same texts. It neither writes the
files nor says where they lie. Exams are asked by likelihood (docs/evaluation.md).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from t_elaine import paths
from t_elaine.data.store import open_store, verify_store
from t_elaine.data.vocabulary import Vocabulary
from t_elaine.evaluation import bits_per_byte, options, protocols, runner, suites, summary
from t_elaine.evaluation.bits_per_byte import Document, Held
from t_elaine.evaluation.engines import make_engine
from t_elaine.evaluation.options import ExamScores
from t_elaine.evaluation.suites import Suite
from t_elaine.generation import engine as writing
from t_elaine.generation.requests import Request
from t_elaine.generation.sampling import Sampling
from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh

COMPUTE = ComputeConfig(dtype="float32", remat="none", attention="blocked", loss_chunk=128)
SAMPLES = ("en", "ja", "zh")


@dataclass(frozen=True, kw_only=True)
class QuantisedCheck:
    """What a quantised file is judged on, beside the float export.

    Args:
        stores: token stores whose held-out documents are scored; () takes the shipped sample documents, which are not
            held out of a run that was trained on them
        exams: asked by likelihood
        suites_dir: folder of the published exams
        documents: of each store or language at most
        questions: of each exam at most
        length: tokens of a row
        batch_rows: rows at a time
        prompts: of each language that are continued greedily
        new_tokens: of each
        resamples: bootstrap draws of an interval
    """

    stores: tuple[str, ...] = ()
    exams: tuple[str, ...] = ("samples/en", "samples/ja", "samples/zh")
    suites_dir: str = ""
    documents: int = 6
    questions: int = 12
    length: int = 512
    batch_rows: int = 4
    prompts: int = 4
    new_tokens: int = 24
    resamples: int = 2000


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What is judged on: held-out documents by name, exams, prompts as ids."""

    held: dict[str, list[Document]]
    suites: tuple[Suite, ...]
    prompts: list[np.ndarray]
    before: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model on these texts; `greedy`: new ids of each prompt."""

    held: list[Held]
    exams: list[ExamScores]
    greedy: list[list[int]]


def gather(
    check: QuantisedCheck, vocabulary: Vocabulary, before: Sequence[int], prompts: dict[str, tuple[str, ...]]
) -> Texts:
    """Read what models are judged on.

    Args:
        check: settings.
        vocabulary: the model's.
        before: ids in front of a text.
        prompts: to continue, by language.

    Raises:
        UserError: a store or an exam is not there or cannot be read.
    """
    for folder in check.stores:
        verify_store(folder, "validation")
    stores = [open_store(folder) for folder in check.stores]
    held = {store.name: bits_per_byte.documents(store, "validation", check.documents) for store in stores}
    if not stores:
        held = {"shipped samples": _samples(vocabulary, before, check.documents)}
    texts = [text for group in prompts.values() for text in group[: check.prompts]]
    head = np.asarray(before, np.int32)
    return Texts(
        held=held,
        suites=tuple(suites.load_suite(spec, check.questions, check.suites_dir) for spec in check.exams),
        prompts=[np.concatenate([head, ids.astype(np.int32)]) for ids in vocabulary.encode_batch(texts)],
        before=tuple(int(i) for i in before),
    )


def _samples(vocabulary: Vocabulary, before: Sequence[int], count: int) -> list[Document]:
    """The shipped documents, `count` of each language."""
    found = []
    for language in SAMPLES:
        file = paths.shipped("data_tasks") / "samples" / language / "documents.jsonl"
        lines = file.read_text(encoding="utf-8").strip().split("\n")[:count]
        texts = [str(json.loads(line)["text"]) for line in lines]
        for text, ids in zip(texts, vocabulary.encode_batch(texts), strict=True):
            tokens = np.concatenate([np.asarray(before, np.int32), ids.astype(np.int32)])
            size = len(text.encode())
            found.append(Document(tokens=tokens, scored=None, group=(language, "samples"), bytes=size, text_hash=0))
    return found


def measure(
    load: Callable[[Any], Any], config: LlamaConfig, vocabulary: Vocabulary, texts: Texts, check: QuantisedCheck
) -> Measured:
    """Load a model and put it through everything; its parameters are freed at the end.

    Args:
        load: mesh → parameters.
        config: the model.
        vocabulary: its vocabulary.
        texts: of `gather`.
        check: settings.
    """
    mesh = make_mesh(MeshConfig(), jax.devices())
    params = load(mesh)
    length = min(check.length, config.max_position)
    scorer = make_engine(params, config, COMPUTE, mesh, batch_rows=check.batch_rows, length=length)
    special = np.zeros(max(vocabulary.size, 1), bool)
    special[list(vocabulary.special_ids)] = True
    sizes, protocol = vocabulary.byte_lengths(), protocols.load_protocol(runner.LIKELIHOOD)
    held = [bits_per_byte.measure(scorer, name, group, special, sizes) for name, group in texts.held.items()]
    exams = [
        options.sit(scorer, suite, options.exam_requests(vocabulary, suite, protocol, texts.before, length))
        for suite in texts.suites
    ]
    del scorer
    writer = writing.make_engine(params, config, COMPUTE, mesh, vocabulary, rows=len(texts.prompts) or 1, donate=True)
    sampling = Sampling(max_new=check.new_tokens)
    asked = [Request(tokens=tokens, sampling=sampling) for tokens in texts.prompts]
    answers = sorted(writing.generate(writer, asked), key=lambda answer: answer.index)
    return Measured(held=held, exams=exams, greedy=[answer.tokens.tolist() for answer in answers])


def compare(rounded: Measured, plain: Measured, texts: Texts, check: QuantisedCheck) -> dict[str, Any]:
    """What proof.json says of a quantised file: each figure beside the float export's, with their paired difference.

    `bits_per_byte`: a row a store and language; `exams`: accuracy by way of scoring, and how many questions got another
    answer; `greedy`: ids of the prompts and what is written after them, with the number of tokens until the float
    model writes another one.
    """
    draws, headline = {"resamples": check.resamples, "seed": 0}, protocols.load_protocol(runner.LIKELIHOOD).headline
    rows = summary.bits_rows([rounded.held, plain.held], draws)
    exams = []
    for suite, ours, theirs in zip(texts.suites, rounded.exams, plain.exams, strict=True):
        row = summary.exam_row(suite, [ours, theirs], headline, draws)
        changed = sum(item["child"][headline]["choice"] != item["parent"][headline]["choice"] for item in row["items"])
        kept = {key: row[key] for key in ("suite", "language", "questions", "headline", "chance")}
        exams.append(kept | {"answers_changed": changed, "scores": _renamed(row["scores"])})
    greedy = [
        {"prompt_ids": prompt.tolist(), "ids": ours, "as_float": common(ours, theirs)}
        for prompt, ours, theirs in zip(texts.prompts, rounded.greedy, plain.greedy, strict=True)
    ]
    return {
        "held_out": "validation split" if check.stores else "shipped sample documents",
        "bits_per_byte": [_sides(row) for row in rows if row["level"] in ("store", "language", "general")],
        "exams": exams,
        "greedy": greedy,
    }


def _renamed(scores: dict[str, Any]) -> dict[str, Any]:
    return {way: _sides(found) for way, found in scores.items()}


def _sides(row: dict[str, Any]) -> dict[str, Any]:
    names = {"child": "quantised", "parent": "float"}
    return {names.get(key, key): value for key, value in row.items()}


def common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many leading tokens are the same."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
