"""The root of evaluate's `--engine`: joins models, exams and the engines of others, which get the same prompts.

transformers and vLLM run in a process of their own (`peers.process`); an OpenAI-compatible server is asked over HTTP
(`peers.endpoint` for answers, `peers.likelihoods` for scores). Our own engine is joined in `examined`.
"""

import hashlib
import json
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from t_elaine import paths, writing
from t_elaine.data.vocabulary import Vocabulary, load_vocabulary
from t_elaine.errors import UserError
from t_elaine.evaluation import engines, generating, options
from t_elaine.evaluation.answers import Write
from t_elaine.evaluation.engines import SERVED, Model
from t_elaine.evaluation.runner import Material
from t_elaine.evaluation.sitting import Sitting
from t_elaine.generation import asking
from t_elaine.generation.manners import read_manners
from t_elaine.model.config import LlamaConfig
from t_elaine.peers import endpoint, likelihoods, patience, process
from t_elaine.peers.patience import Endpoint
from t_elaine.peers.process import Worker

OURS = "t-elaine"
URLS = ("http://", "https://")
PACKS = "transformers"  # the one of them that takes packed rows
# Of a piece's tokens each stands in the context where pieces are scored alone, and a token is written after them.
BEYOND = 2
# Questions that are kept together where a server scores them: it may be gone at any time.
QUESTIONS = 16


@dataclass(frozen=True, kw_only=True)
class Used:
    """An engine that was chosen.

    Attributes:
        name: "t-elaine", one of `process.NAMES`, or a server's address.
        python: of the worker.
        endpoint: how a server is asked.
        about: what answers depend on: {"engine": name with version, "versions": of its packages}.
        vocabulary: of a server's models; None where the user gives none.
    """

    name: str
    python: str
    endpoint: Endpoint
    about: dict[str, Any]
    vocabulary: Vocabulary | None = None

    @property
    def ours(self) -> bool:
        return self.name == OURS

    @property
    def served(self) -> bool:
        return self.name.startswith(URLS)

    @property
    def identity(self) -> dict[str, Any]:
        """What it adds to a result's identity: ours nothing, so that results of older versions stand."""
        if self.ours:
            return {}
        return {**self.about, **({"vocabulary": self.vocabulary.sha256} if self.vocabulary else {})}


def choose(name: str, python: str, settings: Endpoint | None, vocabulary: str = "") -> Used:
    """The engine called so; `vocabulary`: where that of a server's models lies, "" where nothing needs it.

    Raises:
        UserError: there is none, its packages are not there, or there is no such vocabulary.
    """
    if vocabulary and not name.startswith(URLS):
        mend = "leave it out: the model's own lies beside its weights"
        raise UserError(f"{name} takes no other vocabulary than the model's", "evaluate.vocabulary", mend)
    made = partial(Used, name=name, python=python, endpoint=settings or Endpoint())
    if name == OURS:
        return made(about={"engine": OURS, "versions": asking.versions()})
    if name.startswith(URLS):
        parts = urllib.parse.urlsplit(patience.address(name))
        about = {"engine": f"{parts.scheme}-{parts.netloc.rpartition('@')[2]}", "versions": {}}
        return made(about=about, vocabulary=load_vocabulary(vocabulary) if vocabulary else None)
    if name not in process.NAMES:
        mend = f"give {OURS}, {', '.join(process.NAMES)}, or a server's address as http://127.0.0.1:8000/v1"
        raise UserError(f"no engine is called {name!r}", "evaluate.engine", mend)
    versions = process.versions(name, python)
    version = next(versions[key] for key in (name, f"{name}-cpu") if key in versions)
    return made(about={"engine": f"{name}-{version}", "versions": versions})


def open_model(used: Used, path: str) -> Model:
    """A model for this engine: at a server the one that it knows by this name, else as `engines.open_model`.

    Raises:
        UserError: there is no such model, or it is in no format that the engine reads.
    """
    if used.served:
        told = {"server": patience.address(used.name), **endpoint.describe(used.name, path, used.endpoint)}
        return Model(
            path=path,
            kind=SERVED,
            step=0,
            tokens=0,
            identity=hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest(),
            # Nobody asks for a shape, nor for a vocabulary that is not given: `refuse` sees to it.
            config=cast(LlamaConfig, None),
            vocabulary=cast(Vocabulary, used.vocabulary),
            load=lambda mesh: None,
            context=int(told.get("max_model_len") or 0),
        )
    model = engines.open_model(path)
    if not used.ours and model.kind != "hf":
        mend = f"export it (t-elaine export --checkpoint={path} --to=FOLDER) and give the folder"
        raise UserError(f"{used.name} reads folders in Hugging Face format alone, and this is a run folder", path, mend)
    return model


