"""Gin lint: finds what gin 0.5.0 passes over in silence, before a device is taken."""

import difflib
from collections.abc import Sequence

from t_elaine.config import settings
from t_elaine.config.gin_files import Statement
from t_elaine.errors import UserError


def check(command: str, statements: Sequence[Statement]) -> None:
    """Refuse bindings of names that do not exist.

    Raises:
        UserError: the first fault, with its place and the nearest valid name.
    """
    known = settings.configurables()
    for statement in statements:
        if not statement.parameter:
            continue
        if statement.selector not in known:
            raise UserError(
                f"{statement.key}: nothing is called {statement.selector!r}",
                statement.place,
                _near(statement.selector, list(known)),
            )
        names = list(settings.parameters(known[statement.selector]))
        if statement.parameter not in names:
            raise UserError(f"{statement.key}: no such setting", statement.place, _near(statement.parameter, names))


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
