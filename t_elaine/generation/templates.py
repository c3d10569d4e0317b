"""From messages to the tokens of a prompt: a named chat template, a model's own, or no template at all.

The templates are those that conversations are prepared with for training (data/chat_templates.py): what a model learnt
to go on from is what it is asked with. A special token's text inside a message stays text.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from t_elaine import paths
from t_elaine.data import chat_jinja, chat_templates, chat_tokens
from t_elaine.data.chat import Turn
from t_elaine.errors import UserError
from t_elaine.generation.manners import Coder, Manners

Message = Mapping[str, str]  # role ("system", "user", "assistant") and content
Template = Callable[[Sequence[Message]], np.ndarray]
OWN, NONE = "chat", "none"


def choose(name: str, vocabulary: Coder, manners: Manners) -> tuple[str, Template]:
    """The template called so, and its name; "" takes that of its training, the model's own, or none where it has none.

    Raises:
        UserError: no such template, or this model cannot use it.
    """
    # A run from before the sources of files were kept has the name alone: the file is to be given again.
    learnt = "" if manners.learnt.endswith(".jinja") and not manners.learnt_source else manners.learnt
    source = manners.learnt_source if not name else _read(name) if name.endswith(".jinja") else ""
    name = name or learnt or (OWN if manners.chat_template else NONE)
    if name == NONE:
        return name, lambda messages: _none(messages, vocabulary, manners)
    source = source or (manners.chat_template if name == OWN else "")
    shipped = chat_templates.made_into(source, vocabulary) if name == OWN else None
    if shipped is not None:
        name, template = shipped.name, shipped
    elif source:
        now = datetime.datetime.now()
        template = chat_jinja.own(source, manners.names, vocabulary, name, now)
    elif name != OWN:
        template = chat_templates.named(name, vocabulary)
    else:
        mend = "give --template=none, chatml, plain …, or put chat_template.jinja beside the tokenizer"
        raise UserError("this model has no chat template", "generate.template", mend)
    return name, lambda messages: _written(messages, vocabulary, template)


def _read(file: str) -> str:
    try:
        return chat_jinja.not_empty(paths.read_text(file), file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the chat template cannot be read: {error}", file, "check the path") from error


def _none(messages: Sequence[Message], vocabulary: Coder, manners: Manners) -> np.ndarray:
    """The contents as they are, a line each."""
    text = "\n".join(message["content"] for message in messages)
    return np.array([*manners.before, *vocabulary.encode(text).tolist()], np.int32)


def _written(messages: Sequence[Message], vocabulary: Coder, template: chat_templates.Template) -> np.ndarray:
    """The template's tokens, up to where the assistant is to speak."""
    try:
        parts = template.write([Turn(message["role"], message["content"]) for message in messages], True)
    except ValueError as error:
        raise UserError(str(error), "generate.template", "give --template=none, or another one") from error
    tokens, _ = next(chat_tokens.encode([parts], vocabulary, template.apart))
    return tokens.astype(np.int32)
