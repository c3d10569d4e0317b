"""Seeded mutations of gin files: each puts exactly one fault into a set of files that was right.

The kinds, written down before the lint was tried on them (`mutation_kinds.py` makes them):

selector         a letter wrong in the name of a configurable that is bound
parameter        a letter wrong in the name of a setting
reference        a letter wrong in the name after @
macro_defined    a letter wrong where a macro gets its value, so that its users miss it (or the override is lost)
macro_used       a letter wrong after %
scope_bound      a letter wrong in the scope of a binding
scope_entered    a letter wrong in the scope of a reference, so that what is bound in the scope is never read
dead_scope       a scope put before a binding that had none
wrong_type       a value of another type: text for a number, a number for text, a fraction for a whole number, a list
                 for one value, one value for a list, a word for a truth value, a plain value for a reference
wrong_inside     a value of another type inside a list, tuple or mapping
wrong_macro      a macro's value of another type than its user asks for
wrong_reference  a reference to something that makes another type
no_parentheses   a reference without its parentheses
duplicate        a binding given once more in the same file, with the same value or another
duplicate_key    a key of a mapping given twice
unused_macro     a macro that nobody uses
circle           a macro whose value is itself
unreachable      a right binding of a configurable that nobody refers to
cut              the only reference to a configurable taken out, which leaves its bindings unread
command          a command where a value is expected
misplaced        a setting bound to a configurable that has it not, though another has
syntax           a bracket, quote or equals sign lost

Whether a mutation is a fault is decided here without the lint: a changed name must be nobody's name, a changed type
must be named nowhere in the annotation (as text). Places are 1-based lines; what spreads over several lines counts from
its first.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path

from t_elaine.config import gin_files, settings
from t_elaine.config.gin_files import Statement


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One fault.

    Args:
        kind: one of the kinds above.
        file: the file that is changed.
        text: what it holds then.
        places: "file:line"; the lint must name one of them.
        meant: the right name, if the fault is a misspelt one; the message must hold it.
        note: the line before and after, for a person.
    """

    kind: str
    file: str
    text: str
    places: tuple[str, ...]
    meant: str = ""
    note: str = ""


class Scene:
    """A set of gin files as the mutations see it: texts, statements, names."""

    def __init__(self, files: list[str]) -> None:
        """Read the files."""
        self.statements = gin_files.statements(files, ())
        self.sources = sorted({s.source for s in self.statements})
        self.lines = {name: gin_files.find(name).read_text(encoding="utf-8").splitlines() for name in self.sources}
        self.targets = settings.configurables()
        self.macros = {s.key for s in self.statements if not s.parameter}
        self.bindings = [s for s in self.statements if s.parameter]

    def line(self, s: Statement) -> str:
        return self.lines[s.source][s.line - 1]

    def one_line(self, s: Statement) -> bool:
        """The statement is not spread over several lines."""
        return bool(re.search(r"[^\\({\[,\s]\s*$", self.line(s))) and "#" not in self.line(s)

    def free_line(self, s: Statement) -> bool:
        """The statement is one line, and not inside a block."""
        return self.one_line(s) and not self.line(s).startswith(" ") and "=" in self.line(s)

    def changed(self, kind: str, s: Statement, line: str, meant: str = "", places: tuple[str, ...] = ()) -> Mutation:
        lines = list(self.lines[s.source])
        lines[s.line - 1] = line
        note = f"{s.place}: {self.line(s).strip()}  →  {line.strip()}"
        text = "\n".join(lines) + "\n"
        return Mutation(kind=kind, file=s.source, text=text, places=places or (s.place,), meant=meant, note=note)

    def added(self, kind: str, rng: random.Random, line: str, source: str, meant: str = "") -> Mutation:
        lines = [*self.lines[source], line]
        place = (f"{source}:{len(lines)}",)
        note = f"{place[0]}: + {line}"
        return Mutation(kind=kind, file=source, text="\n".join(lines) + "\n", places=place, meant=meant, note=note)

    def names(self) -> set[str]:
        """Every name that means something somewhere."""
        found = set(self.targets) | self.macros
        for target in self.targets.values():
            found |= set(settings.parameters(target))
        return found | {part for s in self.statements for part in s.scope.split("/")}

    def annotation(self, s: Statement) -> str:
        return str(settings.parameters(self.targets[s.selector])[s.parameter].annotation)


def put(mutation: Mutation, folder: Path) -> None:
    """Write the changed file where it hides the shipped one of that name."""
    path = folder / mutation.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(mutation.text, encoding="utf-8")
