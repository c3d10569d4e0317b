"""What `--help` prints: a command's flags and the settings that it reads, each with type, default and one line."""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from t_elaine.config import settings


def command_help(command: str, flags: Sequence[str], positional: str) -> str:
    """The help page of a command."""
    root = settings.resolve(settings.ROOTS[command])
    summary = (inspect.getdoc(root) or "").split("\n")[0]
    lines = [f"t-elaine {command}{f' <{positional}>' if positional else ''}: {summary}", "", "flags:"]
    lines += [f"  {'--' + flag + '=':28} {describe(root, flag)}" for flag in flags]
    lines += [
        f"  {'--gin_file=':28} gin file, repeatable; looked up here, then among the shipped gin_configs/",
        f"  {'--gin.NAME=VALUE':28} one binding; strings in quotes: --gin.RUN_DIR=\"'runs/one'\"",
        f"  {'--module=':28} Python module with tasks of your own, repeatable",
        "",
        "settings (gin):",
    ]
    for name, target in reachable(command).items():
        lines.append(f"  {name}")
        lines += [f"    {row}" for row in rows(target)]
    return "\n".join(lines)


def reachable(command: str) -> dict[str, Callable[..., Any]]:
    """The command's root and the dataclasses named in annotations from there on."""
    known = settings.configurables()
    found = {command: known[command]}
    queue = [command]
    while queue:
        for parameter in settings.parameters(known[queue.pop()]).values():
            for name in re.findall(r"\w+", str(parameter.annotation)):
                if name in known and name not in found and name not in settings.ROOTS:
                    found[name] = known[name]
                    queue.append(name)
    return found


def rows(target: Callable[..., Any]) -> list[str]:
    """One line a setting: name, type, default, what it is."""
    return [
        f"{name + ': ' + type_name(p):44} = {default(p):16} {describe(target, name)}"
        for name, p in settings.parameters(target).items()
    ]


def type_name(parameter: inspect.Parameter) -> str:
    """The annotation as one reads it, without module paths."""
    annotation = parameter.annotation
    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    return re.sub(r"\b(\w+\.)+", "", text)


def default(parameter: inspect.Parameter) -> str:
    """The default as Python text, "(required)" if there is none."""
    return "(required)" if parameter.default is inspect.Parameter.empty else repr(parameter.default)


def describe(target: Callable[..., Any], name: str) -> str:
    """The line on one parameter in the docstring's Args section, "" if it says nothing."""
    match = re.search(
        rf"^\s*{name}: (.+?)(?=^\s*\w+: |^\s*$|\Z)", inspect.getdoc(target) or "", re.MULTILINE | re.DOTALL
    )
    return " ".join(match.group(1).split()) if match else ""
