"""Log-likelihoods of token ids from an OpenAI-compatible server: a completion of one token that echoes its prompt.

`POST …/v1/completions` with the ids as prompt, `echo`, `logprobs` and `max_tokens` 1 (to some servers 0 means as many
as fit). Not every server knows all that: a reply counts only if it has one log-probability a token that was sent, the
first null, and at most one more, of the token that was written. Ids belong to a vocabulary, and a server gives none:
`check` finds out whether the one at hand is the server's. No exam is known here.
"""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from t_elaine.errors import UserError
from t_elaine.peers.patience import SHOWN, TOO_LONG, Endpoint, Passing, address, each, patiently, request

# What a server must encode as the vocabulary does: letters, digits, signs and blanks of three languages. They begin
# with a letter of one byte: how servers show the parts of a character depends on what stands before.
TEXTS = {
    "en": "Insulin lowers the blood's glucose;\n  126 mg/dL after 8 h of fasting is too much.",
    "ja": "Q. インスリンは血糖を下げる。空腹時の血糖値が126 mg/dL以上ならば、糖尿病が疑われる。",
    "zh": "Q. 胰岛素降低血糖，空腹血糖≥7.0 mmol/L者，应考虑糖尿病。",
}
WRITTEN = 1  # tokens after the prompt
ABOVE = 1e-3  # a log-probability may be so much above 0 by rounding
MEND = (
    "ask a server that gives log-probabilities of the prompt (vLLM's does), or give the model's folder to "
    "--engine=vllm, transformers or t-elaine; --protocols=official,repaired need none"
)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a server says: log-probabilities and texts of all tokens, the prompt's number of them; None: nothing."""

    logprobs: list[Any] | None
    tokens: list[Any] | None
    count: int | None


def score(
    engine: str, model: str, settings: Endpoint, pieces: Sequence[np.ndarray], names: Sequence[str]
) -> Iterator[tuple[int, np.ndarray]]:
    """(place, negative log-likelihoods) of each piece as it comes: float32 [n-1], nats of the tokens after its first.

    Args:
        engine, model, settings: who is asked, and how.
        pieces: int arrays [n] of ids.
        names: what a line about a wait, or an error, calls each.

    Raises:
        UserError: the server refuses a piece, cannot be had after all tries, or does not score what it was sent. Pieces
            that were under way are waited for and yielded before.
    """

    def one(place: int, stopped: threading.Event) -> np.ndarray:
        ids = [int(i) for i in pieces[place]]
        reply = _ask(engine, model, settings, ids, names[place], stopped)
        return -np.array(_scored(reply, len(ids), f"{names[place]} ({address(engine)})")[1:], np.float32)

    return each(len(pieces), one, settings)


def check(
    engine: str, model: str, settings: Endpoint, encode: Callable[[str], Sequence[int] | np.ndarray], source: str
) -> None:
    """Refuse a server that encodes texts otherwise than `encode`; it may put one token before them (BOS).

    Args:
        engine, model, settings: who is asked, and how.
        encode: text → ids, without specials.
        source: where the vocabulary lies, for the message.

    Raises:
        UserError: numbers of tokens differ, or tokens where the server shows them, or it cannot score ids.
    """
    before: set[int] = set()
    mend = f"give the vocabulary of the model that is served as {model}: --vocabulary=FOLDER of its tokenizer"
    for language, text in TEXTS.items():
        ids, name = [int(i) for i in encode(text)], f"the check of the vocabulary, {language}"

        def agree(count: int, text: str = text, ids: list[int] = ids) -> None:
            before.add(count - len(ids))
            if before not in ({0}, {1}):
                what = f"the server encodes {text!r} into {count} tokens, the vocabulary into {len(ids)}"
                raise UserError(what, source, mend)

        by_text = _ask(engine, model, settings, text, name, threading.Event())
        if by_text.count is not None:
            agree(by_text.count)  # before ids go there, which it might not have
        by_ids = _ask(engine, model, settings, ids, name, threading.Event())
        _scored(by_ids, len(ids), f"{name} ({address(engine)})")
        if by_text.count is None:  # as many are written after both
            agree(len(by_text.logprobs or ()) - len(by_ids.logprobs or ()) + len(ids))
        theirs, ours = (by_text.tokens or [])[min(before) :], (by_ids.tokens or [])[: len(ids)]
        # How a first token is shown may depend on what stands before it.
        for at, (a, b) in enumerate(zip(theirs[1:], ours[1:], strict=False), 1):
            if a != b:
                what = f"the server encodes {text!r} otherwise: its token {at} is {a!r}, the vocabulary's {b!r}"
                raise UserError(what, source, mend)


def _ask(
    engine: str, model: str, settings: Endpoint, prompt: str | list[int], name: str, stopped: threading.Event
) -> Reply:
    url = f"{address(engine)}/completions"
    body = {"model": model, "prompt": prompt, "max_tokens": WRITTEN, "echo": True, "logprobs": 1, "temperature": 0.0}
    try:
        return patiently(lambda: _reply(request(url, body, settings)), settings, stopped, name)
    except Passing as error:
        mend = "when the server answers again, give the same command again: what was scored is kept"
        what = f"no log-likelihoods after {settings.tries} tries: {error.told}"
        raise UserError(what, f"{name} ({url})", mend) from error
    except UserError as error:
        mend = MEND if any(word in error.what for word in ("echo", "logprobs")) else error.mend
        if any(words in error.what.lower() for words in TOO_LONG):
            mend = f"give evaluate.sequence_length, at most the server's context less 2 (here: {len(prompt)} tokens)"
        raise UserError(error.what, f"{name} ({url})", mend) from error


def _reply(content: bytes) -> Reply:
    try:
        found = json.loads(content)
        told = found["choices"][0].get("logprobs")
        count = (found.get("usage") or {}).get("prompt_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        shown = content[:SHOWN].decode(errors="replace")
        raise Passing(f"what it sent is no completion ({type(error).__name__}): {shown!r}") from error
    told = told if isinstance(told, dict) else {}
    logprobs, tokens = (told[key] if isinstance(told.get(key), list) else None for key in ("token_logprobs", "tokens"))
    return Reply(logprobs=logprobs, tokens=tokens, count=count if isinstance(count, int) else None)


def _scored(reply: Reply, count: int, where: str) -> list[Any]:
    """The log-probabilities of a prompt of `count` tokens, null and then numbers; else a UserError."""
    values = reply.logprobs
    if values is None:
        raise UserError("the server sends no token_logprobs: it does not know `echo` with `logprobs`", where, MEND)
    if reply.count not in (None, count):
        what = f"the server counts {reply.count} tokens of the {count} that it was sent"
        raise UserError(what, where, MEND)
    if not count <= len(values) <= count + WRITTEN:
        what = f"the server sends {len(values)} log-probabilities for the {count} tokens that it was sent"
        raise UserError(what + (": it ignores `echo`" if len(values) <= WRITTEN else ""), where, MEND)
    if values[0] is not None:
        what = f"the server gives the first token a log-probability ({values[0]!r}), and nothing stands before it: "
        raise UserError(what + "these are not the prompt's", where, MEND)
    for at, value in enumerate(values[1:count], 1):
        number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
        if not number or value > ABOVE:
            raise UserError(f"the log-probability of token {at} of {count} is {json.dumps(value)}", where, MEND)
    return values[:count]
