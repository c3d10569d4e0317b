"""An OpenAI-compatible server as an engine: `POST …/v1/completions`, several at a time, again where it throttles.

Prompts go as text: the server's tokenizer encodes them. What ends an answer besides the stop strings is the server's
own (vLLM: generation_config.json and EOS). No exam is known here: an error says the prompt's place, `answers` its item.
"""

import email.utils
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from t_elaine.errors import UserError
from t_elaine.generation.requests import NoAnswer
from t_elaine.generation.sampling import Sampling

# Throttled, or a server (or what stands before it) that is not there for the moment.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
LONGEST_WAIT = 60.0
# What servers say of a prompt that is longer than the context, in lower case.
TOO_LONG = ("context_length_exceeded", "context length", "maximum input length", "longer than the maximum model length")
SHOWN = 300  # characters of a server's own message
STOPS = 4  # stop strings that the interface takes


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """How a server is asked.

    Args:
        concurrency: prompts that are under way at once.
        timeout: seconds that one answer may take.
        tries: how often a prompt is sent before the evaluation stops; between two of them it waits a second, then twice
            as long each time (at most a minute), or as long as the server says.
        key: name of the environment variable that holds the API key; without it none is sent.
    """

    concurrency: int = 8
    timeout: float = 300.0
    tries: int = 6
    key: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        for name in ("concurrency", "timeout", "tries"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", f"Endpoint.{name}", "give at least 1")


class _Passing(Exception):
    """What may be gone when asked again. `after`: seconds that the server asks to wait, 0 if it says nothing."""

    def __init__(self, told: str, after: float = 0.0) -> None:
        self.told, self.after = told, after
        super().__init__(told)


def address(engine: str) -> str:
    """The base of the interface, ending in /v1, of what a user gives: with or without it, or the full address.

    Raises:
        UserError: it names no host.
    """
    parts = urllib.parse.urlsplit(engine)
    if not parts.hostname:
        raise UserError("this address names no host", f"--engine={engine}", "give as http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/").removesuffix("/completions").rstrip("/")
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path or "/v1", "", ""))


def describe(engine: str, model: str, settings: Endpoint) -> dict[str, Any]:
    """What the server says of the model that it knows by this name: the fields of /v1/models that tell models apart.

    Raises:
        UserError: it cannot be asked, or has no model of this name.
    """
    url = f"{address(engine)}/models"
    try:
        content = _patiently(lambda: _request(url, None, settings), settings, threading.Event())
        found = json.loads(content)["data"]
        names = {str(entry["id"]): entry for entry in found}
    except _Passing as error:
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
    engine: str, model: str, settings: Endpoint, prompts: Sequence[str], sampling: Sampling
) -> Iterator[tuple[int, str | None]]:
    """(place, answer) of each prompt as it comes; None where the server says that it is longer than the context.

    Raises:
        NoAnswer: the server refuses a prompt or cannot be had after all tries. Answers that were under way are waited
            for and yielded before.
    """
    stopped = threading.Event()

    def one(place: int) -> str | None:
        return _answer(engine, model, settings, prompts[place], place, sampling, stopped)

    failed: NoAnswer | None = None
    with ThreadPoolExecutor(settings.concurrency) as pool:
        places = iter(range(len(prompts)))
        running: dict[Future[str | None], int] = {}
        try:
            while True:
                while failed is None and len(running) < settings.concurrency and (at := next(places, None)) is not None:
                    running[pool.submit(one, at)] = at
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    place = running.pop(future)
                    try:
                        yield place, future.result()
                    except NoAnswer as error:
                        failed = failed or error
        finally:
            stopped.set()
    if failed:
        raise failed


def _answer(
    engine: str,
    model: str,
    settings: Endpoint,
    prompt: str,
    place: int,
    sampling: Sampling,
    stopped: threading.Event,
) -> str | None:
    url = f"{address(engine)}/completions"
    body = {"model": model, "prompt": prompt, "max_tokens": sampling.max_new, "temperature": sampling.temperature}
    body |= {"top_p": sampling.top_p, "seed": sampling.seed, "stream": False}
    body |= {"stop": list(sampling.stop[:STOPS])} if sampling.stop else {}
    try:
        text = _patiently(lambda: _text(_request(url, body, settings)), settings, stopped)
    except _Passing as error:
        mend = "when the server answers again, give the same command again: what was answered is kept"
        raise NoAnswer(f"no answer after {settings.tries} tries: {error.told}", url, mend, place) from error
    except UserError as error:
        if any(words in error.what.lower() for words in TOO_LONG):
            return None
        raise NoAnswer(error.what, url, error.mend, place) from error
    ends = [at for at in (text.find(stop) for stop in sampling.stop) if at >= 0]
    return text[: min(ends)] if ends else text


def _text(content: bytes) -> str:
    try:
        text = json.loads(content)["choices"][0]["text"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        shown = content[:SHOWN].decode(errors="replace")
        raise _Passing(f"what it sent is no completion ({type(error).__name__}): {shown!r}") from error
    if not isinstance(text, str):
        raise _Passing(f"the completion's text is {text!r}")
    return text


def _patiently(ask: Callable[[], Any], settings: Endpoint, stopped: threading.Event) -> Any:
    """What `ask` gives, again and again while what it raises may pass; no waiting once `stopped`."""
    for tried in range(settings.tries):
        try:
            return ask()
        except _Passing as error:
            if tried + 1 == settings.tries or stopped.is_set():
                raise
            # All that were refused together should not come back together.
            pause = error.after or 2.0**tried * random.uniform(0.75, 1.25)
            stopped.wait(min(pause, LONGEST_WAIT))
    raise AssertionError("a loop over at least one try")


def _request(url: str, body: dict[str, Any] | None, settings: Endpoint) -> bytes:
    """One request's content; what may pass is `_Passing`, what will not is a UserError."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key := os.environ.get(settings.key):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=settings.timeout) as reply:
            return bytes(reply.read())
    except urllib.error.HTTPError as error:
        told = f"{error.code} {error.reason}: {_message(error)}"
        if error.code in PASSING:
            raise _Passing(told, _seconds(error.headers.get("Retry-After"))) from error
        raise UserError(f"the server refuses: {told}", url, _mend(error.code, settings)) from error
    except TimeoutError:
        raise _Passing(f"nothing came within {settings.timeout:g} s") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise _Passing(str(getattr(error, "reason", "") or error or type(error).__name__)) from error


def _message(error: urllib.error.HTTPError) -> str:
    content = error.read(1 << 16).decode(errors="replace")
    try:
        found = json.loads(content)
        inner = found.get("error", found)
        told = inner if isinstance(inner, str) else f"{inner.get('message', content)} {inner.get('code') or ''}"
    except (ValueError, AttributeError):
        told = content
    return " ".join(told.split())[:SHOWN]


def _mend(code: int, settings: Endpoint) -> str:
    if code in (401, 403):
        return f"put the server's API key into the environment variable {settings.key}"
    return "mend what it says; what was answered is kept, the same command goes on"


def _seconds(header: str | None) -> float:
    """Of a Retry-After: a number, or a date."""
    if not header:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
