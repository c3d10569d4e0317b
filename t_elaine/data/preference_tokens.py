"""Two dialogues that part at the last answer → one document of a store: the chosen one's tokens, then the rejected's.

Each ends with its last answer's end marker (what a template writes after it nobody learns), and has one trained range,
that answer and its marker. So the first range ends where the second dialogue begins: no column is needed for that.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from t_elaine.data import chat_tokens
from t_elaine.data.chat import ASSISTANT, Turn
from t_elaine.data.chat_templates import Part
from t_elaine.data.chat_tokens import Encoder, Ranges

Pair = tuple[Sequence[Part], Sequence[Part]]  # chosen, rejected


def last_answer(parts: Sequence[Part], turns: Sequence[Turn]) -> tuple[Part, ...]:
    """A written dialogue up to the end of its last answer, which alone is trained.

    Raises:
        ValueError: the template gives an answer in several pieces, so that the last answer cannot be told.
    """
    marks = np.array([part.trained for part in parts])
    runs = chat_tokens.ranges(marks)
    if len(runs) != sum(turn.role == ASSISTANT for turn in turns):
        raise ValueError("the template does not write each answer in one piece")
    start, stop = runs[-1]
    return tuple(Part(p.text, i >= start, p.special) for i, p in enumerate(parts[:stop]))


def encode(pairs: Sequence[Pair], vocabulary: Encoder, apart: bool) -> Iterator[tuple[np.ndarray, Ranges]]:
    """(uint32 [tokens], the two trained ranges) of each pair.

    A tokenizer that leaves no token of an answer gives fewer ranges; a row then has no place for such a pair.
    """
    found = chat_tokens.encode([parts for pair in pairs for parts in pair], vocabulary, apart)
    for (chosen, learnt), (rejected, other) in zip(found, found, strict=True):
        after = len(chosen)
        yield np.concatenate([chosen, rejected]), [*learnt, *((a + after, b + after) for a, b in other)]
