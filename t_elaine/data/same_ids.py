"""Whether two vocabularies mean the same by every id, though their files may differ.

A chat model's tokenizer.json is rarely its parent's byte for byte: a template or a post-processor differs. Which ids
begin and end a text is not compared: a chat model ends where its turn ends.
"""

from collections.abc import Sequence

import numpy as np

from t_elaine.data.vocabulary import Vocabulary


def difference(one: Vocabulary, other: Vocabulary, texts: Sequence[str]) -> str:
    """The first difference in what ids stand for, or in the ids of the texts; "" where there is none."""
    if one.sha256 == other.sha256:
        return ""
    if one.size != other.size:
        return f"one has {one.size} ids, the other {other.size}"
    for token, (piece, another) in enumerate(zip(one.pieces, other.pieces, strict=True)):
        if piece != another:
            return f"id {token} is {_shown(piece)} in one, {_shown(another)} in the other"
    for text, ids, theirs in zip(texts, one.encode_batch(list(texts)), other.encode_batch(list(texts)), strict=True):
        if not np.array_equal(ids, theirs):
            return f"{text[:40]!r} has other ids in one than in the other"
    return ""


def _shown(piece: bytes) -> str:
    return repr(piece.decode("utf-8", "replace"))
