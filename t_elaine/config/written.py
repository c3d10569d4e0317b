"""Values as they stand in gin files: walk through them, and show likely names to a person."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

# Share of letters that two names have in common (difflib's ratio) from which one may be meant for the other.
NEAR = 0.6


def parts(value: Any) -> Iterator[Any]:
    """The references, macros and plain values inside a value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from parts(key)
            yield from parts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from parts(item)
    else:
        yield value


def nearest(name: str, known: Iterable[str]) -> str:
    """The name that was probably meant, "" if none is like it."""
    names = sorted(known)
    found = difflib.get_close_matches(name, names, n=1, cutoff=NEAR)
    return next(iter([*found, *(other for other in names if other.lower() == name.lower())]), "")


def near(name: str, known: Iterable[str]) -> str:
    """A hint: the name that was probably meant, else what there is."""
    names = sorted(known)
    found = nearest(name, names)
    if found:
        return f"did you mean {found}?"
    return f"known: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}" if names else "take the line out"
