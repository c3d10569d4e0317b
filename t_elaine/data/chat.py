"""Conversations → plain text with trained spans, the smallest way: one fixed template of plain words.

Real chat templates, with their special tokens, are not in this file.
"""

from typing import Any

ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}
Fields = dict[str, Any]


def plain_chat(fields: Fields) -> Fields:
    """A preprocessor: `messages` [{"role", "content"}, …] → `text` and `spans`, the character ranges of the answers.

    "User: …\\n\\nAssistant: …\\n\\n…" ; only what the assistant says is trained.

    Raises:
        ValueError: no messages, an unknown role, empty content, or no answer to train on.
    """
    text, spans = "", []
    for message in fields["messages"]:
        role, content = message["role"], message["content"].strip()
        if role not in ROLES:
            raise ValueError(f"unknown role {role!r}")
        if not content:
            raise ValueError(f"empty {role} message")
        text += f"{'' if not text else chr(10) * 2}{ROLES[role]}: "
        if role == "assistant":
            spans.append((len(text), len(text) + len(content)))
        text += content
    if not spans:
        raise ValueError("no assistant message to train on")
    return {**fields, "text": text, "spans": tuple(spans)}


def question_and_answer(fields: Fields) -> Fields:
    """A preprocessor: fields `instruction`, `input` (may be missing) and `output` → the same as `plain_chat`.

    Raises:
        ValueError: as `plain_chat`.
    """
    question = "\n".join(part for part in (fields["instruction"], fields.get("input") or "") if part.strip())
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": fields["output"]}]
    return plain_chat({**fields, "messages": messages})
