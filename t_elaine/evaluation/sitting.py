"""An exam asked under a protocol that generates: its prompts and their hash, what an answer is judged to be.

The protocols (`official`, `repaired`, `jmedllm`, `mmedbench`) make sittings and judge answers; `answers` has them
written and keeps them; `grading` makes a score of them. The templates are data_tasks/protocols/<name>.json.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from t_elaine import paths
from t_elaine.evaluation.items import Exam, Item
from t_elaine.generation.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Rules:
    """A protocol's data file. `sha256`: its digest."""

    name: str
    data: Mapping[str, Any]
    sha256: str

    def sampling(self, language: str) -> Sampling:
        """How answers are written; what begins another question ends them, where the template says so."""
        return Sampling(**self.data["sampling"], stop=tuple(self.template(language).get("stop", ())))

    def template(self, language: str) -> Mapping[str, Any]:
        """Of a language; those without one of their own take the English one."""
        templates: Mapping[str, Mapping[str, Any]] = self.data["templates"]
        return templates.get(language, templates["en"])


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """What is asked.

    Attributes:
        protocol: name of the protocol that a score gets; a protocol of several templates adds a colon and the template.
        rules: where prompts and grading come from.
        exam: the whole exam.
        items: those that are asked, in the order of the file; each has its prompt in `prompts`.
        prompts: the text before each answer.
        sampling: how answers are written.
        shots: demonstrations before each item.
        excluded: reason → items that are not scored.
    """

    protocol: str
    rules: Rules
    exam: Exam
    items: tuple[Item, ...]
    prompts: tuple[str, ...]
    sampling: Sampling
    shots: int
    excluded: Mapping[str, int]

    @property
    def prompts_sha256(self) -> str:
        """Of all prompts as UTF-8, a zero byte after each."""
        return texts_sha256(self.prompts)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An answer judged.

    Attributes:
        prediction: what was read in it.
        right: what the accuracy counts.
        parsed: it is an answer of the kind asked for.
        marks: of 0 to 1, by other measures that the protocol has for this item.
    """

    prediction: str
    right: bool
    parsed: bool
    marks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Accuracies that need no model, under a protocol's own rules.

    Attributes:
        ceiling: the best that any answers can get.
        chance: drawn at random.
        majority: always the same answer, the best one; `always` is that answer.
    """

    ceiling: float
    chance: float
    majority: float
    always: str


@dataclass(frozen=True, kw_only=True)
class Judge:
    """How a protocol grades.

    Attributes:
        judge: an answer to an item.
        part: of the score that an item belongs to: "" for the headline, else the name of what is reported apart.
        baselines: of items.
    """

    judge: Callable[[Item, str | None], Judged]
    part: Callable[[Item], str]
    baselines: Callable[[tuple[Item, ...]], Baselines]


@functools.cache
def load_rules(name: str) -> Rules:
    """A protocol's data file."""
    content = (paths.shipped("data_tasks") / "protocols" / f"{name}.json").read_bytes()
    return Rules(name=name, data=json.loads(content), sha256=hashlib.sha256(content).hexdigest())


def texts_sha256(texts: Iterable[str]) -> str:
    """Of many texts as UTF-8, a zero byte after each."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def prompt_sha256(prompt: str) -> str:
    """Of one prompt's UTF-8."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def mean(values: Iterable[float]) -> float:
    """Of at least one value."""
    found = list(values)
    return sum(found) / len(found)
