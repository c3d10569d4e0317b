"""Values as they stand in gin files: walk through them, and show them and likely names to a person."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from t_elaine.config.gin_files import MacroUse, Reference


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


def show(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, Reference):
        return f"@{value.scope + '/' if value.scope else ''}{value.name}{'()' if value.evaluated else ''}"
    if isinstance(value, MacroUse):
        return f"%{value.name}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{show(key)}: {show(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        inner = ", ".join(show(item) for item in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    return repr(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """The name that was probably meant, "" if none is like it."""
    names = sorted(known)
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return next(iter([*found, *(other for other in names if other.lower() == name.lower())]), "")


def near(name: str, known: Iterable[str]) -> str:
    """A hint: the name that was probably meant, else what there is."""
    names = sorted(known)
    found = nearest(name, names)
    if found:
        return f"did you mean {found}?"
    return f"known: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}" if names else "take the line out"
