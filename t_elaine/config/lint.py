"""Gin lint: finds, before a device is taken, what gin 0.5.0 passes over in silence.

Kinds of fault: an unknown name, an undefined macro, a macro that nobody uses, a wrong type, a binding given twice in
one file, a binding (or scope) that no command's root reaches, a required setting left out. Values are not judged.
`python -m t_elaine.config.lint` checks every shipped file.
"""

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from t_elaine.config import gin_files, settings, types
from t_elaine.config.gin_files import MacroUse, Reference, Statement
from t_elaine.errors import UserError
from t_elaine.paths import shipped

# A fragment is checked together with a recipe that it completes.
COMPANIONS = {"models": "cpt.gin", "hardware": "cpt.gin"}


@dataclass(frozen=True)
class Fault:
    """One finding: what, where, and how to mend it."""

    what: str
    where: str
    mend: str


def check(command: str, statements: Sequence[Statement]) -> list[str]:
    """Refuse faulty bindings; list the deliberate overrides.

    Returns:
        a line for each binding that a later file or flag overrides.
    Raises:
        UserError: holds every fault with its place.
    """
    found = [*faults(statements), *missing(command, statements)]
    if found:
        first, rest = found[0], found[1:]
        more = "".join(f"\n\nerror: {f.what}\nwhere: {f.where}\nmend: {f.mend}" for f in rest)
        raise UserError(first.what, first.where, first.mend + more)
    return overrides(statements)


def faults(statements: Sequence[Statement]) -> list[Fault]:
    """Every fault that does not depend on which command reads the bindings."""
    known = settings.configurables()
    macros = {s.key: s.value for s in statements if not s.parameter}
    found: list[Fault] = []
    for statement in statements:
        found += _name_faults(statement, known, macros) or _type_faults(statement, known, macros)
    found += _unused_macros(statements)
    found += _given_twice(statements)
    if not found:  # a misspelt name makes others unreachable: tell the cause alone
        found += _unreachable(statements, known)
    return found


def _name_faults(statement: Statement, known: dict[str, Any], macros: dict[str, Any]) -> list[Fault]:
    found = []
    if statement.parameter and statement.selector not in known:
        found.append(
            Fault(
                f"{statement.key}: nothing is called {statement.selector!r}",
                statement.place,
                near(statement.selector, known),
            )
        )
    elif statement.parameter:
        names = settings.parameters(known[statement.selector])
        if statement.parameter not in names:
            what = f"{statement.key}: {statement.selector} has no setting {statement.parameter!r}"
            found.append(Fault(what, statement.place, near(statement.parameter, names)))
    for part in parts(statement.value):
        if isinstance(part, Reference) and part.name not in known:
            found.append(
                Fault(f"{statement.key}: nothing is called @{part.name}", statement.place, near(part.name, known))
            )
        if isinstance(part, MacroUse) and part.name not in macros:
            found.append(
                Fault(f"{statement.key}: macro %{part.name} has no value", statement.place, near(part.name, macros))
            )
    return found


def _type_faults(statement: Statement, known: dict[str, Any], macros: dict[str, Any]) -> list[Fault]:
    if not statement.parameter:
        return []
    hint = types.hints(known[statement.selector]).get(statement.parameter, Any)
    if types.fits(statement.value, hint, macros, known):
        return []
    what = f"{statement.key} = {show(statement.value)} is of the wrong type"
    return [Fault(what, statement.place, f"expected {types.show(hint)}")]


def _unused_macros(statements: Sequence[Statement]) -> list[Fault]:
    used = {p.name for s in statements for p in parts(s.value) if isinstance(p, MacroUse)}
    defined = {s.key: s for s in statements if not s.parameter}
    return [
        Fault(f"{name} = {show(s.value)}: no binding uses this macro", s.place, near(name, used))
        for name, s in defined.items()
        if name not in used
    ]


def _given_twice(statements: Sequence[Statement]) -> list[Fault]:
    seen: dict[tuple[str, str, int], Statement] = {}
    found = []
    for s in statements:
        first = seen.setdefault((s.key, s.source, s.rank), s)
        if first is not s:
            what = f"{s.key} = {show(s.value)} is given twice in one file"
            found.append(Fault(what, s.place, f"keep one: it also stands at {first.place} as {show(first.value)}"))
    return found