def refuse(used: Used, material: Material) -> None:
    """Raise UserError for what this engine cannot do."""
    if not material.scored or not used.served or used.vocabulary:
        return
    what = "likelihood" if material.suites else "bits-per-byte (--stores)"
    mend = "give --vocabulary=FOLDER of the served model's tokenizer.json or tokenizer.model; "
    mend += "--protocols=official,repaired need none"
    raise UserError(f"{what} is asked by token ids, and a server gives no vocabulary", "evaluate.vocabulary", mend)


def scored_with(
    used: Used, material: Material, models: Sequence[Model], given: int, most: int, dtype: str
) -> dict[str, Any]:
    """What scores depend on beside models and material: {"sequence_length", "dtype", …}.

    Args:
        used: the engine.
        material: what is judged.
        models: opened.
        given: tokens a row, or 0 for `most`, or for what the shortest context leaves.
        most: tokens a row.
        dtype: that models are computed in; a server's is its own.

    Raises:
        UserError: `given` is more than another engine's context leaves.
    """
    contexts = [model.context if model.kind == SERVED else model.config.max_position for model in models]
    known = [context for context in contexts if context]
    if material.scored and not used.ours:
        known = [context - (0 if used.name == PACKS else BEYOND) for context in known]
        if known and given > min(known):
            what = f"sequence_length is {given}, and {used.name} takes pieces of {min(known)} at most"
            raise UserError(what, "evaluate.sequence_length", f"give at most {min(known)}")
    elif used.served:
        known = []
    dtype = "" if used.served and material.scored else dtype
    return {"sequence_length": given or min([most, *known]), "dtype": dtype, **used.identity}


def scorer(
    used: Used, dtype: str, rows: int, length: int
) -> Callable[[Model], AbstractContextManager[engines.Scorer]] | None:
    """What opens a model elsewhere for `runner.judge`, with `length` targets a row or piece; None for ours."""
    if used.ours:
        return None

    @contextmanager
    def opened(model: Model) -> Iterator[engines.Scorer]:
        if used.served:
            server = (used.name, model.path, used.endpoint)
            likelihoods.check(*server, model.vocabulary.encode, str(model.vocabulary.path))
            yield engines.PieceEngine(length=length, questions=QUESTIONS, run=partial(likelihoods.score, *server))
            return
        with worker(used, model, dtype, rows) as it:
            if used.name == PACKS:
                yield engines.Engine(rows=rows, length=length, run=partial(process.nll, it))
            else:
                _fits(it, length)
                yield engines.PieceEngine(length=length, questions=options.QUESTIONS, run=partial(process.score, it))

    return opened


def _fits(it: Worker, length: int) -> None:
    if length + BEYOND > it.context:
        what = f"sequence_length is {length}, and {it.name} takes {it.context} tokens of the model"
        raise UserError(what, "evaluate.sequence_length", f"give at most {it.context - BEYOND}")


def worker(used: Used, model: Model, dtype: str, rows: int) -> AbstractContextManager[Worker]:
    """A worker that has loaded the model."""
    return process.working(used.name, used.python, str(paths.brought_here(model.path)), dtype, rows)


def writer(used: Used, model: Model, sitting: Sitting, loaded: Callable[[], Worker]) -> Write:
    """What answers a sitting's prompts.

    Args:
        used: not ours.
        model: opened with it.
        sitting: decides what ends an answer.
        loaded: gives the worker, where it is one.
    """
    if model.kind == SERVED:
        place = f"{sitting.exam.name}, {sitting.protocol}"
        items = zip(sitting.prompts, sitting.items, strict=True)
        names = {prompt: f"{place}, line {item.line}, item {item.id!r}" for prompt, item in items}
        asked = partial(endpoint.write, used.name, model.path, used.endpoint)
        return lambda prompts, sampling: asked(prompts, sampling, [names[prompt] for prompt in prompts])
    folders = writing.small_files(model)
    ends = generating.end_ids(sitting, folders, model.vocabulary, read_manners(folders, model.vocabulary).end_ids)
    return lambda prompts, sampling: process.write(loaded(), prompts, sampling, ends)
