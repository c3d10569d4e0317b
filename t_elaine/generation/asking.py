"""Questions in, answers out, with what is needed to get them again: JSON Lines as they come, and text for a reader."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from t_elaine import paths
from t_elaine.errors import UserError
from t_elaine.generation.batch import Engine
from t_elaine.generation.engine import generate
from t_elaine.generation.requests import Request
from t_elaine.generation.sampling import Sampling
from t_elaine.generation.templates import Template

PACKAGES = ("t-elaine", "jax", "jaxlib", "numpy")


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something to be asked: its language ("" where unknown), its number there, its text."""

    language: str = ""
    number: int
    text: str

    @property
    def name(self) -> str:
        return f"{self.language} {self.number}".strip()


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A shipped set of questions, with the template and the sampling that go with it."""

    items: tuple[Item, ...]
    template: str
    sampling: Sampling


def load_questions(name: str) -> Questions:
    """A set of data_tasks/questions.

    Raises:
        UserError: there is none of that name.
    """
    folder = paths.shipped("data_tasks") / "questions"
    path = folder / f"{name}.json"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.json")))
        raise UserError(f"no questions are called {name!r}", "generate.questions", f"give one of: {there}")
    found = json.loads(path.read_text(encoding="utf-8"))
    items = [
        Item(language=language, number=number, text=text)
        for language, texts in found["questions"].items()
        for number, text in enumerate(texts, 1)
    ]
    sampling = Sampling(**{**found["sampling"], "stop": tuple(found["sampling"]["stop"])})
    return Questions(items=tuple(items), template=found["template"], sampling=sampling)


def read_prompts(path: str) -> list[str]:
    """Prompts of a file: a line each; of a .jsonl file the field `prompt` of each line.

    Raises:
        UserError: no such file, a line that is no such record, or nothing in it.
    """
    try:
        every = enumerate((line.rstrip("\r") for line in paths.read_text(path).split("\n")), 1)
        lines = [(number, line) for number, line in every if line.strip()]
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise UserError(
            f"the prompts cannot be read: {error}", path, "give a file in UTF-8, a prompt a line"
        ) from error
    if not lines:
        raise UserError("there is no prompt in it", path, "write one a line")
    is_json = path.endswith(".jsonl")
    return [_prompt_of(line, f"{path}:{number}") if is_json else line for number, line in lines]


def _prompt_of(line: str, where: str) -> str:
    """The field `prompt` of a line of JSON."""
    mend = 'each line is a JSON object with the text under "prompt", as {"prompt": "What is a stroke?"}'
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"this line is not JSON: {error}", where, mend) from error
    if not isinstance(record, dict):
        raise UserError(f"this line is no JSON object: {line[:60]}", where, mend)
    if "prompt" not in record:
        has = ", ".join(map(repr, record)) or "nothing"
        raise UserError(f'this record has no "prompt": it has {has}', where, mend)
    if not isinstance(record["prompt"], str):
        raise UserError(f'"prompt" is no text: {str(record["prompt"])[:60]}', where, mend)
    return record["prompt"]


def ask(
    engine: Engine,
    items: Sequence[Item],
    template: Template,
    sampling: Sampling,
    end_ids: tuple[int, ...],
    about: Mapping[str, Any],
    done: Callable[[int], None] = lambda tokens: None,
) -> Iterator[dict[str, Any]]:
    """Ask all items, and yield a record of each answer as it is finished.

    Args:
        engine: what writes.
        items: what is asked, each in a conversation of its own.
        template: message → tokens.
        sampling: how.
        end_ids: what ends an answer.
        about: what every record says of model and settings.
        done: told the tokens written.
    """
    prompts = [template([{"role": "user", "content": item.text}]) for item in items]
    requests = [
        Request(tokens=tokens, sampling=sampling, end_ids=end_ids, number=number, name=f"prompt {item.name}")
        for number, (item, tokens) in enumerate(zip(items, prompts, strict=True))
    ]
    for answer in generate(engine, requests, done):
        item, tokens = items[answer.index], prompts[answer.index]
        yield {
            "language": item.language,
            "number": item.number,
            "prompt": item.text,
            "answer": answer.text,
            "finish": answer.finish,
            "new_tokens": len(answer.tokens),
            "mean_logprob": round(float(answer.logprobs.mean()), 5),
            "prompt_tokens": len(tokens),
            "prompt_sha256": hashlib.sha256(np.asarray(tokens, "<i4").tobytes()).hexdigest(),
            "sampling": asdict(sampling),
            "end_ids": list(end_ids),
            **about,
        }


def versions() -> dict[str, str]:
    """Of what computes an answer."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def readable(record: Mapping[str, Any]) -> str:
    """An answer for a reader."""
    name = f"{record['language']} {record['number']}".strip()
    told = f"{record['new_tokens']} tokens, {record['finish']}"
    return f"[{name}] {record['prompt']}\n{record['answer'].strip()}\n({told})\n"
