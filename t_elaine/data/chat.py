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
    for role, content in _messages(fields):
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


def _messages(fields: Fields) -> list[tuple[str, str]]:
    """(role, content) of each message; a record of another layout is a malformed one."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("no messages")
    found = [(message.get("role"), message.get("content")) for message in messages]
    if not all(isinstance(part, str) for pair in found for part in pair):
        raise ValueError("a message without role or content")
    return [(str(role), str(content).strip()) for role, content in found]


def question_and_answer(fields: Fields) -> Fields:
    """A preprocessor: fields `instruction`, `input` (may be missing) and `output` → the same as `plain_chat`.

    Raises:
        ValueError: as `plain_chat`; no instruction or no output.
    """
    for name in ("instruction", "output"):
        if not isinstance(fields.get(name), str):
            raise ValueError(f"no field {name!r}")
    question = "\n".join(part for part in (fields["instruction"], fields.get("input") or "") if part.strip())
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": fields["output"]}]
    return plain_chat({**fields, "messages": messages})
