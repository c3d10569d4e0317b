"""What all commands share: flags, gin, the lint, exit codes. Each command's own file says which flags it has.

Exit codes: 0 done, 2 a `UserError` (three lines, no traceback), 1 a bug (traceback).
"""

import ast
import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any

from t_elaine.errors import UserError

COMMANDS = (
    "doctor",
    "plan",
    "prepare",
    "import_hf",
    "sweep",
    "train",
    "evaluate",
    "export",
    "generate",
    "merge",
    "report",
)


def run(command: str, argv: Sequence[str] | None, flags: Sequence[str] = (), positional: str = "") -> int:
    """Parse the command line, lint and load the gin files, call the command's root function.

    Args:
        command: name of the command, a key of `config.settings.ROOTS`.
        argv: arguments without the program's name; None takes the process's.
        flags: parameters of the root that have a flag of their own: `--to=x` means `<command>.to = 'x'`.
        positional: the parameter that a bare argument sets, "" if bare arguments are refused.

    Returns:
        the exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(command, arguments, flags, positional)
    except UserError as error:
        print(error.text(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by the keyboard; what was saved is kept", file=sys.stderr)
        return 130


def _run(command: str, arguments: list[str], flags: Sequence[str], positional: str) -> int:
    from t_elaine.config import gin_files, help_text, lint, settings

    if "--help" in arguments or "-h" in arguments:
        print(help_text.command_help(command, flags, positional))
        return 0
    root = settings.resolve(settings.ROOTS[command])
    files, bindings, modules = split_arguments(command, arguments, flags, positional, root)
    sys.path.insert(0, os.getcwd())  # --module names a user's own file beside the gin files
    for module in modules:
        import_module(module)
    for line in lint.check(command, gin_files.statements(files, bindings)):
        print(line, file=sys.stderr)
    configured = settings.register()
    gin_files.apply(files, bindings)
    extra: dict[str, Any] = {"argv": tuple(arguments), "config_text": gin_files.text_in_force()}
    known = inspect.signature(root).parameters
    result = configured[command](**{name: value for name, value in extra.items() if name in known})
    return result if isinstance(result, int) else 0


def split_arguments(
    command: str, arguments: Sequence[str], flags: Sequence[str], positional: str, root: Any
) -> tuple[list[str], list[str], list[str]]:
    """Arguments → (gin files, gin bindings, modules). Flags of the command become bindings of its root."""
    files: list[str] = []
    bindings: list[str] = []
    modules: list[str] = []
    for argument in joined(arguments, _value_flags(root, flags)):
        name, has_value, value = argument.partition("=")
        if name == "--gin_file" and has_value:
            files.append(value)
        elif name.startswith("--gin.") and has_value:
            bindings.append(f"{name.removeprefix('--gin.')} = {value}")
        elif name == "--module" and has_value:
            modules.append(value)
        elif name.startswith("--") and name[2:].replace("-", "_") in flags:
            parameter = name[2:].replace("-", "_")
            bindings.append(f"{command}.{parameter} = {_literal(root, parameter, value, bool(has_value))}")
        elif not name.startswith("-") and positional:
            bindings.append(f"{command}.{positional} = {argument!r}")
        else:
            raise UserError(f"unknown argument {argument!r}", command, _suggest(name, flags, command))
    return files, bindings, modules


def joined(arguments: Sequence[str], value_flags: Sequence[str]) -> list[str]:
    """`--to x` becomes `--to=x` for every flag that takes a value."""
    result: list[str] = []
    waiting = ""
    for argument in arguments:
        if waiting:
            result.append(f"{waiting}={argument}")
            waiting = ""
        elif argument.replace("-", "_") in value_flags:
            waiting = argument
        else:
            result.append(argument)
    return [*result, waiting] if waiting else result


def _value_flags(root: Any, flags: Sequence[str]) -> list[str]:
    parameters = inspect.signature(root).parameters
    own = [flag for flag in flags if "bool" not in str(parameters[flag].annotation)]
    return [f"__{flag}" for flag in ("gin_file", "module", *own)]


def _literal(root: Any, parameter: str, value: str, has_value: bool) -> str:
    """A flag's text as a gin literal: by the parameter's annotation, strings need no quotes."""
    annotation = str(inspect.signature(root).parameters[parameter].annotation)
    if "bool" in annotation:
        return "True" if not has_value else str(value.lower() in ("1", "true", "yes"))
    if "tuple" in annotation:
        return repr(tuple(part for part in value.split(",") if part))
    if "int" in annotation or "float" in annotation:
        try:
            return repr(ast.literal_eval(value))
        except (ValueError, SyntaxError) as error:
            raise UserError(f"--{parameter}={value} is not a number", f"--{parameter}", f"--{parameter}=1") from error
    return repr(value)


def _suggest(name: str, flags: Sequence[str], command: str) -> str:
    import difflib

    known = ["--gin_file", "--module", "--help", *(f"--{flag}" for flag in flags)]
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"flags of {command}: {', '.join(known)}, --gin.NAME=VALUE"


def import_module(name: str) -> None:
    """Import a user's module of tasks.

    Raises:
        UserError: the module itself is not there (a fault inside it is shown as it is).
    """
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        raise UserError(
            f"there is no module {name!r}", f"--module={name}", "give a dotted name importable here"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """`t-elaine <command> …`: hand over to the command's own file."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("t-elaine <command> [--gin_file=…] [--gin.NAME=VALUE] [--help]\ncommands: " + " ".join(available()))
        return 0
    if arguments[0] not in available():
        print(
            UserError(f"unknown command {arguments[0]!r}", "", "one of " + ", ".join(available())).text(),
            file=sys.stderr,
        )
        return 2
    return int(importlib.import_module(f"t_elaine.{arguments[0]}").main(arguments[1:]))


def available() -> list[str]:
    """The commands that this version has."""
    from importlib.util import find_spec

    return [name for name in COMMANDS if find_spec(f"t_elaine.{name}") is not None]
