"""The small files that travel with a model: licence and notices, tokenizer, chat template, generation config.

An import keeps the parent's in RUN_DIR/parent/; an export puts them beside the weights again. It knows no tensors.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from t_elaine import parentage, paths
from t_elaine.errors import UserError

TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model")  # what a vocabulary's sha256 is taken of
TEMPLATES = ("chat_template.jinja", "chat_template.json")
OTHERS = ("config.json", "generation_config.json", "README.md")
LARGEST = 100_000_000


def carried(names: list[str]) -> list[str]:
    """Those of a folder's files that are kept with an imported model."""
    exact = (*TOKENIZER, *TEMPLATES, *OTHERS)
    return [name for name in names if name in exact or parentage.is_legal(name)]


def keep_parent(folder: Path, run_dir: str) -> list[str]:
    """Copy a Hugging Face folder's small files to RUN_DIR/parent/; returns their names.

    Raises:
        UserError: one of them is larger than 100 MB, so it is not what its name says.
    """
    names = carried(sorted(path.name for path in folder.iterdir() if path.is_file()))
    paths.make_folder(paths.join(run_dir, "parent"))
    for name in names:
        if (folder / name).stat().st_size > LARGEST:
            raise UserError(f"{name} has more than {LARGEST} bytes", str(folder), "take it out of the folder")
        paths.send(folder / name, paths.join(run_dir, "parent", name))
    return names


def write_beside(run_dir: str, out: Path, vocabulary_sha256: str) -> list[str]:
    """Put tokenizer, chat template, generation config and the parent's legal files into an exported folder.

    The run's own vocabulary goes before the parent's; the parent's other tokenizer files follow only where both are one
    and the same tokenizer. Returns the names written.

    Args:
        run_dir: the run folder.
        out: the exported folder.
        vocabulary_sha256: of the vocabulary that the checkpoint was trained with.
    """
    parent, own = paths.join(run_dir, "parent"), paths.join(run_dir, "vocabulary")
    names = paths.listing(parent)
    files = [paths.join(parent, name) for name in VOCABULARY_FILES if name in names]
    same = any(paths.file_sha256(file) == vocabulary_sha256 for file in files)
    written = []
    for name in names:
        if parentage.is_legal(name) or name == "generation_config.json" or (same and name in (*TOKENIZER, *TEMPLATES)):
            written.append(_copy(paths.join(parent, name), out / name))
        elif name == "README.md":
            written.append(_copy(paths.join(parent, name), out / "PARENT_README.md"))
    for name in paths.listing(own):
        if name in (*TOKENIZER, *TEMPLATES):
            written.append(_copy(paths.join(own, name), out / name))
    return sorted(set(written))


def record(run_dir: str, *parts: str) -> dict[str, Any]:
    """A JSON file of the run folder; {} where there is none."""
    file = paths.join(run_dir, *parts)
    return json.loads(paths.read_text(file)) if paths.exists(file) else {}


def keep_origin(run_dir: str, origin: str) -> None:
    """Write down where an imported model came from; it travels with parent/ to the runs that start from it."""
    paths.make_folder(parentage.folder(run_dir))
    paths.write_text(paths.join(parentage.folder(run_dir), parentage.ORIGIN), json.dumps({"origin": origin}) + "\n")


def origin_record(run_dir: str) -> str:
    """What `keep_origin` wrote, "" where nobody did."""
    return str(record(run_dir, "parent", parentage.ORIGIN).get("origin", ""))


def keep_growth(run_dir: str, before: int, size: int) -> None:
    """Write down that a model was given rows for more ids, and how many it truly has (its tables are padded)."""
    text = json.dumps({"from": before, "size": size}) + "\n"
    paths.write_text(paths.join(parentage.folder(run_dir), parentage.GROWN), text)


def true_size(run_dir: str) -> int | None:
    """Ids that a model with padded tables truly has; None where the tables are not padded."""
    found = record(run_dir, "parent", parentage.GROWN).get("size")
    return None if found is None else int(found)


def merge_record(run_dir: str) -> dict[str, Any]:
    """RUN_DIR/parent/merge.json: what the model that a run began with was merged from; {} where it was not merged."""
    return record(run_dir, "parent", parentage.MERGE)


def parent_config(run_dir: str) -> dict[str, Any]:
    """The parent's config.json as it was imported, {} for a run that started from random parameters."""
    return record(run_dir, "parent", "config.json")


def vocabulary_record(run_dir: str) -> dict[str, Any]:
    """RUN_DIR/vocabulary/vocabulary.json: kind, sha256, size and special ids; {} where the run has none."""
    return record(run_dir, "vocabulary", "vocabulary.json")


def data_record(run_dir: str) -> dict[str, Any]:
    """RUN_DIR/data.json: what the stores are that the run was trained on, by name; {} where it was not trained."""
    return record(run_dir, "data.json")


def begins(run_dir: str) -> list[int]:
    """Ids before every document of the run's training rows; of an untrained model its BOS, if it has one."""
    for store in data_record(run_dir).values():
        if "framing" in store:
            return [int(i) for i in store["framing"]["ids"][0]]
    bos = vocabulary_record(run_dir).get("bos")
    return [] if bos is None else [int(bos)]


def _copy(source: str, target: Path) -> str:
    with paths.open_file(source) as incoming, open(target, "wb") as sink:
        shutil.copyfileobj(incoming, sink)
    return target.name
