"""A shipped chat template as Jinja, for programs that know no other: `transformers`, vLLM and what is built on them.

Made from the same description that conversations are written by (data_tasks/chat_templates.json), so that both say the
same text. Whether they give the same ids hangs on the tokenizer: programs that render a template encode the text
between two special tokens in one go, while one whose parts are encoded apart (`Template.apart`) keeps borders there.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# What stands in chat_templates.json beside a content → the same in Jinja.
STRIP = {"": "{}", "strip": "{} | trim", "strip_newlines": "{}.lstrip('\\r\\n')"}
ROLE = "message['role']"
SYSTEMS = "messages | selectattr('role', 'equalto', 'system') | list"


def jinja(described: Mapping[str, Any], name: str, specials: Mapping[str, str]) -> str:
    """A template's source in Jinja.

    Turns are messages with `role` and `content`; of a user's turn `input` may stand beside them, where the template has
    a place for it. Turns that the template cannot write are refused by `raise_exception`.

    Args:
        described: an entry of chat_templates.json.
        name: of the template, for what it says when it refuses.
        specials: special token of the description → its text in the vocabulary; those that it lacks are left out.
    """
    return "\n".join(_lines(described, name, specials)) + "\n"


def _lines(described: Mapping[str, Any], name: str, specials: Mapping[str, str]) -> Iterator[str]:
    has_system = "system" in described
    if described.get("single"):
        spoken = "messages | rejectattr('role', 'equalto', 'system') | list | length"
        yield f"{{%- if ({spoken}) > (1 if add_generation_prompt else 2) -%}}"
        yield f"{{{{- raise_exception({_quoted(f'the template {name} has one question and one answer')}) -}}}}"
        yield "{%- endif -%}"
    yield from _written(described.get("begin", ()), specials)
    if has_system and "default_system" in described:
        yield f"{{%- if not ({SYSTEMS}) -%}}"
        yield from _written(described["system"], specials, {"content": _quoted(described["default_system"])})
        yield "{%- endif -%}"
    yield "{%- for message in messages -%}"
    word = "if"
    if "user_with_input" in described:
        yield f"{{%- if {ROLE} == 'user' and message['input'] -%}}"
        yield from _written(described["user_with_input"], specials, _turn())
        word = "elif"
    for role in ("user", "assistant", *(["system"] if has_system else [])):
        yield f"{{%- {word} {ROLE} == '{role}' -%}}"
        yield from _written(described[role], specials, _turn())
        word = "elif"
    yield "{%- else -%}" if has_system else f"{{%- elif {ROLE} != 'system' -%}}"
    yield f"{{{{- raise_exception('unknown role: ' ~ {ROLE}) -}}}}"
    yield "{%- endif -%}"
    yield "{%- endfor -%}"
    yield "{%- if add_generation_prompt -%}"
    yield from _written(_before_content(described["assistant"]), specials)
    yield "{%- endif -%}"


def _turn() -> dict[str, str]:
    """What a turn fills into a description, in Jinja."""
    return {"content": "message['content']", "input": "message['input'] | default('')"}


def _before_content(entries: Sequence[Any]) -> Sequence[Any]:
    return entries[: next(i for i, entry in enumerate(entries) if isinstance(entry, dict) and "content" in entry)]


def _written(
    entries: Sequence[Any], specials: Mapping[str, str], filled: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A line that prints the entries; none where all of them are special tokens that the vocabulary lacks."""
    parts = []
    for entry in entries:
        if isinstance(entry, str):
            parts.append(_quoted(entry))
        elif "special" in entry:
            parts += [_quoted(specials[entry["special"]])] if entry["special"] in specials else []
        elif filled is not None:
            field = "input" if "input" in entry else "content"
            parts.append(f"({STRIP[entry[field]].format(filled[field])})")
    if parts:
        yield f"{{{{- {' ~ '.join(parts)} -}}}}"


def _quoted(text: str) -> str:
    """Text as a string of Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
