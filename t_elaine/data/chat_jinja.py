"""A tokenizer's own chat template: Jinja, rendered as `transformers` does, in Jinja's sandbox, and told part by part.

What the assistant says is found by marks: characters that no text means anything by are put around it, the template is
rendered with and without them, and both must be the same text. A template that changes, hides or moves what the
assistant says is refused: nobody could tell what a model would learn from it.
"""

import datetime
import functools
import hashlib
import json
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from t_elaine.data.chat import ASSISTANT, SYSTEM, USER, Turn
from t_elaine.data.chat_templates import OWN, Part, Parts, Specials, Template
from t_elaine.errors import UserError

Rendered = Callable[[Sequence[Turn]], str]
PRIVATE = range(0xE000, 0xF900)
# What templates that name the day get where a text must be the same tomorrow; Llama 3.1's template names it too.
A_DAY = datetime.datetime(2024, 7, 26)
MEND = "mend chat_template.jinja beside the tokenizer, or take a named template"
MEND_FILE = "mend this file, or take a named template"
PROBE = (Turn(USER, "What?"), Turn(ASSISTANT, "This.\nAnd that."), Turn(USER, "Why?"), Turn(ASSISTANT, "So."))


class Refused(ValueError):
    """What a template says by `raise_exception`."""


def own(
    source: str,
    token_names: Mapping[str, str],
    vocabulary: Specials,
    name: str = OWN,
    now: datetime.datetime = A_DAY,
) -> Template:
    """The template of a tokenizer.

    Args:
        source: in Jinja.
        token_names: bos_token, eos_token … → their text.
        vocabulary: the tokenizer's.
        name: to be called by; of a .jinja file its path.
        now: the time that the template may name.

    Raises:
        UserError: when it writes: it is broken, or does what the sandbox forbids.
    """

    file = name if name.endswith(".jinja") else ""
    rendered = partial(render, source, token_names=token_names, now=now, file=file)

    def write(turns: Sequence[Turn], go_on: bool) -> Parts:
        return _write(partial(rendered, go_on=go_on), vocabulary, turns, go_on)

    digest = hashlib.sha256(json.dumps([source, dict(token_names)], sort_keys=True).encode()).hexdigest()
    has_system = _has_system(source, token_names)
    return Template(
        name=Path(name).name,
        sha256=digest,
        has_system=has_system,
        apart=False,
        source=source,
        write=write,
        file=file,
    )


def not_empty(source: str, file: str) -> str:
    """The source of a .jinja file.

    Raises:
        UserError: there is nothing in it.
    """
    if not source.strip():
        raise UserError("the chat template is empty", file, "write the template there, or take a named one")
    return source


def check(template: Template) -> None:
    """Raise UserError where a template's trained spans cannot be told in a plain conversation.

    One question and its answer do for a template that refuses a second question.
    """
    try:
        try:
            template.write(PROBE, False)
        except Refused:
            template.write(PROBE[:2], False)
    except ValueError as error:
        what = f"what a model would learn from the template {template.name!r} cannot be told: {error}"
        raise UserError(what, template.file or "template", MEND_FILE if template.file else MEND) from error


def _has_system(source: str, token_names: Mapping[str, str]) -> bool:
    try:
        return "\ue000" in render(source, [Turn(SYSTEM, "\ue000"), *PROBE], token_names, False)
    except (ValueError, UserError):
        return False


def _write(rendered: Rendered, vocabulary: Specials, turns: Sequence[Turn], go_on: bool) -> Parts:
    said = "".join(turn.text() for turn in turns)
    free = (character for character in map(chr, PRIVATE) if character not in said)
    broken, begin, end = next(free), next(free), next(free)
    special = "|".join(map(re.escape, sorted(vocabulary.special, key=len, reverse=True))) or "(?!)"
    # A special token's text inside a turn is broken up, and made whole again when it can be no token any more.
    whole = [Turn(turn.role, re.sub(special, lambda found: broken.join(found[0]), turn.text())) for turn in turns]
    text = rendered(whole) if go_on else _marked(rendered, whole, begin, end)
    parts, learns, at = Parts(), False, 0
    for found in re.finditer(f"{special}|{begin}|{end}", text):
        between, at = text[at : found.start()].replace(broken, ""), found.end()
        if found[0] == begin:
            parts.append(Part(between))
        elif found[0] == end:
            parts.append(Part(between, True))
            _end_marker(text[at:], special)
        else:
            parts += [Part(between, learns), Part("", learns, vocabulary.special[found[0]])]
        learns = found[0] == end
    parts.append(Part(text[at:].replace(broken, "")))
    return [part for part in parts if part.text or part.special >= 0]


def _marked(rendered: Rendered, said: Sequence[Turn], begin: str, end: str) -> str:
    """The text with marks around what the assistant says; for templates that strip it, around what is left."""
    text, answers = rendered(said), sum(turn.role == ASSISTANT for turn in said)
    for turns in (said, [Turn(turn.role, turn.content.strip()) for turn in said]):
        around = [Turn(t.role, f"{begin}{t.content}{end}") if t.role == ASSISTANT else t for t in turns]
        marked = rendered(around)
        if (
            marked.count(begin) == marked.count(end) == answers
            and marked.translate(dict.fromkeys(map(ord, (begin, end)))) == text
        ):
            return marked
    raise ValueError("the chat template changes or leaves out what the assistant says")


def _end_marker(rest: str, special: str) -> None:
    found = re.search(special, rest)
    if found is None or rest[: found.start()].strip():
        raise ValueError("the chat template puts no special token at the end of what the assistant says")


def render(
    source: str,
    turns: Sequence[Turn],
    token_names: Mapping[str, str],
    go_on: bool,
    now: datetime.datetime = A_DAY,
    file: str = "",
) -> str:
    """A template's text, as `transformers` renders it.

    Args:
        source: the template.
        turns: of the conversation.
        token_names: what the template may name.
        go_on: end it where the assistant is to speak.
        now: the time that a template may name.
        file: where the source was read, for errors; "": the tokenizer's own.

    Raises:
        UserError: the template is broken, fails, or does what the sandbox forbids.
        Refused: the template refuses these turns.
    """
    messages = [{"role": turn.role, "content": turn.text()} for turn in turns]
    values: dict[str, Any] = {"messages": messages, "add_generation_prompt": go_on, "tools": None, "documents": None}
    try:
        return str(_compiled(source).render(**token_names, **values, strftime_now=now.strftime))
    except Refused:
        raise
    except Exception as error:  # a template is a program: whatever Python raises in it is the template's fault
        raise _failed(error, file) from error


def _failed(error: Exception, file: str) -> UserError:
    """What Jinja or Python said of a template, and the line of the user's file where there is one."""
    import jinja2

    said = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
    if not file:
        return UserError(f"the chat template fails: {said}", "chat_template", MEND)
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == "<template>"]
    if isinstance(error, jinja2.TemplateSyntaxError):
        said, lines = str(error.message), [error.lineno]
    return UserError(f"the chat template fails: {said}", f"{file}:{lines[-1]}" if lines else file, MEND_FILE)


@functools.lru_cache(maxsize=4)
def _compiled(source: str) -> Any:
    import jinja2.sandbox

    def refuse(message: str) -> None:
        raise Refused(f"the chat template refuses it: {message}")

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda x, **options: json.dumps(x, ensure_ascii=False, **options)
    environment.globals |= {"raise_exception": refuse}
    return environment.from_string(source)
