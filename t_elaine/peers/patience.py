"""Asking an OpenAI-compatible server over HTTP: several requests at a time, again where it throttles or is gone.

Each wait is told on standard error. What a request asks for is `endpoint`'s (answers) and `likelihoods`'s business.
"""

import email.utils
import http.client
import json
import math
import os
import random
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

from t_elaine.errors import UserError

# Throttled, or a server (or what stands before it) that is not there for the moment.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
LONGEST_WAIT = 60.0
# What servers say of a prompt that is longer than the context, in lower case.
TOO_LONG = ("context_length_exceeded", "context length", "maximum input length", "longer than the maximum model length")
SHOWN = 300  # characters of a server's own message
Found = TypeVar("Found")


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


class Passing(Exception):
    """What may be gone when asked again. `after`: seconds that the server asks to wait, 0 if it says nothing."""

    def __init__(self, told: str, after: float = 0.0) -> None:
        self.told, self.after = told, after
        super().__init__(told)


@dataclass
class Seldom:
    """Says lines on standard error, at most one in `every` seconds; the next one tells how many were left out."""

    every: float = 3.0
    last: float = -math.inf
    left: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, line: str) -> None:
        with self.lock:
            now = time.monotonic()
            if now - self.last < self.every:
                self.left += 1
                return
            more = f" ({self.left} other waits since the last line)" if self.left else ""
            self.last, self.left = now, 0
            print(line + more, file=sys.stderr, flush=True)


# One for all requests of the process: a server that is gone is gone for all of them.
say = Seldom()


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


def each(count: int, one: Callable[[int, threading.Event], Found], settings: Endpoint) -> Iterator[tuple[int, Found]]:
    """(place, what `one` finds) for the places below `count` as it comes, `settings.concurrency` under way at once.

    Args:
        count: of places.
        one: (place, set where nobody waits any more) → what is found.
        settings: how the server is asked.

    Raises:
        UserError: the first that `one` raises. What was under way is waited for and yielded before.
    """
    stopped, failed = threading.Event(), None
    with ThreadPoolExecutor(settings.concurrency) as pool:
        places = iter(range(count))
        running: dict[Future[Found], int] = {}
        try:
            while True:
                while failed is None and len(running) < settings.concurrency and (at := next(places, None)) is not None:
                    running[pool.submit(one, at, stopped)] = at
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    place = running.pop(future)
                    try:
                        yield place, future.result()
                    except UserError as error:
                        failed = failed or error
        finally:
            stopped.set()
    if failed:
        raise failed


def patiently(ask: Callable[[], Found], settings: Endpoint, stopped: threading.Event, item: str) -> Found:
    """What `ask` gives, again and again while what it raises may pass; no waiting once `stopped`.

    Args:
        ask: one request.
        settings: how often.
        stopped: set where nobody waits any more.
        item: what is asked for, for the line that tells of a wait.

    Raises:
        Passing: the last of them.
    """
    for tried in range(1, settings.tries + 1):
        try:
            return ask()
        except Passing as error:
            if tried == settings.tries or stopped.is_set():
                raise
            # All that were refused together should not come back together.
            pause = min(error.after or 2.0 ** (tried - 1) * random.uniform(0.75, 1.25), LONGEST_WAIT)
            told = " ".join(error.told.split())
            say(f"{item}: {told}; asked again in {pause:.1f} s, try {tried + 1} of {settings.tries}")
            stopped.wait(pause)
    raise AssertionError("a loop over at least one try")


def request(url: str, body: dict[str, Any] | None, settings: Endpoint) -> bytes:
    """One request's content; what may pass is `Passing`, what will not is a UserError."""
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
            raise Passing(told, _seconds(error.headers.get("Retry-After"))) from error
        raise UserError(f"the server refuses: {told}", url, _mend(error.code, settings)) from error
    except TimeoutError:
        raise Passing(f"nothing came within {settings.timeout:g} s") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise Passing(str(getattr(error, "reason", "") or error or type(error).__name__)) from error


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
    return "mend what it says; what was answered or scored is kept, the same command goes on"


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
