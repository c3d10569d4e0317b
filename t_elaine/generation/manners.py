"""What a model's folder says of writing with it: chat template, ids that end an answer, ids that begin a prompt.

Reads small JSON files beside the weights. What a template makes of messages: `templates`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from t_elaine import paths
from t_elaine.data.chat_choice import own_source, token_names
from t_elaine.errors import UserError

# Special tokens that end a turn or a text in the families that are read here; not every folder says so itself.
ENDS = ("<|eot_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>")


class Coder(Protocol):
    """What prompts need of a vocabulary; `t_elaine.data.vocabulary.Vocabulary` is one."""

    @property
    def kind(self) -> str: ...

    @property
    def bos(self) -> int | None: ...

    @property
    def eos(self) -> int | None: ...

    @property
    def special(self) -> dict[str, int]: ...

    @property
    def pieces(self) -> tuple[bytes, ...]: ...

    @property
    def encode_batch(self) -> Any: ...

    def special_id(self, name: str, /) -> int: ...

    def encode(self, text: str, /) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class Manners:
    """How a model is written with.

    Attributes:
        chat_template: Jinja source, "" where the model has none.
        names: what a template may name: bos_token, eos_token … → their text.
        end_ids: of generation_config.json, the vocabulary's EOS, and ENDS.
        before: ids that its tokenizer puts before a text.
        learnt: name of the template of the conversations that it was trained on last; "" if there were none.
        learnt_source: Jinja source of that template, where it is a .jinja file's and the run has kept it.
    """

    chat_template: str
    names: Mapping[str, str]
    end_ids: tuple[int, ...]
    before: tuple[int, ...]
    learnt: str = ""
    learnt_source: str = ""


def read_manners(folders: Sequence[str], vocabulary: Coder) -> Manners:
    """Look through the folders of a model's small files, the first that has a file decides.

    Args:
        folders: a Hugging Face folder; or a run's vocabulary/ and parent/, and the run itself.
        vocabulary: the model's.

    Raises:
        UserError: a file is no JSON.
    """
    config = _json(folders, "tokenizer_config.json")
    learnt: dict[str, str] = next((s["template"] for s in _json(folders, "data.json").values() if "template" in s), {})
    ends = _json(folders, "generation_config.json").get("eos_token_id")
    named = [ends] if isinstance(ends, int) else list(ends or ())
    named += [i for i in (vocabulary.eos, *map(vocabulary.special.get, ENDS)) if i is not None]
    return Manners(
        chat_template=_chat_template(folders, config),
        names=token_names(config),
        end_ids=tuple(sorted(set(named))),
        before=_before(folders, config, vocabulary),
        learnt=learnt.get("name", ""),
        learnt_source=learnt.get("source", ""),
    )


def _before(folders: Sequence[str], config: Mapping[str, Any], vocabulary: Coder) -> tuple[int, ...]:
    """As the training rows had it, where this is known; else as the tokenizer's files say."""
    for store in _json(folders, "data.json").values():
        if "framing" in store:
            return tuple(int(i) for i in store["framing"]["ids"][0])
    if vocabulary.bos is None:
        return ()
    if vocabulary.kind == "huggingface" and not config.get("add_bos_token"):
        if "add_bos_token" in config:
            return ()
        text = next(text for text, i in vocabulary.special.items() if i == vocabulary.bos)
        if json.dumps(text) not in json.dumps(_json(folders, "tokenizer.json").get("post_processor")):
            return ()
    return (vocabulary.bos,)


def _chat_template(folders: Sequence[str], config: Mapping[str, Any]) -> str:
    for folder in folders:
        path = paths.join(folder, "chat_template.jinja")
        if paths.exists(path):
            return paths.read_text(path)
    return own_source(config)


def _json(folders: Sequence[str], name: str) -> dict[str, Any]:
    for folder in folders:
        path = paths.join(folder, name)
        if paths.exists(path):
            try:
                return dict(json.loads(paths.read_text(path)))
            except ValueError as error:
                raise UserError(f"{name} is not JSON: {error}", path, "copy it again") from error
    return {}
