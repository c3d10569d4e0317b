"""What is asked of the engine and what comes back; what the requests of one call have in common. Computes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from t_elaine.errors import UserError
from t_elaine.generation.sampling import How, Sampling


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A prompt to be continued.

    Args:
        tokens: int [n], the whole prompt, with BOS where the model wants one.
        sampling: how.
        end_ids: tokens that end the answer.
        number: tells draws of one seed apart, so give the same one when a request is asked again by itself; None takes
            the place in the call.
        name: what an error calls it; "" takes the place.
    """

    tokens: np.ndarray
    sampling: Sampling = field(default_factory=Sampling)
    end_ids: tuple[int, ...] = ()
    number: int | None = None
    name: str = ""


class NoAnswer(UserError):
    """One of several prompts cannot be answered: a `UserError` that says which, by its `place` in the call."""

    def __init__(self, what: str, where: str, mend: str, place: int) -> None:
        super().__init__(what, where, mend)
        self.place = place

    def __reduce__(self) -> tuple[type["NoAnswer"], tuple[str, str, str, int]]:  # type: ignore[override]
        return NoAnswer, (self.what, self.where, self.mend, self.place)


@dataclass(frozen=True, kw_only=True, eq=False)
class Generated:
    """An answer.

    Attributes:
        index: place of its request in the call.
        tokens: int32, as they were chosen, the end id too.
        text: without special tokens, and cut before the stop string.
        logprobs: float32, of each token by the model's bare logits (before penalty, temperature and nucleus).
        finish: "stop" (a stop string), "end" (an end id) or "length" (max_new, or the context is full).
    """

    index: int
    tokens: np.ndarray
    text: str
    logprobs: np.ndarray
    finish: str


def check(requests: Sequence[Request], max_position: int, size: int) -> list[int]:
    """New tokens at most for each request: its own limit, or what the context leaves.

    Raises:
        UserError: a prompt is empty, fills the context, or holds ids that the model does not have.
    """
    limits = []
    for index, request in enumerate(requests):
        name = request.name or f"request {index}"
        n = len(request.tokens)
        if not n:
            raise UserError("the prompt is empty", name, "give at least one token, such as BOS")
        if n >= max_position:
            what = f"the prompt has {n} tokens, the model's context {max_position}"
            raise UserError(what, name, f"leave room for an answer: give at most {max_position - 1} tokens")
        ids = np.concatenate([request.tokens, np.asarray(request.end_ids, np.int64)])
        if ids.min() < 0 or ids.max() >= size:
            what = f"the id {ids.min() if ids.min() < 0 else ids.max()} is not one of the model's {size}"
            raise UserError(what, name, "encode with the model's own vocabulary")
        limits.append(min(request.sampling.max_new, max_position - n))
    return limits


def how(requests: Sequence[Request]) -> How:
    """What the requests together need of the arithmetic."""
    every = [request.sampling for request in requests]
    return How(
        sampled=any(s.temperature > 0 for s in every),
        nucleus=any(s.temperature > 0 and s.top_p < 1 for s in every),
        penalised=any(s.repetition_penalty != 1 for s in every),
        least=any(s.min_new > 0 for s in every),
    )


def common_prefix(prompts: Sequence[np.ndarray]) -> int:
    """Leading tokens that all prompts share; each keeps at least one of its own."""
    first, shared = prompts[0], min(len(prompt) for prompt in prompts) - 1
    for prompt in prompts[1:]:
        differing = np.flatnonzero(first[:shared] != prompt[:shared])
        shared = int(differing[0]) if len(differing) else shared
    return shared


def bucket(length: int, least: int = 16, octave: int = 4) -> int:
    """The next of a few sizes (`octave` between a number and its double): programs are compiled for these alone."""
    if length <= least:
        return least
    step = max(1, 2 ** ((length - 1).bit_length() - 1) // octave)
    return -(-length // step) * step


def pieces(length: int, longest: int, octave: int = 4) -> tuple[int, int]:
    """(how many, of how many tokens): how prompts of this length are read. `longest` is a power of two."""
    whole = bucket(length, 16, octave if length <= longest else 2)
    count = -(-whole // longest)
    return count, whole // count
