"""A conversation in the terminal: streamed answers, a history that fits into the context, Ctrl-C, Ctrl-D."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from t_elaine.errors import UserError
from t_elaine.generation.batch import Engine
from t_elaine.generation.engine import stream
from t_elaine.generation.requests import Request
from t_elaine.generation.sampling import Sampling
from t_elaine.generation.templates import Message, Template

GREETING = (
    "Write and press Enter. Ctrl-C ends an answer, Ctrl-D leaves. A language model errs: this is no medical advice."
)


def converse(
    engine: Engine,
    template: Template,
    sampling: Sampling,
    end_ids: tuple[int, ...],
    read: Callable[[str], str] = input,
    show: Callable[[str], None] = lambda text: print(text, end="", flush=True),
) -> list[Message]:
    """Talk until the input ends; returns what was said.

    Args:
        engine: what writes.
        template: messages → tokens.
        sampling: how; each answer draws with a seed of its own.
        end_ids: what ends an answer.
        read: asks for a line; EOFError ends the conversation, KeyboardInterrupt drops the line.
        show: prints a piece of text.
    """
    said: list[Message] = []
    show(GREETING + "\n")
    while True:
        try:
            text = read("> ")
        except EOFError:
            show("\n")
            return said
        except KeyboardInterrupt as interrupt:
            _only_the_keyboard(interrupt)
            show("\n")
            continue
        if not text.strip():
            continue
        said.append({"role": "user", "content": text})
        try:
            tokens = fitting(said, template, engine.config.max_position, sampling.max_new)
        except UserError as error:
            said.pop()
            show(error.text() + "\n")
            continue
        asked = Request(
            tokens=tokens, sampling=replace(sampling, seed=(sampling.seed + len(said)) % 2**32), end_ids=end_ids
        )
        said.append({"role": "assistant", "content": _answer(engine, asked, show)})


def _answer(engine: Engine, request: Request, show: Callable[[str], None]) -> str:
    """Stream an answer; what was written when Ctrl-C came is the answer then."""
    pieces: list[str] = []
    try:
        for piece in stream(engine, request):
            pieces.append(piece)
            show(piece)
    except KeyboardInterrupt as interrupt:
        _only_the_keyboard(interrupt)
        show(" …")
    show("\n")
    return "".join(pieces)


def _only_the_keyboard(interrupt: KeyboardInterrupt) -> None:
    """SIGTERM comes as a kind of KeyboardInterrupt and ends the program."""
    if type(interrupt) is not KeyboardInterrupt:
        raise interrupt


def fitting(said: list[Message], template: Template, max_position: int, max_new: int) -> np.ndarray:
    """The tokens of the conversation; its oldest pairs are forgotten where it leaves no room for an answer.

    Room is `max_new`, or half of the context where that is less. `said` itself is shortened.

    Raises:
        UserError: the last message alone leaves no room.
    """
    room = max_position - min(max_new, max_position // 2)
    tokens = template(said)
    while len(tokens) > room and len(said) > 2:
        del said[:2]
        tokens = template(said)
    if len(tokens) > room:
        what = f"the message has {len(tokens)} tokens, of {max_position} that the model sees {room} are for it"
        raise UserError(what, "chat", "write less at a time")
    return tokens
