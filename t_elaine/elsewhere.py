"""The root of evaluate's `--engine`: joins models, exams and the engines of others, which get the same prompts.

transformers and vLLM run in a process of their own (`peers.process`); an OpenAI-compatible server is asked over HTTP
(`peers.endpoint`). Our own engine is joined in `examined`.
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
from t_elaine.data.vocabulary import Vocabulary
from t_elaine.errors import UserError
from t_elaine.evaluation import engines, generating
from t_elaine.evaluation.answers import Write
from t_elaine.evaluation.engines import SERVED, Model
from t_elaine.evaluation.runner import Material
from t_elaine.evaluation.sitting import Sitting
from t_elaine.generation import asking
from t_elaine.generation.manners import read_manners
from t_elaine.model.config import LlamaConfig
from t_elaine.peers import endpoint, process
from t_elaine.peers.endpoint import Endpoint
from t_elaine.peers.process import Worker

OURS = "t-elaine"
URLS = ("http://", "https://")
SCORES = "transformers"  # the one of them that gives likelihoods


@dataclass(frozen=True, kw_only=True)
class Used:
    """An engine that was chosen.

    Attributes:
        name: "t-elaine", one of `process.NAMES`, or a server's address.
        python: of the worker.
        endpoint: how a server is asked.
        about: what answers depend on: {"engine": name with version, "versions": of its packages}.
    """

    name: str
    python: str
    endpoint: Endpoint
    about: dict[str, Any]

    @property
    def ours(self) -> bool:
        return self.name == OURS

    @property
    def identity(self) -> dict[str, Any]:
        """What it adds to a result's identity: ours nothing, so that results of older versions stand."""
        return {} if self.ours else dict(self.about)


def choose(name: str, python: str, settings: Endpoint | None) -> Used:
    """The engine called so.

    Raises:
        UserError: there is none, or its packages are not there.
    """
    made = partial(Used, name=name, python=python, endpoint=settings or Endpoint())
    if name == OURS:
        return made(about={"engine": OURS, "versions": asking.versions()})
    if name.startswith(URLS):
        parts = urllib.parse.urlsplit(endpoint.address(name))
        return made(about={"engine": f"{parts.scheme}-{parts.netloc.rpartition('@')[2]}", "versions": {}})
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
    if used.name.startswith(URLS):
        told = {"server": endpoint.address(used.name), **endpoint.describe(used.name, path, used.endpoint)}
        return Model(
            path=path,
            kind=SERVED,
            step=0,
            tokens=0,
            identity=hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest(),
            # Nobody asks: what needs them is refused by `refuse`.
            config=cast(LlamaConfig, None),
            vocabulary=cast(Vocabulary, None),
            load=lambda mesh: None,
        )
    model = engines.open_model(path)
    if not used.ours and model.kind != "hf":
        mend = f"export it (t-elaine export --checkpoint={path} --to=FOLDER) and give the folder"
        raise UserError(f"{used.name} reads folders in Hugging Face format alone, and this is a run folder", path, mend)
    return model


def refuse(used: Used, material: Material) -> None:
    """Raise UserError for what this engine cannot do."""
    if used.ours or used.name == SCORES or not (material.suites or material.stores):
        return
    what = "likelihood" if material.suites else "bits-per-byte (--stores)"
    mend = (
        f"give --engine={OURS} or --engine={SCORES} for it; --protocols=official,repaired can be asked of {used.name}"
    )
    raise UserError(f"{used.name} gives answers and no likelihoods, and {what} needs them", "evaluate.engine", mend)


def length(models: Sequence[Model], most: int) -> int:
    """Tokens a row: `most`, or the shortest context."""
    return min([most, *(model.config.max_position for model in models if model.kind != SERVED)])


def scorer(
    used: Used, dtype: str, rows: int, length: int
) -> Callable[[Model], AbstractContextManager[engines.Engine]] | None:
    """What opens a model in the worker for `runner.judge`, as an engine of rows of `length` targets; None for ours."""
    if used.ours:
        return None

    @contextmanager
    def opened(model: Model) -> Iterator[engines.Engine]:
        with worker(used, model, dtype, rows) as it:
            yield engines.Engine(rows=rows, length=length, run=partial(process.nll, it))

    return opened


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
        return partial(endpoint.write, used.name, model.path, used.endpoint)
    folders = writing.small_files(model)
    ends = generating.end_ids(sitting, folders, model.vocabulary, read_manners(folders, model.vocabulary).end_ids)
    return lambda prompts, sampling: process.write(loaded(), prompts, sampling, ends)
