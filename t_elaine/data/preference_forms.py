"""The forms that preferences come in → two dialogues that part at the last answer: the chosen one and the rejected one.

`preferences` is a preprocessor of tasks, as those of `chat_forms` are: the fields of a record → the same with `turns`
(chosen) and `rejected_turns`, checked. Contents lose white space at both ends. A record that nobody can learn from
raises ValueError: `prepare` sets it aside with file, line and reason.
"""

import re
from typing import Any

from t_elaine.data.chat import ASSISTANT, SYSTEM, USER, Turn, Turns, check
from t_elaine.data.chat_forms import messages

Fields = dict[str, Any]
ASKED = ("prompt", "messages", "instruction", "question")  # the first that a record has holds what is asked
SIDES = ("chosen", "rejected")
# Anthropic's HH-RLHF writes whole dialogues as one text.
MARKS = {"Human": USER, "Assistant": ASSISTANT}
_MARK = re.compile(r"\n\n(Human|Assistant):")


def preferences(fields: Fields, *, chosen: str = "chosen", rejected: str = "rejected") -> Fields:
    """A question and two answers, the better of which is known.

    What is asked: `prompt` (text or messages), `messages`, `instruction` with `input`, or `question`; `system` before
    it. The answers: texts, messages, or whole dialogues that repeat what is asked. Without a field for what is asked,
    both are whole dialogues, as messages or in HH-RLHF's text. Only their last answers may differ.

    Args:
        fields: of the record.
        chosen: field of the better answer.
        rejected: field of the other.

    Raises:
        ValueError: an answer is missing, empty or the same as the other; what is asked is missing or differs; roles are
            unknown or do not take turns; a dialogue does not end on the assistant's turn.
    """
    asked = _asked(fields)
    sides = [_dialogue(fields, name, said, asked) for name, said in zip((chosen, rejected), SIDES, strict=True)]
    good, bad = sides
    if good[:-1] != bad[:-1]:
        raise ValueError("the two dialogues differ before the last answer")
    if good[-1] == bad[-1]:
        raise ValueError("the chosen and the rejected answer are the same")
    return {**fields, "turns": good, "rejected_turns": bad}


def _asked(fields: Fields) -> list[Turn]:
    """The turns that both answers have before them; empty where only the dialogues themselves tell."""
    name = next((name for name in ASKED if fields.get(name)), None)
    before = [Turn(SYSTEM, _string(fields, "system"))] if fields.get("system") else []
    if name is None:
        return before
    if isinstance(fields[name], str):
        more = _string(fields, "input") if name == "instruction" and fields.get("input") else ""
        said = Turn(USER, _string(fields, name), more)
        return [*before, *(_marked(fields[name]) if _MARK.match(fields[name]) else [said])]
    turns = [*before, *messages(fields, name)]
    return turns[:-1] if turns and turns[-1].role == ASSISTANT and not turns[-1].content else turns


def _dialogue(fields: Fields, name: str, side: str, asked: list[Turn]) -> Turns:
    found = fields.get(name)
    if not found:
        raise ValueError(f"no {side} answer: field {name!r} is {'missing' if found is None else 'empty'}")
    own = _own_turns(fields, name)
    if not own or own[-1].role != ASSISTANT:
        raise ValueError(f"the {side} dialogue does not end on an assistant's turn")
    if not own[-1].content:
        raise ValueError(f"the {side} answer is empty")
    if len(own) > 1 and asked and _repeats(own, asked):
        asked = [turn for turn in asked[:1] if turn.role == SYSTEM and own[0].role != SYSTEM]
    elif len(own) > 1 and asked and any(turn.role != SYSTEM for turn in asked):
        raise ValueError(f"the {side} dialogue has another prompt than the record")
    if not asked and len(own) == 1:
        raise ValueError(f"no prompt: none of {', '.join(ASKED)}, and the {side} answer stands alone")
    return check([*asked, *own])


def _string(fields: Fields, name: str) -> str:
    if not isinstance(fields[name], str):
        raise ValueError(f"no text: {name!r} is {type(fields[name]).__name__}")
    return fields[name].strip()


def _repeats(own: list[Turn], asked: list[Turn]) -> bool:
    """Whether a dialogue begins with what is asked (a system's turn may be told on one side alone)."""
    spoken = [[turn for turn in turns if turn.role != SYSTEM] for turns in (own[:-1], asked)]
    systems = {turn.content for turn in (*own, *asked) if turn.role == SYSTEM}
    return bool(spoken[1]) and spoken[0] == spoken[1] and len(systems) < 2


def _own_turns(fields: Fields, name: str) -> list[Turn]:
    if isinstance(fields[name], str):
        text = fields[name]
        return _marked(text) if _MARK.match(text) else [Turn(ASSISTANT, text.strip())]
    return messages(fields, name)


def _marked(text: str) -> list[Turn]:
    """A dialogue in HH-RLHF's text; an open end ("Assistant:") is no turn."""
    _, *parts = _MARK.split(text)
    turns = [Turn(MARKS[mark], said.strip()) for mark, said in zip(parts[::2], parts[1::2], strict=True)]
    return turns[:-1] if turns[-1] == Turn(ASSISTANT, "") else turns
