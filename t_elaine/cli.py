"""What all commands share: flags, gin, the lint, exit codes. Each command's own file says which flags it has.

Exit codes: 0 done, 2 a `UserError` (three lines, no traceback), 3 the answer is no (what `plan` was asked about does
not fit; a model forgot more than `Forgetting` allows), 1 a bug (traceback), 130 Ctrl-C, 143 SIGTERM, 141 where nobody
reads the output any more (`| head`). `train` at SIGTERM saves and exits 0 by design: whether a run is finished stands
in its status.json.
"""

import ast
import difflib
import errno
import importlib
import importlib.util
import inspect
import io
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any

from t_elaine import huge_pages, interrupts, machine
from t_elaine.errors import NO_ROOM, UserError

MISPLACED = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

COMMANDS = {
    "doctor": "what this machine has, what is missing",
    "plan": "will it fit, how long will it take",
    "prepare": "text → token stores; bad rows set aside",
    "import_hf": "a Hugging Face model → a run folder to start from",
    "sweep": "the same training with several settings",
    "train": "train, or go on with a run that was stopped",
    "evaluate": "held-out text and exams, beside the parent",
    "export": "a checkpoint → Hugging Face format, with proof",
    "generate": "let a checkpoint write",
    "merge": "several models of one family → one",
    "report": "a run folder → one HTML page; evaluations → a page",
}


