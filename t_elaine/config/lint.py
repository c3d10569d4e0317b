"""Gin lint: finds, before a device is taken, what gin 0.5.0 passes over in silence.

Kinds of fault: an unknown name, an undefined macro, a macro that nobody uses or that leads to itself, a wrong type, a
binding (or a key of a mapping) given twice in one file, a binding that takes effect under no command's root, a required
setting left out, an axis of a sweep that would fail in its runs. Values are not judged.
`python -m t_elaine.config.lint` checks every shipped file.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from t_elaine.config import gin_files, overrides, reach, settings, types
from t_elaine.config.gin_files import MacroUse, Reference, RepeatedKeys, Statement, show
from t_elaine.config.overrides import REQUIRED
from t_elaine.config.written import near, nearest, parts
from t_elaine.errors import UserError
from t_elaine.paths import shipped

# A fragment is checked together with a recipe that it completes.
COMPANIONS = {
    "models": "cpt.gin",
    "hardware": "cpt.gin",
    "recipes": "cpt.gin",
    "sweeps": "cpt.gin",
    "quickstart.gin": "cpt.gin",
    "anneal.gin": "cpt.gin",
}

Known = dict[str, Callable[..., Any]]


@dataclass(frozen=True)
class Fault:
    """One finding: what, where, and how to mend it."""

    what: str
    where: str
    mend: str


def check(command: str, statements: Sequence[Statement], flags: Mapping[str, str] | None = None) -> list[str]:
    """Refuse faulty bindings; tell the deliberate overrides.

    Args:
        command: which is to run.
        statements: of all files and flags.
        flags: settings of the command that its command line can give, and how: {"to": "--to=…"}.

    Returns:
        lines that say what a later file or flag overrides.
    Raises:
        UserError: holds every fault with its place.
    """
    found = [*faults(statements), *missing(command, statements, flags or {})]
    if command in settings.READS:
        found += missing(settings.READS[command], statements, {})
    if found:
        first, rest = found[0], found[1:]
        more = "".join(f"\n\nerror: {f.what}\nwhere: {f.where}\nmend: {f.mend}" for f in rest)
        raise UserError(first.what, first.where, first.mend + more)
    return overrides.tell(statements, command)


def faults(statements: Sequence[Statement]) -> list[Fault]:
    """Every fault that does not depend on which command reads the bindings."""
    known = settings.configurables()
    macros = {s.key: s for s in statements if not s.parameter}
    found: list[Fault] = []
    for statement in statements:
        found += _name_faults(statement, known, macros) or _type_faults(statement, known, macros)
        found += _repeated_keys(statement)
    found += _unused_macros(statements)
    found += _circles(macros)
    found += _given_twice(statements)
    if not found:  # a misspelt name makes others unreachable: tell the cause alone
        found += [_idle_fault(s, statements, known) for s in reach.idle(statements, list(settings.ROOTS))]
        found += _axis_faults(statements, known, macros)
    return found


def _name_faults(statement: Statement, known: Known, macros: dict[str, Statement]) -> list[Fault]:
    key, place = statement.key, statement.place
    found = []
    if statement.parameter and statement.selector not in known:
        what = f"{key}: nothing is called {statement.selector!r}"
        found.append(Fault(what, place, near(statement.selector.split(".")[-1], known)))
    elif statement.parameter:
        names = settings.parameters(known[statement.selector])
        if statement.parameter not in names:
            what = f"{key}: {statement.selector} has no setting {statement.parameter!r}"
            found.append(Fault(what, place, near(statement.parameter, names)))
    makers = [name for name in known if name not in settings.ROOTS]
    for part in parts(statement.value):
        if isinstance(part, Reference) and part.name in settings.ROOTS:
            found.append(Fault(f"{key}: @{part.name} is a command, not a value", place, near(part.name, makers)))
        elif isinstance(part, Reference) and part.name not in known:
            found.append(Fault(f"{key}: nothing is called @{part.name}", place, near(part.name, makers)))
        elif isinstance(part, MacroUse) and part.name not in macros and part != REQUIRED:
            found.append(Fault(f"{key}: macro %{part.name} has no value", place, near(part.name, macros)))
    return found


def _type_faults(statement: Statement, known: Known, macros: dict[str, Statement]) -> list[Fault]:
    if not statement.parameter:
        return []
    hint = types.hints(known[statement.selector]).get(statement.parameter, Any)
    if types.fits(statement.value, hint, {name: s.value for name, s in macros.items()}, known):
        return []
    what = f"{statement.key} = {show(statement.value)} is of the wrong type"
    through = [macros[p.name] for p in parts(statement.value) if isinstance(p, MacroUse) and p.name in macros]
    place = statement.place + "".join(f" (%{s.key} = {show(s.value)} at {s.place})" for s in through)
    return [Fault(what, place, f"expected {types.show(hint)}{_parentheses(statement.value)}")]


def _parentheses(value: Any) -> str:
    bare = [p for p in parts(value) if isinstance(p, Reference) and not p.evaluated]
    return "".join(f"; write {show(replace(p, evaluated=True))} with parentheses" for p in bare)


def _repeated_keys(statement: Statement) -> list[Fault]:
    def mappings(value: Any) -> list[RepeatedKeys]:
        inner = (
            list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list | tuple) else []
        )
        return [value] * isinstance(value, RepeatedKeys) + [m for item in inner for m in mappings(item)]

    return [
        Fault(f"{statement.key}: the mapping names {show(key)} twice", statement.place, "keep one of them")
        for mapping in mappings(statement.value)
        for key in mapping.keys_given_twice
    ]


def _unused_macros(statements: Sequence[Statement]) -> list[Fault]:
    uses = {p.name: s for s in statements for p in parts(s.value) if isinstance(p, MacroUse)}
    defined = {s.key: s for s in statements if not s.parameter}
    open_uses = {name: s for name, s in uses.items() if name not in defined}
    found = []
    for name, s in defined.items():
        if name not in uses:
            meant = nearest(name, open_uses) or nearest(name, uses)
            mend = f"did you mean {meant}, which {uses[meant].place} asks for?" if meant else "take the line out"
            found.append(Fault(f"{name} = {show(s.value)}: no binding uses this macro", s.place, mend))
    return found


def _circles(macros: dict[str, Statement]) -> list[Fault]:
    def leads_to(name: str, seen: frozenset[str]) -> frozenset[str]:
        value = macros[name].value if name in macros else None
        for part in parts(value):
            if isinstance(part, MacroUse) and part.name not in seen:
                seen = leads_to(part.name, seen | {part.name})
        return seen

    return [
        Fault(f"macro {name} = {show(s.value)} leads back to itself", s.place, "give it a value of its own")
        for name, s in macros.items()
        if name in leads_to(name, frozenset())
    ]


def _given_twice(statements: Sequence[Statement]) -> list[Fault]:
    seen: dict[tuple[str, str, int], Statement] = {}
    found = []
    for s in statements:
        first = seen.setdefault((s.key, s.source, s.rank), s)
        if first is not s and first.line == s.line:
            found.append(Fault(f"{s.source} is read twice", s.place, "include it once"))
        elif first is not s:
            what = f"{s.key} = {show(s.value)} is given twice in one file"
            found.append(Fault(what, s.place, f"keep one: it also stands at {first.place} as {show(first.value)}"))
    return found


def _idle_fault(s: Statement, statements: Sequence[Statement], known: Known) -> Fault:
    """Why a binding takes no effect."""
    seen = next(stage for stage in reach.stages(statements) if any(other is s for other in stage))
    alive = reach.states(seen, list(settings.ROOTS))
    bound = {state: values for state, values in alive.items() if state[1] == s.selector}
    scope = reach.scope_of(s.scope)
    outdone = [values[s.parameter] for state, values in bound.items() if state[0][: len(scope)] == scope]
    if outdone:
        what = f"{s.key} = {show(s.value)} never takes effect: {outdone[0].key} ({outdone[0].place}) outdoes it"
        return Fault(what, s.place, f"bind {outdone[0].key} instead, or take the line out")
    if bound:
        entered = {"/".join(state[0]) for state in bound if state[0]}
        by = {p.scope: o.place for o in statements for p in parts(o.value) if isinstance(p, Reference) and p.scope}
        meant = nearest(s.scope, entered)
        mend = f"did you mean {meant}{', which ' + by[meant] + ' enters' if meant in by else ''}?" if meant else ""
        mend = mend or f"take the scope out: {s.selector}.{s.parameter}"
        return Fault(f"{s.key}: nothing enters the scope {s.scope!r}", s.place, mend)
    what = f"{s.key} = {show(s.value)} is read by no command: nothing refers to @{s.selector}()"
    return Fault(
        what, s.place, f"bind it to a setting that takes it, as in {_taker(s.selector, known)}, or take the line out"
    )


def _taker(name: str, known: Known) -> str:
    for holder, target in known.items():
        for parameter, hint in types.hints(target).items():
            if parameter != "return" and name in types.show(hint):
                return f"{holder}.{parameter} = @{name}()"
    return f"… = @{name}()"


def _axis_faults(statements: Sequence[Statement], known: Known, macros: dict[str, Statement]) -> list[Fault]:
    """An axis of a sweep binds a setting in each run: judge those bindings as if they were flags."""
    found = []
    rank = max((s.rank for s in statements), default=0) + 1
    for (_, name), bound in reach.states(statements, ["sweep"]).items():
        if name != "axis" or not {"name", "values"} <= bound.keys():
            continue
        key = _through(bound["name"].value, macros)
        for value in _through(bound["values"].value, macros):
            trial = gin_files.binding(f"{key} = 0", bound["values"].source, rank)
            trial = replace(trial, value=value, line=bound["values"].line)
            told = _trial_faults(trial, bound["name"], statements, known, macros)
            found += [fault for fault in told if fault not in found]
    return found


def _trial_faults(
    trial: Statement, name: Statement, statements: Sequence[Statement], known: Known, macros: dict[str, Statement]
) -> list[Fault]:
    if not trial.parameter:
        if trial.key not in macros:
            return [Fault(f"axis {trial.key}: no such macro", name.place, near(trial.key, macros))]
        return [fault for s in statements for fault in _type_faults(s, known, macros | {trial.key: trial})]
    named = replace(trial, value=None, line=name.line, source=name.source)
    told = _name_faults(named, known, macros) or _type_faults(trial, known, macros)
    tried = [*statements, trial]
    return told or [_idle_fault(s, tried, known) for s in reach.idle(tried, list(settings.ROOTS)) if s is trial]


def _through(value: Any, macros: dict[str, Statement]) -> Any:
    return _through(macros[value.name].value, macros) if isinstance(value, MacroUse) else value


def missing(command: str, statements: Sequence[Statement], flags: Mapping[str, str]) -> list[Fault]:
    """Settings that the command needs and nobody gives: without a default, or left at %gin.REQUIRED."""
    known = settings.configurables()
    macros = {s.key: s for s in statements if not s.parameter}
    place = f"t-elaine {command}"
    found = []
    for (scope, name), bound in sorted(reach.states(statements, [command]).items()):
        for parameter in settings.parameters(known[name]).values() if name in known else ():
            value = bound[parameter.name].value if parameter.name in bound else inspect.Parameter.empty
            if value is inspect.Parameter.empty and parameter.default is value:
                key = f"{'/'.join((*scope, name))}.{parameter.name}"
                hint = types.show(types.hints(known[name]).get(parameter.name, Any))
                flag = f"{flags[parameter.name]} or " if name == command and parameter.name in flags else ""
                found.append(Fault(f"{key} ({hint}) has no value", place, f"{flag}{key} = … in a gin file"))
            for part in parts(value):
                open_macro = isinstance(part, MacroUse) and part.name in macros and macros[part.name].value == REQUIRED
                if part == REQUIRED or open_macro:
                    key = part.name if open_macro else bound[parameter.name].key
                    found.append(Fault(f"{key} must be given", bound[parameter.name].place, f"--gin.{key}=VALUE"))
    return list(dict.fromkeys(found))


def shipped_file_sets() -> list[list[str]]:
    """The shipped gin files as they are meant to be given: fragments after the recipe that they complete."""
    folder = shipped("gin_configs")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.gin"))
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
