"""Answers as an engine writes them, kept item by item: an evaluation that is stopped goes on where it was.

One file of JSON Lines a model, exam and protocol: {"line", "id", "prompt_sha256", "answer"}, in the order of writing.
An answer counts while its item still has that prompt. The file stays beside the score. It judges nothing.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from t_elaine.errors import UserError
from t_elaine.evaluation.appending import Keeper, whole_lines
from t_elaine.evaluation.sitting import Sitting, prompt_sha256
from t_elaine.generation.requests import NoAnswer
from t_elaine.generation.sampling import Sampling

Write = Callable[[Sequence[str], Sampling], Iterator[tuple[int, str | None]]]
"""An engine: prompts and settings → (place of the prompt, its answer) in any order; None where it cannot answer, as a
prompt longer than the context. It yields each answer as soon as it is finished."""


def file_name(sitting: Sitting, identity: Any) -> str:
    """Of the answers' file: exam, protocol, engine, and a digest.

    Args:
        sitting: what is asked.
        identity: plain data of all else that answers depend on, as model, dtype, versions; its "engine", where it has
            one, stands in the name.
    """
    content = json.dumps([identity, asdict(sitting.sampling)], sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(content.encode()).hexdigest()
    engine = re.sub(r"[^A-Za-z0-9.-]+", "-", str(identity.get("engine", "")) if isinstance(identity, dict) else "")
    names = [sitting.exam.name.replace("/", "_"), sitting.protocol, *([engine] if engine else []), digest[:16]]
    return ".".join(names) + ".jsonl"


def collect(
    write: Write, sitting: Sitting, path: str, done: Callable[[int], None] = lambda answers: None
) -> dict[int, str | None]:
    """Answers to all items by line, those that the file has and those that are still to be written.

    Args:
        write: the engine; asked once, for what is missing, or not at all.
        sitting: what is asked.
        path: the file.
        done: told the answers that were there, then 1 for each new one.

    Raises:
        UserError: the file holds something else, or the engine says that it cannot answer an item, which is named;
            and whatever else the engine raises, after all it wrote is kept.
    """
    found = read(sitting, path)
    done(len(found))
    missing = [place for place, item in enumerate(sitting.items) if item.line not in found]
    if not missing:
        return found
    with Keeper(path) as keep:
        for place, answer in _naming(write, sitting, missing):
            item, prompt = sitting.items[missing[place]], sitting.prompts[missing[place]]
            if item.line in found:
                raise RuntimeError(f"the engine answered item {item.id!r} twice")
            found[item.line] = answer
            entry = {"line": item.line, "id": item.id, "prompt_sha256": prompt_sha256(prompt), "answer": answer}
            keep(json.dumps(entry, ensure_ascii=False) + "\n")
            done(1)
    unanswered = [item.id for item in sitting.items if item.line not in found]
    if unanswered:
        what = f"the engine gave no answer to {len(unanswered)} items, the first is {unanswered[0]!r}"
        raise UserError(what, sitting.exam.name, "give the same command again: what was answered is kept")
    return found


def _naming(write: Write, sitting: Sitting, missing: Sequence[int]) -> Iterator[tuple[int, str | None]]:
    """The engine's answers to the items that are missing; what it says of a prompt is said of the item."""
    try:
        yield from write([sitting.prompts[place] for place in missing], sitting.sampling)
    except NoAnswer as error:
        item = sitting.items[missing[error.place]]
        where = f"{sitting.exam.name}, {sitting.protocol}, line {item.line}, item {item.id!r} ({error.where})"
        raise UserError(error.what, where, error.mend) from error


def read(sitting: Sitting, path: str) -> dict[int, str | None]:
    """The answers of a file that belong to this sitting's prompts, by line.

    Raises:
        UserError: a line that is no answer, unless it is the last, which a kill may have cut.
    """
    wanted = dict(zip((item.line for item in sitting.items), map(prompt_sha256, sitting.prompts), strict=True))
    found = {}
    for number, line in enumerate(whole_lines(path), 1):
        try:
            entry = json.loads(line)
            if wanted.get(entry["line"]) == entry["prompt_sha256"]:
                found[int(entry["line"])] = entry["answer"]
        except (ValueError, KeyError, TypeError) as error:
            mend = "remove the file: its items are asked again"
            raise UserError(f"this is no kept answer: {error!r}", f"{path}:{number}", mend) from error
    return found
