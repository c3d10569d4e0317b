"""Gin files: find them, read them into statements that keep file and line, hand them to gin, print what is in force.

Judging the statements is `lint.py`'s work.
"""

import dataclasses
import difflib
import hashlib
import re
import tokenize
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gin
from gin import config_parser

from t_elaine.errors import UserError
from t_elaine.paths import shipped


@dataclasses.dataclass(frozen=True)
class Reference:
    """A value `@scope/name` or `@scope/name()`."""

    scope: str
    name: str
    evaluated: bool


@dataclasses.dataclass(frozen=True)
class MacroUse:
    """A value `%NAME`."""

    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
    """One binding as written.

    Args:
        scope: gin scope, "" for none.
        selector: name of the configurable, or of the macro if `parameter` is empty.
        parameter: name of the parameter, "" for a macro.
        value: Python value that may hold `Reference` and `MacroUse`.
        source: the file as given, or "--gin.NAME" for a flag.
        line: 1-based line; 0 for a flag.
        rank: number of the file or flag on the command line; a later one overrides on purpose.
    """

    scope: str
    selector: str
    parameter: str
    value: Any
    source: str
    line: int
    rank: int

    @property
    def key(self) -> str:
        """The binding's name as one would type it."""
        name = f"{self.selector}.{self.parameter}" if self.parameter else self.selector
        return f"{self.scope}/{name}" if self.scope else name

    @property
    def place(self) -> str:
        """file:line, or the flag. A value over several lines counts from its first."""
        return f"{self.source}:{self.line}" if self.line else self.source


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


class RepeatedKeys(dict[Any, Any]):
    """A mapping as written that names some keys more than once (gin would keep the last value without a word)."""

    keys_given_twice: tuple[Any, ...] = ()


class _Parser(config_parser.ConfigParser):
    """gin's parser, which also notices a key that a mapping names twice."""

    def __init__(self, text: str) -> None:
        self._keys: list[list[Any]] = []
        super().__init__(text, _Delegate())

    def _parse_dict_item(self) -> tuple[Any, Any]:
        key, value = super()._parse_dict_item()
        self._keys[-1].append(key)
        return key, value

    def _maybe_parse_container(self) -> tuple[bool, Any]:
        self._keys.append([])
        found, value = super()._maybe_parse_container()
        keys = self._keys.pop()
        if isinstance(value, dict) and len(value) < len(keys):
            value = RepeatedKeys(value)
            value.keys_given_twice = tuple(key for i, key in enumerate(keys) if key in keys[:i])
        return found, value


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        scope, _, name = scoped_configurable_name.rpartition("/")
        return Reference(scope, name, evaluate)

    def macro(self, macro_name: str) -> MacroUse:
        return MacroUse(macro_name)


def find(name: str, included: str = "") -> Path:
    """The gin file of that name: in the working folder, else among the shipped ones.

    Args:
        name: as given.
        included: file:line of the include that names it, "" if it stands on the command line.

    Raises:
        UserError: there is none; names those that look alike.
    """
    for candidate in (Path(name), shipped("gin_configs") / name):
        if candidate.is_file():
            return candidate
    known = sorted(str(p.relative_to(shipped("gin_configs"))) for p in shipped("gin_configs").rglob("*.gin"))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    raise UserError(
        f"there is no gin file {name!r}",
        f"{included and f'included at {included}; '}looked in the working folder and in the shipped gin_configs/",
        f"did you mean {' or '.join(near)}?" if near else f"shipped files: {', '.join(known)}",
    )


def statements(files: Sequence[str], bindings: Sequence[str]) -> list[Statement]:
    """Every binding of the files (includes followed) and then of the flags, in the order in which gin applies them."""
    found: list[Statement] = []
    for rank, name in enumerate(files):
        found.extend(_read_file(name, rank, ()))
    for rank, text in enumerate(bindings, start=len(files)):
        found.extend(_read_text(text, f"--gin.{text.split('=')[0].strip()}", rank, (), flag=True))
    return found


def binding(text: str, source: str, rank: int) -> Statement:
    """One binding, from text that holds just that."""
    return next(iter(_read_text(text, source, rank, (), flag=True)))


def _read_file(name: str, rank: int, stack: tuple[str, ...], included: str = "") -> Iterable[Statement]:
    if name in stack:
        raise UserError(f"gin files include each other: {' → '.join((*stack, name))}", included, "take one include out")
    try:
        text = find(name, included).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text ({error.reason})", name, "save it as UTF-8") from error
    if text.startswith("\ufeff"):
        raise UserError(f"{name} begins with a byte-order mark", name, "save it as UTF-8 without one")
    return _read_text(text, name, rank, (*stack, name))


def _read_text(text: str, source: str, rank: int, stack: tuple[str, ...], flag: bool = False) -> Iterable[Statement]:
    found: list[Statement] = []
    try:
        for parsed in _Parser(text):
            line = 0 if flag else parsed.location.line_num
            match parsed:
                case config_parser.BindingStatement():
                    found.append(
                        Statement(
                            scope=parsed.scope,
                            selector=parsed.selector,
                            parameter=parsed.arg_name,
                            value=parsed.value,
                            source=source,
                            line=line,
                            rank=rank,
                        )
                    )
                case config_parser.IncludeStatement():
                    found.extend(_read_file(parsed.filename, rank, stack, f"{source}:{line}"))
                case config_parser.ImportStatement():
                    raise UserError(
                        f"gin import of {parsed.module!r}",
                        f"{source}:{line}",
                        "name your tasks with --module=… instead",
                    )
    except (SyntaxError, tokenize.TokenError) as error:
        location: Any = error.args[1] if len(error.args) > 1 else None
        line = getattr(location, "line_num", None) or (location[0] if isinstance(location, tuple) else 0) or 0
        content = (getattr(location, "line_content", "") or getattr(error, "text", "") or "").strip()
        bare = re.search(r"Failed to parse token '(.+?)'", str(error.args[0]))  # Python's own text holds an address
        told = f"{bare.group(1)!r} is no value (strings stand in quotes)" if bare else error.args[0]
        raise UserError(
            f"not gin syntax: {told}" + (f"   in: {content}" if content else ""),
            source if flag else f"{source}:{line}",
            "a binding is NAME.parameter = value, with strings in quotes: --gin.RUN_DIR=\"'runs/one'\"",
        ) from error
    return found


def apply(read: Sequence[Statement]) -> None:
    """Give the statements of files and flags to gin and freeze it. The lint has passed: gin has nothing to refuse.

    gin gets them statement by statement, includes followed by us: its own search for files takes any folder of the
    working folder for a Python package, and fails where one bears the name of a shipped folder, as `models`.
    What was in force before is forgotten, so that one process can run several commands.
    """
    gin.clear_config()
    text = [f"{statement.key} = {show(statement.value)}" for statement in read]
    gin.parse_config_files_and_bindings([], text, finalize_config=True, skip_unknown=False)


def digest(text: str) -> str:
    """sha256 of a configuration without the lines that only say where a run lies."""
    kept = [line for line in text.splitlines() if not re.match(r"\s*(#|RUN_DIR\s*=)", line)]
    return hashlib.sha256("\n".join(line for line in kept if line.strip()).encode()).hexdigest()
