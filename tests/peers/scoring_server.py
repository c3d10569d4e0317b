"""A stand-in server that scores ids as vLLM's does, and one rule of log-probabilities for it and for the tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from t_elaine.data.vocabulary import Vocabulary
from tests.peers.stand_in import Reply, refusal, reply


def logprob(ids: Sequence[int], at: int) -> float:
    """Of the token at `at`, after all that stands before it: made up, but of these ids alone."""
    return -float((sum(ids[:at]) * 31 + ids[at] * 17) % 97) / 16


def nll(ids: Sequence[int]) -> np.ndarray:
    """float32 [n-1]."""
    return np.array([-logprob(ids, at) for at in range(1, len(ids))], np.float32)


def scored(vocabulary: Vocabulary, body: dict[str, Any], before: Sequence[int] = (), **changes: Any) -> Reply:
    """The reply to a prompt of ids, or of text that is encoded with `before` in front; `changes` of its "logprobs"."""
    asked = body["prompt"]
    if (body["echo"], body["max_tokens"]) != (True, 1) or body["logprobs"] not in (0, 1):
        return refusal(400, f"not asked as vLLM's server is: {body}")
    ids = [*before, *vocabulary.encode(asked).tolist()] if isinstance(asked, str) else asked
    values = [None, *(logprob(ids, at) for at in range(1, len(ids))), -0.25]
    shown = [*(vocabulary.decode([i]) for i in ids), f" written after {len(ids)}"]
    told = {"token_logprobs": values, "tokens": shown, "top_logprobs": None} | changes
    return reply({"choices": [{"index": 0, "text": "", "logprobs": told}], "usage": {"prompt_tokens": len(ids)}})
