"""From messages to the tokens of a prompt: ELAINE's template, a model's own chat template, or no template at all.

Special tokens come from the template alone. A special token's text inside a message stays text: nobody can end a turn
by writing that he does.
"""

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t_elaine.errors import UserError
from t_elaine.generation.manners import Coder, Manners

Message = Mapping[str, str]  # role ("system", "user", "assistant") and content
Template = Callable[[Sequence[Message]], np.ndarray]
NAMES = ("elaine", "chat", "none")
EOT = "<|eot_id|>"
MARKERS = {"user": "##User##\n", "assistant": "##Assistant##\n"}
PRIVATE = range(0xE000, 0xF900)  # characters that no text means anything by


def choose(name: str, vocabulary: Coder, manners: Manners) -> tuple[str, Template]:
    """The template called so, and its name; "" takes the model's own, or none where it has none.

    Raises:
        UserError: no such template, or this model cannot use it.
    """
    name = name or ("chat" if manners.chat_template else "none")
    if name not in NAMES:
        raise UserError(f"no template is called {name!r}", "generate.template", f"give one of {', '.join(NAMES)}")
    if name == "elaine" and EOT not in vocabulary.special:
        mend = "give --template=chat or none, or a model of the Llama 3 family"
        raise UserError(
            f"ELAINE's template ends turns by {EOT}, which this vocabulary lacks", "generate.template", mend
        )
    if name == "chat" and not manners.chat_template:
        mend = "give --template=none or elaine, or put chat_template.jinja beside the tokenizer"
        raise UserError("this model has no chat template", "generate.template", mend)
    made = {"elaine": _elaine, "chat": _chat, "none": _none}[name]
    return name, lambda messages: made(messages, vocabulary, manners)


def _none(messages: Sequence[Message], vocabulary: Coder, manners: Manners) -> np.ndarray:
    """The contents as they are, a line each."""
    text = "\n".join(message["content"] for message in messages)
    return np.array([*manners.before, *vocabulary.encode(text).tolist()], np.int32)


def _elaine(messages: Sequence[Message], vocabulary: Coder, manners: Manners) -> np.ndarray:
    """`##User##\\n…<|eot_id|>##Assistant##\\n`, BOS once (kenyano/Llama3-ELAINE-medLLM-instruct-8B_v0.1, sample code).

    Markers and contents are encoded by themselves, so that no line end of a content merges with a marker's. There is no
    place for a system message; one would come out as the user's there, and is left out here.
    """
    tokens = [] if vocabulary.bos is None else [vocabulary.bos]
    for message in messages:
        if message["role"] in MARKERS:
            tokens += vocabulary.encode(MARKERS[message["role"]]).tolist()
            tokens += [*vocabulary.encode(message["content"].lstrip("\r\n")).tolist(), vocabulary.special[EOT]]
    return np.array([*tokens, *vocabulary.encode(MARKERS["assistant"]).tolist()], np.int32)


def _chat(messages: Sequence[Message], vocabulary: Coder, manners: Manners) -> np.ndarray:
    contents = "".join(message["content"] for message in messages) + manners.chat_template
    mark = next(character for character in map(chr, PRIVATE) if character not in contents)
    specials = re.compile("|".join(re.escape(text) for text in sorted(vocabulary.special, key=len, reverse=True)))
    # Broken up by the mark, which goes again before the text is encoded.
    broken = [
        {**message, "content": specials.sub(lambda found: mark.join(found[0]), message["content"])}
        for message in messages
    ]
    tokens: list[int] = []
    at, text = 0, render(manners.chat_template, broken, manners.names)
    for found in specials.finditer(text):
        tokens += [*_plain(text[at : found.start()], mark, vocabulary), vocabulary.special[found[0]]]
        at = found.end()
    return np.array([*tokens, *_plain(text[at:], mark, vocabulary)], np.int32)


def _plain(text: str, mark: str, vocabulary: Coder) -> list[int]:
    text = text.replace(mark, "")
    return vocabulary.encode(text).tolist() if text else []


def render(template: str, messages: Sequence[Message], names: Mapping[str, str]) -> str:
    """A chat template's text up to where the assistant speaks, rendered as `transformers` does, in Jinja's sandbox.

    Raises:
        UserError: the template is broken, does what the sandbox forbids, or refuses these messages.
    """
    import jinja2
    import jinja2.sandbox

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda x, **options: json.dumps(x, ensure_ascii=False, **options)
    now: Callable[[str], str] = lambda form: datetime.datetime.now().strftime(form)  # noqa: E731
    environment.globals |= {"raise_exception": refuse, "strftime_now": now}
    values: dict[str, Any] = {"messages": [dict(message) for message in messages], "add_generation_prompt": True}
    try:
        return environment.from_string(template).render(**names, **values, tools=None, documents=None)
    except jinja2.exceptions.TemplateError as error:
        mend = "give --template=none, or mend chat_template.jinja beside the tokenizer"
        raise UserError(f"the chat template fails: {error}", "chat_template", mend) from error
