"""How an exam becomes token rows: the protocol `likelihood`, prompts in data_tasks/protocols/likelihood.json.

A question gives one request an option and way of asking: the option's text after the question alone (`text`), or its
letter after the question with all options listed (`letter`). The log-likelihood of the continuation is what counts; no
answer is generated and none is parsed. No model here.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from t_elaine import paths
from t_elaine.errors import UserError
from t_elaine.evaluation.sitting import texts_sha256
from t_elaine.evaluation.suites import Question

WAYS = ("text", "letter")


class Encoder(Protocol):
    """What a protocol needs of a vocabulary; `t_elaine.data.vocabulary.Vocabulary` is one."""

    def encode_batch(self, texts: list[str], /) -> list[np.ndarray]: ...


@dataclass(frozen=True, kw_only=True)
class LikelihoodProtocol:
    """The templates and their identity. `sha256` is the data file's digest."""

    templates: Mapping[str, Any]
    sha256: str

    @property
    def headline(self) -> str:
        """The score that stands for the exam in tables."""
        return str(self.templates["headline"])


@dataclass(frozen=True, kw_only=True)
class Request:
    """Tokens to be scored: int32 [n+1]; the targets from `start` on are the continuation.

    `bytes`: UTF-8 bytes of the continuation. `cut`: the prompt's beginning did not fit and was left out.
    """

    tokens: np.ndarray
    start: int
    bytes: int
    cut: bool


def load_protocol(name: str = "likelihood") -> LikelihoodProtocol:
    """Read the protocol's data file.

    Raises:
        UserError: there is no such protocol, or it is one that generates.
    """
    folder = paths.shipped("data_tasks") / "protocols"
    # A protocol that scores options says which of its scores stands for the exam.
    there = {p.stem: json.loads(p.read_bytes()) for p in sorted(folder.glob("*.json"))}
    scoring = {stem: templates for stem, templates in there.items() if "headline" in templates}
    if name not in scoring:
        what = "generates answers and scores no options" if name in there else "is not there"
        raise UserError(f"the protocol {name!r} {what}", "protocol", f"give one of: {', '.join(scoring)}")
    digest = hashlib.sha256((folder / f"{name}.json").read_bytes()).hexdigest()
    return LikelihoodProtocol(templates=scoring[name], sha256=digest)


def texts(protocol: LikelihoodProtocol, way: str, language: str, question: Question) -> tuple[str, list[str]]:
    """(prompt, a continuation for each option). Languages without a template of their own take the English one."""
    templates = protocol.templates[way]
    template, letters = templates.get(language, templates["en"]), protocol.templates["letters"]
    # str.replace and not str.format: questions hold braces.
    prompt = template["prompt"].replace("{question}", question.text)
    if way == "text":
        return prompt, [template["continuation"].replace("{option}", choice) for choice in question.choices]
    lines = [
        template["line"].replace("{letter}", letters[i]).replace("{option}", choice)
        for i, choice in enumerate(question.choices)
    ]
    prompt = prompt.replace("{options}", "\n".join(lines))
    return prompt, [template["continuation"].replace("{letter}", letters[i]) for i in range(len(lines))]


def prompts_sha256(protocol: LikelihoodProtocol, language: str, questions: Sequence[Question]) -> str:
    """Of all prompts and the options behind them, both ways of asking, as UTF-8, a zero byte after each."""
    asked = (texts(protocol, way, language, question) for way in WAYS for question in questions)
    return texts_sha256(text for prompt, continuations in asked for text in (prompt, *continuations))


def requests(
    encoder: Encoder, prompt: str, continuations: Sequence[str], before: Sequence[int], length: int
) -> list[Request]:
    """Tokens of one question's options.

    Prompt and continuation are encoded as one text, since tokens may merge across the border. What is scored begins
    where the first of the encodings leaves the prompt's own, at the same token for all options: so no option has a
    token more or less of the prompt counted.

    Args:
        encoder: the model's vocabulary.
        prompt: text before the options.
        continuations: one text an option.
        before: ids put in front of the prompt (BOS, or nothing).
        length: targets that fit in a row; of a longer prompt the end is kept, and `before`.

    Raises:
        UserError: an option alone is longer than a row.
    """
    encoded = encoder.encode_batch([prompt, *(prompt + continuation for continuation in continuations)])
    alone, *wholes = [ids.astype(np.int32) for ids in encoded]
    border = min(common_prefix(alone, whole) for whole in wholes)
    head = np.asarray(before, np.int32)
    if not border and not len(head):
        mend = "give a template with some text before the option"
        raise UserError("the prompt has no token of its own", "protocol", mend)
    made = []
    for whole, text in zip(wholes, continuations, strict=True):
        scored = len(whole) - border
        room = length + 1 - len(head) - scored
        if room < (0 if len(head) else 1):
            what = f"an option has {scored} tokens, a row {length}"
            raise UserError(what, "evaluate.sequence_length", f"give at least {2 * scored}")
        context = whole[max(0, border - room) : border]
        tokens = np.concatenate([head, context, whole[border:]])
        made.append(
            Request(tokens=tokens, start=len(tokens) - scored, bytes=len(text.encode()), cut=len(context) < border)
        )
    return made


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading tokens two arrays share."""
    n = min(len(a), len(b))
    differing = np.flatnonzero(a[:n] != b[:n])
    return int(differing[0]) if len(differing) else n
