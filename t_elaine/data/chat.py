"""Conversations: turns of a system, a user and an assistant, checked. What a template makes of them: `chat_templates`.

Each form that data sets come in has a reader in `chat_forms`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)


@dataclass(frozen=True)
class Turn:
    """What one side says. `input`: of a user's turn, the text that its instruction speaks of (Alpaca's field)."""

    role: str
    content: str
    input: str = ""

    def text(self) -> str:
        """Content and input, as templates write them that keep no place for an input."""
        return f"{self.content}\n{self.input}" if self.input else self.content


Turns = tuple[Turn, ...]


def check(turns: Sequence[Turn]) -> Turns:
    """The conversation, if a model can learn from it.

    A system's turn, if any, comes first; then user and assistant take turns; the assistant speaks last.

    Raises:
        ValueError: it is none such; the turn is named by its number.
    """
    if not turns:
        raise ValueError("a conversation without turns")
    for number, turn in enumerate(turns, 1):
        if turn.role not in ROLES:
            raise ValueError(f"unknown role: {turn.role!r} in turn {number}")
        if not turn.content.strip():
            raise ValueError(f"empty turn: {number} of {len(turns)}, of the {turn.role}")
        if turn.role == SYSTEM and number > 1:
            raise ValueError(f"a system turn that is not the first: {number} of {len(turns)}")
    spoken = [turn for turn in turns if turn.role != SYSTEM]
    if not spoken:
        raise ValueError("a conversation without a user's turn")
    if spoken[0].role == ASSISTANT:
        raise ValueError("the assistant speaks first")
    for number, (one, other) in enumerate(pairwise(spoken), len(turns) - len(spoken) + 1):
        if one.role == other.role:
            raise ValueError(f"two turns of the {one.role} in a row: {number} and {number + 1}")
    if spoken[-1].role == USER:
        raise ValueError("it ends on a user's turn: cut_open_end=True cuts such an end off")
    return tuple(turns)
