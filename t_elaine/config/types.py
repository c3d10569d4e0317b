"""Does a value as written in a gin file fit a parameter's annotation? References and macros are seen through."""

import itertools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t_elaine.config.gin_files import MacroUse, Reference


def hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Parameter → annotation, with strings resolved."""
    return typing.get_type_hints(target)


def made_by(target: Callable[..., Any]) -> Any:
    """The annotation of what a configurable makes."""
    return target if isinstance(target, type) else hints(target).get("return", Any)


def fits(
    value: Any,
    hint: Any,
    macros: Mapping[str, Any],
    known: Mapping[str, Callable[..., Any]],
    through: tuple[str, ...] = (),
) -> bool:
    """True if `value` may stand where `hint` is asked for.

    Args:
        value: a parsed gin value.
        hint: a resolved annotation.
        macros: macro → value in force; a macro that is missing fits (its own fault is told elsewhere).
        known: configurable → target, to see what a reference makes.
        through: macros on the way here; one that leads to itself fits (its own fault is told elsewhere).
    """
    if isinstance(value, MacroUse):
        if value.name not in macros or value.name in through:
            return True
        return fits(macros[value.name], hint, macros, known, (*through, value.name))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part, macros, known, through) for part in arguments)
    if isinstance(value, Reference):
        return _reference_fits(value, hint, known)
    if origin is typing.Literal:
        return any(value == allowed and type(value) is type(allowed) for allowed in arguments)
    if origin in (tuple, list, Sequence) or hint in (tuple, list, Sequence):
        return isinstance(value, list | tuple) and all(
            fits(item, part, macros, known, through) for item, part in _items(value, origin, arguments)
        )
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        key, item = arguments or (Any, Any)
        return isinstance(value, dict) and all(
            fits(k, key, macros, known, through) and fits(v, item, macros, known, through) for k, v in value.items()
        )
    return _plain_fits(value, hint)


def _items(value: Sequence[Any], origin: Any, arguments: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    if not arguments:
        return []
    if origin is tuple and arguments[-1] is not Ellipsis:
        # A fixed-length tuple: a wrong length pairs what is too much or missing with a type that nothing fits.
        return list(itertools.zip_longest(value, arguments, fillvalue=typing.NoReturn))
    return [(item, arguments[0]) for item in value]


def _reference_fits(value: Reference, hint: Any, known: Mapping[str, Callable[..., Any]]) -> bool:
    target = known.get(value.name)
    if target is None:
        return True
    if not value.evaluated:
        return Callable in (hint, typing.get_origin(hint))
    made = made_by(target)
    return made == hint or (isinstance(made, type) and isinstance(hint, type) and issubclass(made, hint))


def _plain_fits(value: Any, hint: Any) -> bool:
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def show(hint: Any) -> str:
    """An annotation as one reads it: `tuple[str, ...]`, `AdamW or None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(show(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) not in (None, typing.Literal):
        name = getattr(typing.get_origin(hint), "__name__", str(hint))
        return f"{name}[{', '.join('...' if part is Ellipsis else show(part) for part in typing.get_args(hint))}]"
    if hint is type(None):
        return "None"
    if isinstance(hint, type) and not typing.get_args(hint):
        return f"@{hint.__name__}()" if hint.__module__.startswith("t_elaine") else hint.__name__
    return str(hint).replace("typing.", "").replace("collections.abc.", "")