def run(
    command: str,
    argv: Sequence[str] | None,
    flags: Sequence[str] = (),
    positional: str = "",
    file_flags: Sequence[str] = (),
    repeated: Sequence[str] = (),
) -> int:
    """Parse the command line, lint and load the gin files, call the command's root function.

    Args:
        command: name of the command, a key of `config.settings.ROOTS`.
        argv: arguments without the program's name; None takes the process's.
        flags: parameters of the root that have a flag of their own: `--to=x` means `<command>.to = 'x'`.
        positional: the parameter that a bare argument sets, "" if bare arguments are refused.
        file_flags: those of the flags that name a gin file, which is read after the others.
        repeated: those of the flags that may be given several times; commas belong to their text.

    Returns:
        the exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(command, arguments, flags, positional, file_flags, repeated), command)


def guarded(work: Callable[[], int], command: str = "") -> int:
    """Do the work; what a person can mend ends as three lines and exit code 2, a bug as its traceback.

    Args:
        work: returns the exit code.
        command: says what is kept where Ctrl-C or SIGTERM ends it.
    """
    try:
        code = _told(work, command)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 141


def _nobody_reads() -> bool:
    """True if our own output leads nowhere (another pipe's end is a bug); what is left to print is then dropped."""
    found = False
    for stream in (sys.stdout, sys.stderr):
        try:
            poll = select.poll()
            poll.register(stream, select.POLLOUT)
            if not any(state & (select.POLLERR | select.POLLHUP) for _, state in poll.poll(0)):
                continue
        except io.UnsupportedOperation:  # a stand-in without a file
            continue
        found = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return found


def _told(work: Callable[[], int], command: str) -> int:
    try:
        with interrupts.heard():
            return work()
    except UserError as error:
        print(error.text(), file=sys.stderr)
        return 2
    except OSError as error:
        told = of_the_machine(error)
        if told is None:
            raise
        print(told.text(), file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return interrupts.end(interrupt, command)


def of_the_machine(error: OSError) -> UserError | None:
    """A full disk or a forbidden path as a person reads it; None if the error is of another kind."""
    path = str(error.filename or "")
    if error.errno in NO_ROOM or "No space left on device" in str(error):
        mend = "free some space, or name another folder; the same command goes on from what was saved"
        return UserError("the disk is full", path or f"while writing ({error})", mend)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        mend = "give yourself the right to it, or name another path"
        return UserError(f"the system forbids it: {error.strerror}", path or str(error), mend)
    if error.errno in MISPLACED and path:
        mend = "name another path, or move away what stands there"
        return UserError(f"a file or folder cannot stand there: {error.strerror}", path, mend)
    if error.errno in (errno.EIO, errno.ESTALE, errno.EFBIG):
        mend = "look after the disk, or name another path; the same command goes on from what was saved"
        return UserError(f"the disk fails: {error.strerror}", path or str(error), mend)
    return None


def _run(
    command: str,
    arguments: list[str],
    flags: Sequence[str],
    positional: str,
    file_flags: Sequence[str] = (),
    repeated: Sequence[str] = (),
) -> int:
    from t_elaine.config import gin_files, help_text, lint, reach, settings

    if "--help" in arguments or "-h" in arguments:
        print(help_text.command_help(command, flags, positional))
        return 0
    root = settings.resolve(settings.ROOTS[command])
    files, bindings, modules = split_arguments(command, arguments, flags, positional, root, file_flags, repeated)
    sys.path.insert(0, os.getcwd())  # --module names a user's own file beside the gin files
    for module in modules:
        import_module(module)
    statements = gin_files.statements(files, bindings)
    by_flag = {flag: f"--{flag}=…" for flag in flags}
    if positional:
        by_flag[positional] = f"t-elaine {command} {positional.upper()}"
    for line in lint.check(command, statements, by_flag):
        print(line, file=sys.stderr)
    configured = settings.register()
    gin_files.apply(statements)
    extra: dict[str, Any] = {"argv": tuple(arguments), "config_text": reach.text_in_force(command, statements)}
    if command in settings.READS:
        extra["training"] = configured[settings.READS[command]]()
        extra["config_text"] += reach.text_in_force(settings.READS[command], statements)
    known = inspect.signature(root).parameters
    given = configured[command]() | {name: value for name, value in extra.items() if name in known}
    result = root(**given)
    return result if isinstance(result, int) else 0


def split_arguments(
    command: str,
    arguments: Sequence[str],
    flags: Sequence[str],
    positional: str,
    root: Any,
    file_flags: Sequence[str] = (),
    repeated: Sequence[str] = (),
) -> tuple[list[str], list[str], list[str]]:
    """Arguments → (gin files, gin bindings, modules). Flags of the command become bindings of its root."""
    files: list[str] = []
    last_files: list[str] = []
    bindings: dict[str, str] = {}
    modules: list[str] = []
    texts: dict[str, list[str]] = {}
    for argument in joined(arguments, _value_flags(root, flags)):
        name, has_value, value = argument.partition("=")
        parameter = name[2:].replace("-", "_") if name.startswith("--") else ""
        if name in ("--gin_file", "--module") and value:
            (files if name == "--gin_file" else modules).append(value)
        elif name.startswith("--gin.") and has_value:
            bindings[f"--gin.{len(bindings)}"] = f"{name.removeprefix('--gin.')} = {value}"
        elif parameter in repeated and value:
            texts.setdefault(parameter, []).append(value)
            bindings[name] = f"{command}.{parameter} = {tuple(texts[parameter])!r}"
        elif parameter in flags:
            if name in bindings:
                raise UserError(f"{name} is given twice", command, "give it once")
            bindings[name] = f"{command}.{parameter} = {_literal(root, parameter, value, bool(has_value))}"
            last_files += [value] * (parameter in file_flags)
        elif not name.startswith("-") and positional and positional not in bindings:
            bindings[positional] = f"{command}.{positional} = {argument!r}"
        else:
            raise UserError(f"unknown argument {argument!r}", f"t-elaine {command}", _suggest(name, flags, command))
    return [*files, *last_files], list(bindings.values()), modules


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
    if waiting:
        raise UserError(f"{waiting} needs a value", waiting, f"{waiting}=VALUE")
    return result


def _value_flags(root: Any, flags: Sequence[str]) -> list[str]:
    parameters = inspect.signature(root).parameters
    own = [flag for flag in flags if "bool" not in str(parameters[flag].annotation)]
    return [f"__{flag}" for flag in ("gin_file", "module", *own)]


def _literal(root: Any, parameter: str, value: str, has_value: bool) -> str:
    """A flag's text as a gin literal: by the parameter's annotation, strings need no quotes."""
    annotation = str(inspect.signature(root).parameters[parameter].annotation)
    flag = f"--{parameter}"
    if "bool" in annotation:
        truth = TRUTH.get(value.lower()) if has_value else True
        if truth is None:
            raise UserError(f"{flag}={value} is neither true nor false", flag, f"{flag}=true or {flag}=false")
        return str(truth)
    several = "tuple" in annotation or "Sequence" in annotation
    if not value and not (several and has_value):  # --exams= is none of them
        raise UserError(f"{flag} needs a value", flag, f"{flag}=VALUE")
    numbers = "int" in annotation or "float" in annotation
    try:
        if several:
            parts = [part for part in value.split(",") if part]
            return repr(tuple(ast.literal_eval(part) if numbers else part for part in parts))
        return repr(ast.literal_eval(value) if numbers else value)
    except (ValueError, SyntaxError) as error:
        raise UserError(f"{flag}={value} is not a number", flag, f"{flag}=1") from error


def _suggest(name: str, flags: Sequence[str], command: str) -> str:
    if name.startswith("--gin."):
        return f"{name}=VALUE, strings in quotes: --gin.RUN_DIR=\"'runs/one'\""
    known = ["--gin_file", "--module", "--help", *(f"--{flag}" for flag in flags)]
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"flags of {command}: {', '.join(known)}, --gin.NAME=VALUE"


def import_module(name: str) -> None:
    """Import a module of tasks: a user's own, or a shipped one of `data_tasks`.

    Raises:
        UserError: the module itself is not there (a fault inside it is shown as it is).
    """
    from t_elaine import paths  # it imports fsspec, which doctor must not need

    paths.make_importable("data_tasks")
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
    if argv is None and sys.argv[1:2] == ["train"]:
        huge_pages.start_again()
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _hand_over(arguments))


def _hand_over(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("t-elaine <command> [--gin_file=…] [--gin.NAME=VALUE]\n\ncommands:")
        print("".join(f"  {name:10} {COMMANDS[name]}\n" for name in available()))
        print("t-elaine <command> --help prints a command's flags and settings; `make quickstart` goes the whole road.")
        return 0
    if arguments[0] == "--version":
        print(f"t-elaine {machine.version_of('t-elaine')}")
        return 0
    command = arguments[0]
    if command not in available():
        near = difflib.get_close_matches(command, available(), n=1)
        mend = f"did you mean {near[0]}?" if near else "one of " + ", ".join(available())
        raise UserError(f"unknown command {command!r}", "t-elaine", mend)
    if command != "doctor":
        machine.refuse_mixed_jax()
    return int(importlib.import_module(f"t_elaine.{command}").main(arguments[1:]))


def available() -> list[str]:
    """The commands that this version has."""
    return [name for name in COMMANDS if importlib.util.find_spec(f"t_elaine.{name}") is not None]
