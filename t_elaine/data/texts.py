"""A task and its documents: sources, preprocessed record by record, checked, ready for the tokenizer.

Registries of tasks and everything that needs SeqIO or TensorFlow stand in data/tasks.py.
"""

import functools
import hashlib
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from t_elaine.data.chat import Turns
from t_elaine.data.chat_templates import Part
from t_elaine.data.formats import SHOWN, Record, Rejected, first_line
from t_elaine.data.lines import Piece
from t_elaine.data.sources import Document, Source, check_text, read_piece, text_hash
from t_elaine.errors import UserError

Fields = dict[str, Any]
Preprocessor = Callable[[Fields], Fields | Iterable[Fields] | None]
"""Fields of a record → fields, several, or None to leave it out. A ValueError sets the record aside, with its
text; any other exception stops the run."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Sources and what is done to their records: Python `preprocessors` first, then SeqIO's `tf_preprocessors`."""

    name: str
    sources: tuple[Source, ...]
    preprocessors: tuple[Preprocessor, ...] = ()
    tf_preprocessors: tuple[Callable[..., Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Text:
    """A document ready for the tokenizer.

    Attributes:
        text: of a conversation, what it says.
        turns: of a conversation; of any other text none.
        rejected: of a preference, the dialogue that is not preferred; `turns` are those of the chosen one.
        parts: what the chat template made of the turns.
        rejected_parts: and of the rejected ones.
    """

    text: str
    id: str
    line: int
    turns: Turns = ()
    rejected: Turns = ()
    parts: tuple[Part, ...] = ()
    rejected_parts: tuple[Part, ...] = ()


def describe(task: Task) -> dict[str, Any]:
    """What makes the task what it is, for the manifest: a store is refused if this changes.

    Where the files lie is no part of it (their names and digests are recorded apart).
    """
    sources = [{k: v for k, v in asdict(source).items() if k != "files"} for source in task.sources]
    steps = {"preprocessors": task.preprocessors, "tf_preprocessors": task.tf_preprocessors}
    return {"name": task.name, "sources": sources} | {k: [_identity(f) for f in v] for k, v in steps.items()}


def _identity(function: Callable[..., Any]) -> str:
    """Name and digest of the source code of a function (for a partial, its arguments too)."""
    if isinstance(function, functools.partial):
        return f"{_identity(function.func)}{function.args}{sorted(function.keywords.items())}"
    try:
        code = inspect.getsource(function)
    except (OSError, TypeError):
        code = repr(type(function))
    return f"{_name(function)}@{hashlib.sha256(code.encode()).hexdigest()[:12]}"


def _name(function: Callable[..., Any]) -> str:
    if isinstance(function, functools.partial):
        return _name(function.func)
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def texts(task: Task, source: Source, piece: Piece) -> Iterator[Text | Rejected]:
    """The documents of a piece after preprocessing, and what was set aside."""
    found = _prepared(task, source, piece)
    if task.tf_preprocessors:
        from t_elaine.data.tasks import through_tf  # TensorFlow lives there only

        found = through_tf(task, source, found)
    for item in found:
        yield item if isinstance(item, Rejected) else checked(item, source)


def _prepared(task: Task, source: Source, piece: Piece) -> Iterator[Record | Rejected]:
    for item in read_piece(source, piece):
        if isinstance(item, Rejected):
            yield item
            continue
        try:
            made = _through(task, item, source, piece)
        except ValueError as error:
            reason = f"preprocessor: {type(error).__name__}: {error}"[:SHOWN]
            yield Rejected(line=item.line, reason=reason, shown=str(item.fields)[:SHOWN])
            continue
        yield from ((item.line, fields) for fields in made)


def _through(task: Task, item: Document, source: Source, piece: Piece) -> list[Fields]:
    records = [item.fields]
    for step in task.preprocessors:
        try:
            records = [made for fields in records for made in _several(step(fields))]
        except (ValueError, UserError):
            raise
        except Exception as error:  # code of the user's own may raise anything
            raise _failed(error, step, source, f"{piece.file}:{first_line(source, piece) + item.line}") from error
    return records


def _failed(error: Exception, step: Preprocessor, source: Source, where: str) -> UserError:
    """A mistake in a preprocessor, not in the record: which, where in its code, and the record that brought it out."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    told = type(error).__name__ + ("" if source.private else f": {error}"[:SHOWN])
    what = f"the preprocessor {_name(step)} failed with {told} ({frame.filename}:{frame.lineno})"
    mend = "mend the preprocessor, or let it raise ValueError for records that are to be set aside"
    return UserError(what, where, mend)


def _several(result: Fields | Iterable[Fields] | None) -> list[Fields]:
    if result is None:
        return []
    found = [result] if isinstance(result, dict) else list(result)
    for fields in found:
        if not isinstance(fields, dict):
            raise TypeError(f"it gave {type(result).__name__}, which is neither fields (a dict) nor several of them")
    return found


def checked(record: Record, source: Source) -> Text | Rejected:
    """A record as a document, or the reason why it cannot be one."""
    line, fields = record
    turns, rejected = fields.get("turns", ()), fields.get("rejected_turns", ())
    if turns:
        fields = {**fields, source.text: "\n".join(turn.text() for turn in (*turns, *rejected[-1:]))}
    reason = check_text(fields, source)
    if reason:
        shown = fields.get(source.text, fields)
        return Rejected(line=line, reason=reason, shown=str(shown)[:SHOWN])
    text, name = fields[source.text], fields.get(source.id)
    identity = f"{text_hash(text):016x}" if name in (None, "") else str(name)
    name = identity.encode("utf-8", "replace").decode()
    return Text(text=text, id=name, line=line, turns=turns, rejected=rejected)
