"""The forms that conversations come in → turns: OpenAI's messages, ShareGPT, Alpaca, columns of a table, marked text.

Each function is a preprocessor of tasks: the fields of a record → the same with `turns`, checked. Contents lose white
space at both ends. A record of another form, or one that nobody can learn from, raises ValueError: `prepare` sets it
aside with file, line and reason. Arguments are given by functools.partial.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from t_elaine.data.chat import ASSISTANT, SYSTEM, USER, Turn, check

Fields = dict[str, Any]
# What publishers call the three.
NAMES = {
    **{name: SYSTEM for name in ("system", "developer")},
    **{name: USER for name in ("user", "human", "patient", "client")},
    **{name: ASSISTANT for name in ("assistant", "gpt", "bot", "model", "chatgpt", "doctor")},
}


def openai_messages(fields: Fields, *, field: str = "messages", cut_open_end: bool = False) -> Fields:
    """`messages`: [{"role", "content"}, …], contents as text or as a list of {"type": "text", "text"}.

    Args:
        fields: of the record.
        field: that holds the messages.
        cut_open_end: leave out what a user says at the end, which nobody answers.
    """
    return _with_turns(fields, _pairs(fields, field, ("role", "content")), cut_open_end)


def sharegpt(fields: Fields, *, field: str = "conversations", cut_open_end: bool = False) -> Fields:
    """`conversations`: [{"from": "human" or "gpt" …, "value"}, …]; a field `system` comes before them."""
    return _with_turns(fields, [*_system(fields), *_pairs(fields, field, ("from", "value"))], cut_open_end)


def alpaca(fields: Fields, *, system: str = "") -> Fields:
    """`instruction`, `input` (may be missing or empty), `output`; `history`: [[question, answer], …] before them.

    Args:
        fields: of the record.
        system: a system's turn for every record that has none of its own.
    """
    history = [Turn(role, _text(said, "history")) for pair in _history(fields) for role, said in _sides(pair)]
    asked = Turn(USER, _field(fields, "instruction"), _text(fields.get("input") or "", "input"))
    if not asked.content and asked.input:
        asked = Turn(USER, asked.input)
    answer = Turn(ASSISTANT, _field(fields, "output"))
    return _with_turns(fields, [*_system(fields, system), *history, asked, answer], False)


def any_form(fields: Fields) -> Fields:
    """Whichever of the three a record's fields tell: `messages`, `conversations`, `instruction`."""
    if "messages" in fields:
        return openai_messages(fields)
    return sharegpt(fields) if "conversations" in fields else alpaca(fields)


def columns(fields: Fields, *, user: Sequence[str], assistant: str, instruction: str = "") -> Fields:
    """A row of a table.

    Args:
        fields: of the record.
        user: columns that make the question, each a line; empty ones are left out.
        assistant: column of the answer.
        instruction: what is asked of every row; the columns are then its input.
    """
    lines = (_field(fields, name) for name in user)
    question = "\n".join(dict.fromkeys(line for line in lines if line))
    asked = Turn(USER, instruction, question) if instruction else Turn(USER, question)
    return _with_turns(fields, [asked, Turn(ASSISTANT, _field(fields, assistant))], False)


def marked(
    fields: Fields, *, asked: str = "instruction", answer: str = "output", user: str = "<user>:", bot: str = "<bot>:"
) -> Fields:
    """Earlier turns inside the question, each behind its mark: `<user>: … <bot>: … <user>: …`."""
    parts = re.split(f"({re.escape(user)}|{re.escape(bot)})", _field(fields, asked))
    if parts[0].strip():
        parts = ["", user, *parts] if len(parts) == 1 else parts
    if parts[0].strip():
        raise ValueError(f"text before the first mark: {parts[0].strip()[:40]!r}")
    roles = {user: USER, bot: ASSISTANT}
    turns = [Turn(roles[mark], said.strip()) for mark, said in zip(parts[1::2], parts[2::2], strict=True)]
    return _with_turns(fields, [*turns, Turn(ASSISTANT, _field(fields, answer))], False)


def messages(fields: Fields, field: str) -> list[Turn]:
    """Turns of OpenAI's form ({"role", "content"}) or ShareGPT's ({"from", "value"}), not checked."""
    found = fields.get(field)
    theirs = isinstance(found, list) and all(isinstance(one, dict) and "from" in one for one in found)
    return _pairs(fields, field, ("from", "value") if theirs else ("role", "content"))


def until_last_answer(turns: Sequence[Turn]) -> list[Turn]:
    """The turns up to the last of the assistant's: what a user says after it, nobody answers."""
    last = max((i for i, turn in enumerate(turns) if turn.role == ASSISTANT), default=-1)
    return list(turns[: last + 1]) if last >= 0 else list(turns)


def _with_turns(fields: Fields, turns: Iterable[Turn], cut_open_end: bool) -> Fields:
    found = list(turns)
    return {**fields, "turns": check(until_last_answer(found) if cut_open_end else found)}


def _pairs(fields: Fields, field: str, names: tuple[str, str]) -> list[Turn]:
    messages = fields.get(field)
    if not isinstance(messages, (list, tuple)) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"no list of messages: field {field!r}")
    turns = []
    for number, message in enumerate(messages, 1):
        role, content = (message.get(name) for name in names)
        if not isinstance(role, str) or content is None:
            raise ValueError(f"a message without {names[0]} or {names[1]}: turn {number}")
        turns.append(Turn(NAMES.get(role.strip().lower(), role), _text(content, names[1])))
    return turns


def _system(fields: Fields, default: str = "") -> list[Turn]:
    text = _text(fields.get("system") or default, "system")
    return [Turn(SYSTEM, text)] if text else []


def _history(fields: Fields) -> list[Any]:
    history = fields.get("history") or []
    if not isinstance(history, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history
    ):
        raise ValueError("no list of pairs: field 'history'")
    return list(history)


def _sides(pair: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(USER, pair[0]), (ASSISTANT, pair[1])]


def _field(fields: Fields, name: str) -> str:
    if not isinstance(fields.get(name), str):
        raise ValueError(f"missing field: {name!r}")
    return _text(fields[name], name)


def _text(content: Any, name: str) -> str:
    if isinstance(content, (list, tuple)):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"a content that is not text alone: {name!r}")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise ValueError(f"no text: {name!r} is {type(content).__name__}")
    return content.strip()
