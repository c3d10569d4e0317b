"""An OpenAI-compatible server as an engine that answers: `POST …/v1/completions`; how it is asked is `patience`'s.

Prompts go as text: the server's tokenizer encodes them. What ends an answer besides the stop strings is the server's
own (vLLM: generation_config.json and EOS). No exam is known here: an error says the prompt's place, `answers` its item.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from t_elaine.errors import UserError
from t_elaine.generation.requests import NoAnswer
from t_elaine.generation.sampling import Sampling
from t_elaine.peers.patience import SHOWN, TOO_LONG, Endpoint, Passing, address, each, patiently, request

STOPS = 4  # stop strings that the interface takes


def describe(engine: str, model: str, settings: Endpoint) -> dict[str, Any]:
    """What the server says of the model that it knows by this name: the fields of /v1/models that tell models apart.

    Raises:
        UserError: it cannot be asked, or has no model of this name.
    """
    url = f"{address(engine)}/models"
    try:
        content = patiently(lambda: request(url, None, settings), settings, threading.Event(), "its list of models")
        found = json.loads(content)["data"]
        names = {str(entry["id"]): entry for entry in found}
    except Passing as error:
        mend = "start the server, or mend the address"
        raise UserError(f"the server cannot be asked what it serves: {error.told}", url, mend) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"this is no OpenAI-compatible server: {error!r}", url, "mend the address") from error
    if model not in names:
        mend = f"give --checkpoint= one of: {', '.join(sorted(names)[:20])}"
        raise UserError(f"the server has no model called {model!r}", url, mend)
    return {
        key: names[model][key] for key in ("id", "root", "parent", "owned_by", "max_model_len") if key in names[model]
    }


def write(
    engine: str,
    model: str,
    settings: Endpoint,
    prompts: Sequence[str],
    sampling: Sampling,
    names: Sequence[str] = (),
) -> Iterator[tuple[int, str | None]]:
    """(place, answer) of each prompt as it comes; None where the server says that it is longer than the context.

    Args:
        engine, model, settings: who is asked, and how.
        prompts: texts.
        sampling: how answers are written.
        names: what a line about a wait calls each prompt.

    Raises:
        NoAnswer: the server refuses a prompt or cannot be had after all tries. Answers that were under way are waited
            for and yielded before.
    """
    url = f"{address(engine)}/completions"
    body = {"model": model, "max_tokens": sampling.max_new, "temperature": sampling.temperature}
    body |= {"top_p": sampling.top_p, "seed": sampling.seed, "stream": False}
    body |= {"stop": list(sampling.stop[:STOPS])} if sampling.stop else {}

    def one(place: int, stopped: threading.Event) -> str | None:
        asked, name = {**body, "prompt": prompts[place]}, names[place] if names else f"prompt {place}"
        try:
            text = patiently(lambda: _text(request(url, asked, settings)), settings, stopped, name)
        except Passing as error:
            mend = "when the server answers again, give the same command again: what was answered is kept"
            raise NoAnswer(f"no answer after {settings.tries} tries: {error.told}", url, mend, place) from error
        except UserError as error:
            if any(words in error.what.lower() for words in TOO_LONG):
                return None
            raise NoAnswer(error.what, url, error.mend, place) from error
        ends = [at for at in (text.find(stop) for stop in sampling.stop) if at >= 0]
        return text[: min(ends)] if ends else text

    return each(len(prompts), one, settings)


def _text(content: bytes) -> str:
    try:
        text = json.loads(content)["choices"][0]["text"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        shown = content[:SHOWN].decode(errors="replace")
        raise Passing(f"what it sent is no completion ({type(error).__name__}): {shown!r}") from error
    if not isinstance(text, str):
        raise Passing(f"the completion's text is {text!r}")
    return text
