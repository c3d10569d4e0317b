"""The chat template that a model learnt from, written into its exported folder, and what transformers makes of it.

It knows no templates: name, Jinja source and ids come from outside. Other programs encode what a template renders in
one go between two special tokens; where ours keeps a border there, their ids differ, and that is told, not hidden.
"""

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t_elaine.hf.prompts import PROMPTS

JINJA, OLD_JINJA, CONFIG, GENERATION = (
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer_config.json",
    "generation_config.json",
)
Message = Mapping[str, str]
Conversation = tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The template of the conversations that a run was trained on.

    Attributes:
        name: as the stores call it.
        source: in Jinja.
        end_ids: special tokens by which the model learnt to end its answers.
        ids: (messages, whether the assistant is to go on) → ids as in training. ValueError: the template refuses them.
    """

    name: str
    source: str
    end_ids: Sequence[int]
    ids: Callable[[Sequence[Message], bool], list[int]]


def write(folder: Path, template: ChatTemplate) -> None:
    """Put the template where transformers looks for one, and its end ids where a generation looks for them.

    chat_template.jinja goes first there; programs that know only tokenizer_config.json find the same source in it. A
    generation ends at the ids of generation_config.json: a parent that was no chat model does not name ours.
    """
    (folder / JINJA).write_text(template.source, encoding="utf-8")
    (folder / OLD_JINJA).unlink(missing_ok=True)
    config = _read(folder / CONFIG)
    if config and _default(config) != template.source:
        _write(folder / CONFIG, config | {"chat_template": template.source})
    ends = _read(folder / GENERATION)
    named = ends.get("eos_token_id")
    known = [named] if isinstance(named, int) else list(named or ())
    if lacking := [i for i in template.end_ids if i not in known]:
        every = [*known, *lacking]
        _write(folder / GENERATION, ends | {"eos_token_id": every if len(every) > 1 else every[0]})


def _default(config: Mapping[str, Any]) -> Any:
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        return next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
    return found


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def conversations() -> Iterator[Conversation]:
    """In each language of PROMPTS: a question, with its answer, after a system's turn, and two of them."""
    for texts in PROMPTS.values():
        one, two, three, four, brief = texts[:5]
        yield _turns(one)
        yield _turns(f" {two}\n")
        yield _turns(one, two)
        yield _turns(one, f"\n\n  {two} ")
        yield ({"role": "system", "content": brief}, *_turns(one, two))
        yield _turns(one, two, three)
        yield _turns(one, two, three, four)


def _turns(*texts: str) -> Conversation:
    return tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts))


def compare(folder: Path, template: ChatTemplate) -> dict[str, Any]:
    """What `apply_chat_template` of the folder's tokenizer makes of conversations, beside the ids of training.

    Those that end with the user are asked with add_generation_prompt.

    Returns:
        `name`; `by`: the program; `conversations`: how many the template can write; `differing`: of how many the ids
        differ; `example`: of the first such, our tokens and theirs from one before the difference; `error`: why nothing
        could be compared, or what the program does not refuse although the template does; `passed`.
    """
    found: dict[str, Any] = {"name": template.name, "by": f"transformers {importlib.metadata.version('transformers')}"}
    found |= {"conversations": 0, "differing": 0, "example": [], "error": "", "passed": False}
    try:
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        for messages in conversations():
            _compare_one(found, template, messages, theirs)
    except Exception as error:  # the tokenizers library raises bare Exception
        return found | {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    return found | {"passed": not found["differing"] and not found["error"]}


def _compare_one(found: dict[str, Any], template: ChatTemplate, messages: Conversation, theirs: Any) -> None:
    go_on = messages[-1]["role"] == "user"
    asked = {"add_generation_prompt": go_on, "tokenize": True, "return_dict": False}
    try:
        ours = template.ids(messages, go_on)
    except ValueError:
        if not _refuses(theirs, messages, asked):
            found["error"] = f"it takes {len(messages)} turns, which the template refuses"
        return
    found["conversations"] += 1
    told = list(theirs.apply_chat_template(list(messages), **asked))
    if told == ours:
        return
    found["differing"] += 1
    if not found["example"]:
        same = next((i for i, (a, b) in enumerate(zip(ours, told, strict=False)) if a != b), min(len(ours), len(told)))
        some = slice(max(same - 1, 0), same + 3)
        found["example"] = [theirs.convert_ids_to_tokens(ours[some]), theirs.convert_ids_to_tokens(told[some])]


def _refuses(theirs: Any, messages: Conversation, asked: Mapping[str, Any]) -> bool:
    try:
        theirs.apply_chat_template(list(messages), **asked)
    except Exception:  # jinja2's TemplateError, which this room does not import
        return True
    return False


def summary(found: Mapping[str, Any]) -> str:
    """The comparison in one line; what is lacking, and what to do about it."""
    start = f"chat template {found['name']}, in {JINJA}: "
    if not found.get("by"):
        return f"{start}not compared with the ids of training: transformers is not installed"
    if found["error"]:
        return f"{start}FAILED with {found['by']} ({found['error']}); ask through this project's own `generate`"
    if found["differing"]:
        return (
            f"{start}the text of training, but OTHER IDS with {found['by']} in {found['differing']} of "
            f"{found['conversations']} conversations, since tokens join where training kept parts apart; for the ids "
            "of training ask through this project's own `generate`"
        )
    return f"{start}the ids of training with {found['by']} in {found['conversations']} conversations"
