"""Every seeded mutation of right gin files is caught, at its line, with the name that was meant."""

import itertools
import re
from collections import Counter
from pathlib import Path

import pytest

from t_elaine.config import gin_files, lint
from t_elaine.errors import UserError
from tests.config.mutation_kinds import KINDS, mutations
from tests.config.mutations import Mutation, put

SEED = 1
MADE_UP = [["base.gin"], ["base.gin", "small.gin"], ["base.gin", "sweep.gin"]]


def told(files: list[str]) -> list[str]:
    """What the lint says of a set of files: a text for each fault."""
    try:
        return [f"{f.what}\n{f.where}\n{f.mend}" for f in lint.faults(gin_files.statements(files, ()))]
    except UserError as error:
        return [error.text()]


def missed(files: list[str], mutation: Mutation, folder: Path) -> str:
    """Why a mutation counts as not caught; "" if it was."""
    before = (folder / mutation.file).read_text(encoding="utf-8") if (folder / mutation.file).exists() else None
    put(mutation, folder)
    found = told(files)
    if before is None:
        (folder / mutation.file).unlink()
    else:
        (folder / mutation.file).write_text(before, encoding="utf-8")
    everything = "\n".join(found)
    at_place = [
        text for text in found if any(re.search(rf"{re.escape(place)}(?!\d)", text) for place in mutation.places)
    ]
    problem = "" if found else "silent"
    if found and not at_place:
        problem = f"not at {mutation.places[0]}"
    if found and at_place and mutation.meant and mutation.meant not in everything:
        problem = f"{mutation.meant} not named"
    return f"{mutation.kind} [{mutation.note}] {problem}: {everything}" if problem else ""


def tried(sets: list[list[str]], count: int, seed: int, folder: Path) -> tuple[list[str], Counter[str]]:
    """`count` mutations, the sets in turn; returns those missed and how many of each kind were made."""
    streams = [(files, mutations(files, seed + i)) for i, files in enumerate(sets)]
    kinds: Counter[str] = Counter()
    found = []
    for files, stream in itertools.islice(itertools.cycle(streams), count):
        mutation = next(stream)
        kinds[mutation.kind] += 1
        problem = missed(files, mutation, folder)
        found += [problem] if problem else []
    return found, kinds


def test_made_up_files_are_right(house: Path) -> None:
    assert [told(files) for files in MADE_UP] == [[]] * len(MADE_UP)


def test_mutations_of_made_up_files_are_caught(house: Path) -> None:
    found, kinds = tried(MADE_UP, 300, SEED, house)
    assert found == []
    assert set(kinds) == set(KINDS), "a kind was never made"


def test_shipped_files_are_right() -> None:
    assert {str(files): told(files) for files in lint.shipped_file_sets() if told(files)} == {}


def test_mutations_of_shipped_files_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, kinds = tried(lint.shipped_file_sets(), 200, SEED, tmp_path)
    assert found == []
    assert len(kinds) >= 15, kinds
