"""Which bindings take effect: follows references from the commands' roots, as gin would call them, calling nothing.

gin's rules, as measured on 0.5.0: `@scope/name()` is made in that scope alone, `@name()` in the scope around it, the
value of `%NAME` in a scope called NAME; the longest scope wins.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from t_elaine.config.gin_files import MacroUse, Reference, Statement, show
from t_elaine.config.written import parts

Scope = tuple[str, ...]
Key = tuple[Scope, str, str]
State = tuple[Scope, str]


def scope_of(text: str) -> Scope:
    """A scope as written, in parts."""
    return tuple(text.split("/")) if text else ()


def in_force(statements: Sequence[Statement]) -> dict[Key, Statement]:
    """(scope, selector, parameter) → the last statement that binds it."""
    return {_key(s): s for s in statements}


def states(statements: Sequence[Statement], roots: Iterable[str]) -> dict[State, dict[str, Statement]]:
    """(scope entered, configurable) → its bound parameters, for everything that the roots come to call."""
    force = in_force(statements)
    found: dict[State, dict[str, Statement]] = {}
    queue: list[State] = [((), root) for root in roots]
    while queue:
        state = queue.pop()
        if state in found:
            continue
        found[state] = bound_in(force, state)
        for statement in found[state].values():
            queue += _called(statement.value, state[0], force)
    return found


def bound_in(force: dict[Key, Statement], state: State) -> dict[str, Statement]:
    """Parameter → the statement that wins in a scope."""
    scope, name = state
    bound: dict[str, Statement] = {}
    for depth in range(len(scope) + 1):
        prefix = scope[:depth]
        bound |= {p: s for (inside, n, p), s in force.items() if n == name and p and inside == prefix}
    return bound


def _called(value: Any, scope: Scope, force: dict[Key, Statement], through: tuple[str, ...] = ()) -> Iterator[State]:
    for part in parts(value):
        if isinstance(part, Reference):
            yield (scope_of(part.scope) or scope, part.name)
        elif isinstance(part, MacroUse) and part.name not in through:
            inside = scope_of(part.name)
            target = force.get((inside[:-1], inside[-1], ""))
            if target is not None:
                yield from _called(target.value, inside, force, (*through, part.name))


def stages(statements: Sequence[Statement]) -> list[Sequence[Statement]]:
    """What gin has read at the end of each file and flag; a file that includes another goes on after it."""
    ends = [i for i, s in enumerate(statements) if (s.source, s.rank) != _next_source(statements, i)]
    return [statements[: end + 1] for end in ends]


def _next_source(statements: Sequence[Statement], i: int) -> tuple[str, int] | None:
    return (statements[i + 1].source, statements[i + 1].rank) if i + 1 < len(statements) else None


def idle(statements: Sequence[Statement], roots: Sequence[str]) -> list[Statement]:
    """The bindings that take effect nowhere: never reached, in a scope that nobody enters, or always outdone.

    A binding that a later file makes idle did take effect before: that is an override on purpose.
    """
    waiting = {i: _key(s) for i, s in enumerate(statements) if s.parameter}
    for seen in stages(statements):
        working = {_key(s) for bound in states(seen, roots).values() for s in bound.values()}
        waiting = {i: key for i, key in waiting.items() if i >= len(seen) or key not in working}
    return [statements[i] for i in waiting]


def _key(s: Statement) -> Key:
    return scope_of(s.scope), s.selector, s.parameter


def text_in_force(command: str, statements: Sequence[Statement]) -> str:
    """The settings that a command reads, as one gin file: each with the value in force, defaults left out."""
    force = in_force(statements)
    read = {s.key: s for bound in states(statements, [command]).values() for s in bound.values()}
    macros: dict[str, Statement] = {}
    waiting = list(read.values())
    while waiting:
        for part in parts(waiting.pop().value):
            if isinstance(part, MacroUse) and part.name not in macros:
                *scope, name = part.name.split("/")
                macros[part.name] = force[tuple(scope), name, ""]
                waiting.append(macros[part.name])
    lines = [f"{key} = {show(s.value)}" for found in (macros, read) for key, s in sorted(found.items())]
    return "\n".join([f"# What t-elaine {command} reads; what stands here nowhere has its default.", *lines, ""])