def _unreachable(statements: Sequence[Statement], known: dict[str, Callable[..., Any]]) -> list[Fault]:
    alive = _walk(statements, settings.ROOTS)
    found = []
    for s in statements:
        if not s.parameter:
            continue
        scope = tuple(s.scope.split("/")) if s.scope else ()
        if any(name == s.selector and entered[: len(scope)] == scope for entered, name in alive):
            continue
        scopes = sorted({"/".join(entered) for entered, name in alive if name == s.selector and entered})
        if s.scope and any(name == s.selector for _, name in alive):
            mend = near(s.scope, scopes) if scopes else f"take the scope out: {s.selector}.{s.parameter}"
            found.append(Fault(f"{s.key}: nothing enters the scope {s.scope!r}", s.place, mend))
        else:
            mend = f"bind it to a setting that takes it, as in {_taker(s.selector, known)}, or take the line out"
            found.append(
                Fault(
                    f"{s.key} = {show(s.value)} is read by no command: nothing refers to @{s.selector}()", s.place, mend
                )
            )
    return found


def _walk(statements: Sequence[Statement], roots: Iterable[str]) -> set[tuple[tuple[str, ...], str]]:
    """(scope entered, configurable) for everything that the roots come to call, by the bindings in force."""
    force = {(s.scope, s.selector, s.parameter): s.value for s in statements}
    alive: set[tuple[tuple[str, ...], str]] = set()
    queue: list[tuple[tuple[str, ...], str]] = [((), root) for root in roots]
    while queue:
        state = queue.pop()
        if state in alive:
            continue
        alive.add(state)
        scope, name = state
        bound: dict[str, Any] = {}
        for depth in range(len(scope) + 1):  # gin: the longer scope overrides the shorter
            prefix = "/".join(scope[:depth])
            bound.update({p: v for (s, n, p), v in force.items() if n == name and s == prefix and p})
        for value in bound.values():
            for part in _through_macros(value, force):
                queue.append((tuple(part.scope.split("/")) if part.scope else scope, part.name))
    return alive


def _through_macros(value: Any, force: dict[tuple[str, str, str], Any], depth: int = 0) -> Iterator[Reference]:
    for part in parts(value):
        if isinstance(part, Reference):
            yield part
        elif isinstance(part, MacroUse) and depth < 20:
            scope, _, name = part.name.rpartition("/")
            yield from _through_macros(force.get((scope, name, "")), force, depth + 1)


def missing(command: str, statements: Sequence[Statement]) -> list[Fault]:
    """Settings without a default that the command needs and nobody binds."""
    known = settings.configurables()
    found = []
    for scope, name in sorted(_walk(statements, [command])):
        if name not in known:
            continue
        bound = {
            s.parameter
            for s in statements
            if s.selector == name and (not s.scope or "/".join(scope).startswith(s.scope))
        }
        for parameter in settings.parameters(known[name]).values():
            if parameter.default is inspect.Parameter.empty and parameter.name not in bound:
                hint = types.show(types.hints(known[name]).get(parameter.name, Any))
                mend = (
                    f"--{parameter.name}=… or {name}.{parameter.name} = … in a gin file"
                    if name == command
                    else f"{name}.{parameter.name} = … in a gin file"
                )
                found.append(Fault(f"{name}.{parameter.name} ({hint}) has no value", f"t-elaine {command}", mend))
    return found


def overrides(statements: Sequence[Statement]) -> list[str]:
    """A line for each binding that a later file or flag overrides on purpose."""
    last: dict[str, Statement] = {}
    lines = []
    for s in statements:
        before = last.get(s.key)
        if before is not None and before.value != s.value:
            lines.append(f"override: {s.key} = {show(before.value)} ({before.place}) → {show(s.value)} ({s.place})")
        last[s.key] = s
    return lines


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
    if isinstance(value, list | tuple):
        inner = ", ".join(show(item) for item in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner},)"
    return repr(value)


def near(name: str, known: Iterable[str]) -> str:
    """A hint: the name that was probably meant, else what there is."""
    names = sorted(known)
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if found:
        return f"did you mean {found[0]}?"
    return f"known: {', '.join(names[:20])}" if names else "take the line out"


def _taker(name: str, known: dict[str, Callable[..., Any]]) -> str:
    for holder, target in known.items():
        for parameter, hint in types.hints(target).items():
            if name in str(hint):
                return f"{holder}.{parameter} = @{name}()"
    return f"… = @{name}()"


def shipped_file_sets() -> list[list[str]]:
    """The shipped gin files as they are meant to be given: fragments after the recipe that they complete."""
    folder = shipped("gin_configs")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.gin") if path.parent.name != "sweeps")
    return [[COMPANIONS[name.split("/")[0]], name] if name.split("/")[0] in COMPANIONS else [name] for name in names]


def main() -> int:
    """Check every shipped file; prints the faults, returns 1 if there are any."""
    sets = shipped_file_sets()
    found = [(files, fault) for files in sets for fault in faults(gin_files.statements(files, ()))]
    for files, fault in found:
        print(f"{' + '.join(files)}\n  error: {fault.what}\n  where: {fault.where}\n  mend: {fault.mend}")
    print(f"gin lint: {len(sets)} shipped files, {len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
