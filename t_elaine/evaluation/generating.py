"""Our own engine as one that answers exams: text to tokens and back. What answers mean is not known here."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from t_elaine import paths
from t_elaine.evaluation import exams
from t_elaine.evaluation.answers import Write
from t_elaine.evaluation.sitting import Sitting
from t_elaine.generation.batch import Engine
from t_elaine.generation.engine import generate
from t_elaine.generation.requests import Request
from t_elaine.generation.sampling import Sampling


class Coder(Protocol):
    """What prompts need of a vocabulary; `t_elaine.data.vocabulary.Vocabulary` is one."""

    @property
    def eos(self) -> int | None: ...

    def encode_batch(self, texts: list[str], /) -> list[np.ndarray]: ...


def in_process(
    engine: Engine,
    vocabulary: Coder,
    before: Sequence[int],
    end_ids: Sequence[int],
    done: Callable[[int], None] = lambda tokens: None,
) -> Write:
    """An engine for `answers.collect`.

    Args:
        engine: holds the model.
        vocabulary: the model's.
        before: ids in front of every prompt.
        end_ids: what ends an answer; of `end_ids`.
        done: told the tokens written.
    """

    def write(prompts: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, str | None]]:
        head = np.asarray(before, np.int64)
        encoded = [np.concatenate([head, ids]) for ids in vocabulary.encode_batch(list(prompts))]
        fits = [place for place, tokens in enumerate(encoded) if len(tokens) < engine.config.max_position]
        # As vLLM does: such a prompt gets no answer, and the exam goes on.
        yield from ((place, None) for place in sorted(set(range(len(encoded))) - set(fits)))
        asked = [
            Request(tokens=encoded[place], sampling=sampling, end_ids=tuple(end_ids), number=place) for place in fits
        ]
        for answer in generate(engine, asked, done):
            yield fits[answer.index], answer.text

    return write


def end_ids(sitting: Sitting, folders: Sequence[str], vocabulary: Coder, usual: Sequence[int]) -> tuple[int, ...]:
    """What ends an answer: `usual`, or `published_ends` for a protocol that does what a published evaluation does."""
    if sitting.protocol.partition(":")[0] in exams.PUBLISHED_ENDS:
        return published_ends(folders, vocabulary)
    return tuple(usual)


def published_ends(folders: Sequence[str], vocabulary: Coder) -> tuple[int, ...]:
    """The ids that end an answer in vLLM, which a published evaluation runs: generation_config.json's and EOS.

    A chat model's own end of turn is not among them where its files do not name it.

    Args:
        folders: of the model's small files; the first that has the file decides.
        vocabulary: the model's.
    """
    found: Any = None
    for folder in folders:
        path = paths.join(folder, "generation_config.json")
        if paths.exists(path):
            found = json.loads(paths.read_text(path)).get("eos_token_id")
            break
    named = {found} if isinstance(found, int) else set(found or ())
    return tuple(sorted(named if vocabulary.eos is None else named | {vocabulary.eos}))
