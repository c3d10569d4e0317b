"""Chat templates: turns → parts of text and special tokens, with what a model learns of them told part by part.

The named ones are data (data_tasks/chat_templates.json, with sources); a tokenizer's own Jinja template is read by
`chat_jinja`. Special tokens come from the template alone: their text inside a turn stays text, so nobody can end a turn
by writing so. What becomes of parts: `chat_tokens`.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from t_elaine.data import chat_source
from t_elaine.data.chat import ASSISTANT, SYSTEM, USER, Turn
from t_elaine.errors import UserError
from t_elaine.paths import shipped

OWN, NONE = "chat", "none"
OPTIONAL = ("bos",)  # left out where a vocabulary has none
STRIP: Mapping[str, Callable[[str], str]] = {
    "": lambda text: text,
    "strip": str.strip,
    "strip_newlines": lambda text: text.lstrip("\r\n"),
}


class Specials(Protocol):
    """What templates need of a vocabulary; `t_elaine.data.vocabulary.Vocabulary` is one."""

    @property
    def special(self) -> dict[str, int]: ...

    def special_id(self, name: str) -> int: ...


@dataclass(frozen=True)
class Part:
    """A run of text, or one special token (`special` ≥ 0), and whether a model learns to write it."""

    text: str
    trained: bool = False
    special: int = -1


Parts = list[Part]


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat template for one vocabulary.

    Attributes:
        name: as given.
        sha256: of its source; part of what a store is made from.
        has_system: whether a system's turn has a place; where not, it is left out.
        apart: whether parts are encoded one by one, as a served prompt is, or neighbours together, as a tokenizer's own
            template is.
        source: as Jinja, for programs that know no other templates.
        file: of a .jinja file its path, as given; "" else.
        write: (turns, whether the assistant is to go on writing) → parts. ValueError: these turns cannot be written.
    """

    name: str
    sha256: str
    has_system: bool
    apart: bool
    source: str
    write: Callable[[Sequence[Turn], bool], list[Part]]
    file: str = ""


def names() -> list[str]:
    """The named templates."""
    return list(_described())


def named(name: str, vocabulary: Specials) -> Template:
    """One of the shipped templates.

    Raises:
        UserError: no such template, or the vocabulary lacks one of its tokens.
    """
    described = _described()
    if name not in described:
        known = ", ".join([*described, OWN])
        raise UserError(f"no template is called {name!r}", "template", f"give one of {known}, or a .jinja file")
    found = described[name]
    tokens, texts = _tokens(found, name, vocabulary), {i: text for text, i in vocabulary.special.items()}
    digest = hashlib.sha256(json.dumps(found, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    return Template(
        name=name,
        sha256=digest,
        has_system="system" in found,
        apart=not found.get("together", False),
        source=chat_source.jinja(found, name, {token: texts[i] for token, i in tokens.items()}),
        write=lambda turns, go_on: _write(found, name, tokens, turns, go_on),
    )


def made_into(source: str, vocabulary: Specials) -> Template | None:
    """The shipped template that a Jinja source was made from, for this vocabulary; None for any other source.

    An export that is read again is so asked and trained with the ids of its training, which Jinja may not give.
    """
    for name in names():
        with contextlib.suppress(UserError):  # the vocabulary lacks its tokens
            if (template := named(name, vocabulary)).source == source:
                return template
    return None


def end_ids(template: Template) -> list[int]:
    """The special tokens by which a model that learnt from the template ends its answers, ascending."""
    parts = template.write((Turn(USER, "Why?"), Turn(ASSISTANT, "So.")), False)
    return sorted({part.special for part in parts if part.trained and part.special >= 0})


def _described() -> dict[str, dict[str, Any]]:
    file = Path(shipped("data_tasks")) / "chat_templates.json"
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _tokens(found: Mapping[str, Any], name: str, vocabulary: Specials) -> dict[str, int]:
    """The ids of a template's special tokens."""
    ids: dict[str, int] = {}
    for entry in (entry for value in found.values() if isinstance(value, list) for entry in value):
        token = entry.get("special") if isinstance(entry, dict) else None
        if token is None or token in ids:
            continue
        try:
            ids[token] = vocabulary.special_id(token)
        except UserError as error:
            if token in OPTIONAL:
                continue
            mend = "take another template, or a model of the family that it was made for"
            raise UserError(f"the template {name!r} needs {token}: {error.what}", error.where, mend) from error
    return ids


def _write(found: Mapping[str, Any], name: str, ids: Mapping[str, int], turns: Sequence[Turn], go_on: bool) -> Parts:
    for spoof in () if go_on else found.get("spoofs", ()):
        if any(spoof in turn.text() for turn in turns):
            raise ValueError(f"a turn holds a marker of the template {name!r}: {spoof}")
    spoken = [turn for turn in turns if turn.role != SYSTEM]
    if found.get("single") and len(spoken) > (1 if go_on else 2):
        raise ValueError(f"the template {name!r} has one question and one answer: {len(spoken)} turns")
    if "system" not in found:
        turns = spoken
    elif "default_system" in found and len(spoken) == len(turns):
        turns = [Turn(SYSTEM, found["default_system"]), *turns]
    parts = _filled(found.get("begin", ()), ids, None)
    for turn in turns:
        entries = found.get(f"{turn.role}_with_input") if turn.input else None
        parts += _filled(entries or found[turn.role], ids, turn)
    if go_on:
        entries = found[ASSISTANT]
        parts += _filled(entries[: next(i for i, entry in enumerate(entries) if _fills(entry))], ids, None)
    return parts


def _fills(entry: Any) -> bool:
    return isinstance(entry, dict) and ("content" in entry or "input" in entry)


def _filled(entries: Sequence[Any], ids: Mapping[str, int], turn: Turn | None) -> Parts:
    """A turn's parts. Of the assistant's, the content is learnt and the special tokens that end it."""
    parts, learns = Parts(), False
    has_input = any(isinstance(entry, dict) and "input" in entry for entry in entries)
    for entry in entries:
        if isinstance(entry, str):
            learns = False
            parts.append(Part(entry))
        elif "special" in entry:
            if entry["special"] in ids:
                parts.append(Part("", learns, ids[entry["special"]]))
        elif turn is not None:
            learns = turn.role == ASSISTANT
            strip = STRIP[entry.get("content", entry.get("input", ""))]
            text = turn.input if "input" in entry else turn.content if has_input else turn.text()
            parts.append(Part(strip(text), learns))
    return [part for part in parts if part.text or part.special >= 0]
