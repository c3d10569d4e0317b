"""What a store is made from: settings, task, vocabulary, files. Equal identity, equal store; another is refused."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t_elaine.data.chat_choice import choose
from t_elaine.data.exam_filter import ExamFilter
from t_elaine.data.texts import Task, describe
from t_elaine.data.vocabulary import Vocabulary
from t_elaine.errors import UserError
from t_elaine.paths import file_sha256

_SHOWN_DIFFERENCES = 8


@dataclass(frozen=True, kw_only=True)
class Making:
    """How stores are made from tasks. All but the last three fields are part of a store's identity.

    Attributes:
        before, after: framing: "bos", "eos", "pad" or the text of a special token, put around every document.
        validation_share: share of the texts, chosen by hash, kept for validation.
        shards: how many shards to aim for; 0: by size.
        drop_duplicates: of equal texts within the task keep the first.
        max_rejected_share: share of malformed records past which the run stops.
        allowed_licences: refuse sources with another licence; empty: any.
        template: chat template of conversations (`chat_choice.choose`).
        exams: exams that no document may hold, or that are counted; None: not looked for.
        data_root: folder that `{data_root}` in sources' files stands for.
    """

    before: tuple[str, ...] = ("bos",)
    after: tuple[str, ...] = ("eos",)
    validation_share: float = 0.01
    shards: int = 0
    drop_duplicates: bool = False
    max_rejected_share: float = 0.01
    exams: ExamFilter | None = None
    template: str = ""
    allowed_licences: tuple[str, ...] = ()
    data_root: str = ""


def made_by(task: Task, making: Making, vocabulary: Vocabulary, pieces: Any, known: dict[str, Any]) -> dict[str, Any]:
    """Everything that the store's content depends on, as plain JSON."""
    files: dict[str, Any] = {}
    for part in pieces:
        for index, piece in part:
            name = _portable(piece.file, making.data_root)
            if name not in files:
                files[name] = _file_identity(piece.file, task.sources[index].format, known.get(name))
    identity = {
        "task": describe(task),
        "vocabulary": vocabulary.describe(),
        "framing": {"before": list(making.before), "after": list(making.after)},
        "validation_share": making.validation_share,
        "shards": len(pieces),
        "drop_duplicates": making.drop_duplicates,
        "files": files,
    }
    if making.exams:
        identity["exams"] = making.exams.describe()
    if task.preprocessors:  # which alone make conversations
        template = choose(making.template, vocabulary)
        identity["template"] = {"name": template.name, "sha256": template.sha256}
    return json.loads(json.dumps(identity))


def _portable(file: str, data_root: str) -> str:
    """A file's name without the folder of this machine, where it lies under data_root or beside the tasks."""
    root = os.path.abspath(data_root) if data_root else ""
    full = os.path.abspath(file)
    if root and full.startswith(root + os.sep):
        return "{data_root}/" + os.path.relpath(full, root)
    return file if not os.path.isabs(file) else os.path.join(*Path(file).parts[-3:])


def _file_identity(file: str, kind: str, known: dict[str, Any] | None) -> dict[str, Any]:
    if kind == "tfds":
        return {"size": 0, "sha256": "", "mtime_ns": 0}
    status = os.stat(file)
    if known and (known["size"], known.get("mtime_ns")) == (status.st_size, status.st_mtime_ns):
        return known
    return {"size": status.st_size, "sha256": file_sha256(Path(file)), "mtime_ns": status.st_mtime_ns}


def known_digests(final: Path, partial: Path) -> dict[str, Any]:
    """Digests taken by an earlier run: taken again only where size or time of a file changed."""
    for folder in (partial, final):
        path = folder / "sources.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return {}


def without_times(made_by: dict[str, Any]) -> dict[str, Any]:
    files = {name: {k: v for k, v in entry.items() if k != "mtime_ns"} for name, entry in made_by["files"].items()}
    return {**made_by, "files": files}


def same_or_refuse(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    before, after = dict(_flat(old)), dict(_flat(without_times(new)))
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if not changed:
        return
    lines = [f"  {key}: {before.get(key, '(absent)')!r} → {after.get(key, '(absent)')!r}" for key in changed]
    more = [f"  and {len(lines) - _SHOWN_DIFFERENCES} more"] if len(lines) > _SHOWN_DIFFERENCES else []
    what = "\n".join(["the store there was made from something else:", *lines[:_SHOWN_DIFFERENCES], *more])
    raise UserError(what, str(folder), "give another folder, or --overwrite to make it anew")


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for key, inner in items:
        yield from _flat(inner, f"{path}.{key}" if path else str(key))
