"""An exam asked by likelihood: its options as token rows, and what an engine's figures of them come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from t_elaine.data.vocabulary import Vocabulary
from t_elaine.evaluation import protocols, scoring
from t_elaine.evaluation.engines import PieceEngine, Scorer, score
from t_elaine.evaluation.items import LETTERS
from t_elaine.evaluation.parts import NONE, Parts
from t_elaine.evaluation.progress import Done
from t_elaine.evaluation.protocols import LikelihoodProtocol, Request
from t_elaine.evaluation.suites import Question, Suite

# Questions whose options are packed together and kept together; an engine that packs nothing says its own number.
QUESTIONS = 128


@dataclass(frozen=True, kw_only=True)
class ExamScores:
    """A model's scores on one exam: by way of scoring, a list of options' scores a question; prompts that were cut."""

    scores: dict[str, list[list[float]]]
    cut: int
    first_prompt_ids: list[int]


@dataclass(frozen=True, kw_only=True)
class ExamRequests:
    """The requests of one exam: by way of asking, a list of options' requests a question."""

    ways: dict[str, list[list[Request]]]

    def flat(self) -> list[Request]:
        return [request for questions in self.ways.values() for options in questions for request in options]


def exam_requests(
    vocabulary: Vocabulary, suite: Suite, protocol: LikelihoodProtocol, before: Sequence[int], length: int
) -> ExamRequests:
    """Token rows of an exam for a vocabulary, with the ids `before` in front of each prompt."""
    ways: dict[str, list[list[Request]]] = {}
    for way in protocols.WAYS:
        ways[way] = [
            protocols.requests(
                vocabulary,
                *protocols.texts(protocol, way, suite.language, question),
                before=before,
                length=length,
            )
            for question in suite.questions
        ]
    return ExamRequests(ways=ways)


def sit(
    engine: Scorer, suite: Suite, exam: ExamRequests, done: Done = lambda tokens: None, parts: Parts = NONE
) -> ExamScores:
    """Score an exam: log-likelihoods of all options, then the three scores a question."""
    flat = exam.flat()
    likelihood: dict[str, list[list[float]]] = {way: [] for way in exam.ways}
    many = engine.questions if isinstance(engine, PieceEngine) else QUESTIONS
    for first in range(0, len(suite.questions), many):
        window = {way: questions[first : first + many] for way, questions in exam.ways.items()}
        names = _names(suite.name, suite.questions[first : first + many], tuple(window))
        tokens = sum(len(request.tokens) - 1 for request in ExamRequests(ways=window).flat())
        name = f"{suite.name}, questions from {first}"
        made = parts.take(name, partial(_log_likelihoods, engine, window, done, names), tokens, done)
        for way, found in made.items():
            likelihood[way] += found
    scores: dict[str, list[list[float]]] = {}
    for i in range(len(suite.questions)):
        options = exam.ways["text"][i]
        made = scoring.option_scores({way: likelihood[way][i] for way in likelihood}, [r.bytes for r in options])
        for name, values in made.items():
            scores.setdefault(name, []).append(values)
    return ExamScores(scores=scores, cut=sum(request.cut for request in flat), first_prompt_ids=flat[0].tokens.tolist())


def _names(exam: str, questions: Sequence[Question], ways: Sequence[str]) -> list[str]:
    """What an error calls each request, in the order of `ExamRequests.flat`."""
    options = [(question.id, LETTERS[i].upper()) for question in questions for i in range(len(question.choices))]
    return [f"{exam}, item {id!r}, option {letter} by {way}" for way in ways for id, letter in options]


def _log_likelihoods(
    engine: Scorer, ways: dict[str, list[list[Request]]], done: Done, names: Sequence[str]
) -> dict[str, list[list[float]]]:
    """Nats of each option, summed in float64."""
    results = score(engine, [request.tokens for request in ExamRequests(ways=ways).flat()], done, names)
    return {
        way: [
            [-float(next(results)[request.start - 1 :].astype(np.float64).sum()) for request in options]
            for options in questions
        ]
        for way, questions in ways.items()
    }
