"""The chat template that a run learnt conversations by, found again by what its stores said, for its export."""

import contextlib
import functools
from collections.abc import Callable, Sequence

from t_elaine import columns
from t_elaine.data import chat_choice, chat_templates, chat_tokens
from t_elaine.data.chat import Turn
from t_elaine.data.chat_templates import Template
from t_elaine.data.vocabulary import Vocabulary
from t_elaine.errors import UserError
from t_elaine.hf import side_files
from t_elaine.hf.chat_files import ChatTemplate, Message


def chat_template(run_dir: str, vocabulary: Vocabulary, say: Callable[[str], None] = print) -> ChatTemplate | None:
    """The template of the conversations that a run was trained on last; None where there were none.

    Of several the first is taken, as `generate` does; that, and a template that cannot be had any more, is told.
    """
    records = [store["template"] for store in side_files.data_record(run_dir).values() if "template" in store]
    if not records:
        return None
    first, names = records[0], dict.fromkeys(record["name"] for record in records)
    if len(names) > 1:
        told = (
            f"warning: trained on conversations of several templates ({', '.join(names)}): {first['name']} goes along"
        )
        say(columns.wrapped(told))
    try:
        template = chat_choice.recorded(first, vocabulary)
    except UserError as error:
        say(columns.wrapped(f"warning: the chat template of the training is not written: {error.what}; {error.mend}"))
        return None
    if template.sha256 != first["sha256"]:
        say(f"warning: the chat template {template.name} is another one now than when the stores were written")
    ids = functools.partial(_ids, template, vocabulary)
    ends: list[int] = []
    with contextlib.suppress(ValueError, UserError):  # a template that wants more than one question and its answer
        ends = chat_templates.end_ids(template)
    return ChatTemplate(name=template.name, source=template.source, end_ids=ends, ids=ids)


def _ids(template: Template, vocabulary: Vocabulary, messages: Sequence[Message], go_on: bool) -> list[int]:
    parts = template.write([Turn(message["role"], message["content"]) for message in messages], go_on)
    tokens, _ = next(chat_tokens.encode([parts], vocabulary, template.apart))
    return [int(i) for i in tokens]
