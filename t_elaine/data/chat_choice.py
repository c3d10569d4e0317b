"""Which chat template writes conversations: a shipped one by name, the tokenizer's own, or a file."""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t_elaine.data import chat_jinja
from t_elaine.data.chat_templates import OWN, Template, made_into, named
from t_elaine.data.vocabulary import Vocabulary
from t_elaine.errors import UserError

PLAIN = "plain"
OWN_FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"


def choose(name: str, vocabulary: Vocabulary) -> Template:
    """The template called so.

    Args:
        name: of a shipped one; "chat": the tokenizer's own, or the shipped one whose Jinja that is (of an export); a
            path that ends in .jinja; "": the tokenizer's own, or `plain` where it has none.
        vocabulary: the tokenizer's.

    Raises:
        UserError: there is no such template, or this vocabulary cannot use it.
    """
    files = vocabulary.files()
    config = _json(files[CONFIG]) if CONFIG in files else {}
    if name.endswith(".jinja"):
        source = chat_jinja.not_empty(_text(Path(name)), name)
    else:
        source = _text(files[OWN_FILE]) if OWN_FILE in files else own_source(config)
    if name == OWN and not source:
        mend = f"name a template, or put {OWN_FILE} beside the tokenizer"
        raise UserError("this tokenizer has no chat template", str(vocabulary.path), mend)
    if name and name != OWN and not name.endswith(".jinja"):
        return named(name, vocabulary)
    if not source:
        return named(PLAIN, vocabulary)
    own = chat_jinja.own(source, token_names(config), vocabulary, name or OWN)
    return own if name.endswith(".jinja") else made_into(source, vocabulary) or own


def checked(name: str, vocabulary: Vocabulary) -> Template:
    """The template called so (`choose`), for training.

    Raises:
        UserError: as `choose`; what a model would learn from it cannot be told.
    """
    template = choose(name, vocabulary)
    if not template.apart:  # a tokenizer's own, or a file
        chat_jinja.check(template)
    return template


def recorded(record: Mapping[str, Any], vocabulary: Vocabulary) -> Template:
    """The template that a store says its conversations were written by, with the time of now where it names the day.

    Args:
        record: `name`, and of a .jinja file `source` (stores that were prepared before it was kept lack it).
        vocabulary: the store's, or its copy in a run.

    Raises:
        UserError: it is not there any more.
    """
    name = str(record["name"])
    if name.endswith(".jinja"):
        source = str(record.get("source", ""))
        if not source:
            mend = "put the file beside the tokenizer yourself, as chat_template.jinja"
            raise UserError(f"the stores have kept no more than the name of the template {name}", "data.json", mend)
    else:
        template = choose(name, vocabulary)
        if template.name != OWN:
            return template
        source = template.source
    files = vocabulary.files()
    config = _json(files[CONFIG]) if CONFIG in files else {}
    return chat_jinja.own(source, token_names(config), vocabulary, name, datetime.datetime.now())


def own_source(config: Mapping[str, Any]) -> str:
    """The Jinja source in tokenizer_config.json, "" where there is none. A chat_template.jinja beside it goes first."""
    found = config.get("chat_template") or ""
    if isinstance(found, list):  # several, by name
        found = next((entry["template"] for entry in found if entry.get("name") == "default"), "")
    return str(found)


def token_names(config: Mapping[str, Any]) -> dict[str, str]:
    """What a template may name, bos_token, eos_token …, of tokenizer_config.json."""
    names = {name: _content(value) for name, value in config.items() if name.endswith("_token")}
    return {name: text for name, text in names.items() if text}


def _content(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else token if isinstance(token, str) else ""


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the chat template cannot be read: {error}", str(file), "check the path") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{file.name} is not JSON: {error}", str(file), "copy it again") from error
