"""What `--help` prints and what docs/config.md holds: every setting with type, default and one line, from the code.

`python -m t_elaine.config.help_text > docs/config.md` makes the page anew.
"""

import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from t_elaine.config import settings, types

Known = dict[str, Callable[..., Any]]

HEAD = """# Settings

Made from the code by `make docs`; the tests compare this page with it.

A setting is written in a gin file as `NAME.setting = value`, or on the command line as `--gin.NAME.setting=value`
(text in quotes: `--gin.RUN_DIR="'runs/one'"`). `--gin_file=` may be given several times; a file is looked up in the
working folder, then among the shipped `gin_configs/`, and a later file or flag overrides an earlier one, which is told.
`@NAME()` makes a group of settings where its type is asked for, `NAME = value` without a dot is a macro for `%NAME`,
`scope/NAME.setting` holds for `@scope/NAME()` alone. `%gin.REQUIRED` is a value that a later file or flag must give.

Every command checks its settings before it starts: names, types, macros, duplicates, and whether anything reads them
([what the check finds](lint.md)). `t-elaine COMMAND --help` prints the settings of one command; `doctor` has none.
"""


def command_help(command: str, flags: Sequence[str], positional: str) -> str:
    """The help page of a command."""
    root = settings.resolve(settings.ROOTS[command])
    usage = f"t-elaine {command}{f' <{positional}>' if positional else ''}"
    lines = [f"{usage}: {summary(root)}", "", "flags:"]
    lines += [f"  {'--' + flag + '=':28} {describe(root, flag)}" for flag in flags]
    lines += [
        f"  {'--gin_file=':28} gin file, repeatable; looked up here, then among the shipped gin_configs/",
        f"  {'--gin.NAME=VALUE':28} one binding; strings in quotes: --gin.RUN_DIR=\"'runs/one'\"",
        f"  {'--module=':28} Python module with tasks of your own, repeatable",
        f"  {'--help':28} this page",
        *([f"it reads the settings of {settings.READS[command]} too"] if command in settings.READS else []),
        "",
        "settings (gin):",
    ]
    for name, target in reachable(command).items():
        lines.append(f"  {name}{'' if name in settings.ROOTS else ': ' + summary(target)}")
        for setting, kind, default, told in rows(target):
            lines.append(f"    {f'{setting}: {kind}':44} = {default:16} {told}")
    return "\n".join(lines)


def page() -> str:
    """docs/config.md: a table for each command and each group of settings, with who takes it."""
    known = settings.configurables()
    commands = [name for name in known if name in settings.ROOTS]
    groups = [name for name in known if name not in settings.ROOTS]
    lines = [HEAD, "## Commands", ""]
    for name in commands:
        lines += _section(name, known, f"{summary(known[name])} Takes {_list(takes(name, known))}.")
    lines += ["## Groups", ""]
    for name in groups:
        takers = [f"`{other}.{p}`" for other in known for p, names in _wanted(other, known) if name in names]
        lines += _section(name, known, f"{summary(known[name])} For {', '.join(takers) or 'nothing yet'}.")
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str, known: Known, told: str) -> list[str]:
    lines = [f"### {name}", "", told, "", "| setting | type | default | what it is |", "|---|---|---|---|"]
    for cells in rows(known[name]):
        setting, kind, default, line = (cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells)
        lines.append(f"| `{setting}` | {kind} | {default if default == REQUIRED else f'`{default}`'} | {line} |")
    return [*lines, ""]


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"[{name}](#{name.lower()})" for name in names) or "no groups"


REQUIRED = "(required)"


def reachable(command: str) -> Known:
    """The command's root and every group of settings that it takes, directly or through another."""
    known = settings.configurables()
    found = [command]
    for name in found:  # grows as it goes
        found += [other for other in takes(name, known) if other not in found]
    return {name: known[name] for name in found}


def takes(name: str, known: Known) -> list[str]:
    """The groups that a configurable's own parameters ask for."""
    return list(dict.fromkeys(other for _, names in _wanted(name, known) for other in names))


def _wanted(name: str, known: Known) -> Iterator[tuple[str, list[str]]]:
    hints = types.hints(known[name])
    for parameter in settings.parameters(known[name]):
        inside = list(_inside(hints[parameter]))
        yield parameter, [o for o, t in known.items() if o not in settings.ROOTS and types.made_by(t) in inside]


def _inside(hint: Any) -> Iterator[Any]:
    yield hint
    for part in typing.get_args(hint):
        yield from _inside(part)


def rows(target: Callable[..., Any]) -> Iterator[tuple[str, str, str, str]]:
    """(setting, type, default, what it is) of a configurable."""
    hints = types.hints(target)
    for name, parameter in settings.parameters(target).items():
        default = REQUIRED if parameter.default is inspect.Parameter.empty else repr(parameter.default)
        yield name, types.show(hints[name]), default, describe(target, name)


def summary(target: Callable[..., Any]) -> str:
    """The first sentence of a docstring."""
    return (inspect.getdoc(target) or "").split("\n\n")[0].replace("\n", " ")


def describe(target: Callable[..., Any], name: str) -> str:
    """What the docstring says of one parameter: its line and the deeper ones after it; "" if it says nothing."""
    lines = (inspect.getdoc(target) or "").splitlines()
    for i, line in enumerate(lines):
        match = re.match(rf"(\s+){name}: (.+)", line)
        if match:
            told = [match.group(2)]
            for more in lines[i + 1 :]:
                if not more.startswith(match.group(1) + " "):
                    break
                told.append(more.strip())
            return " ".join(told)
    return ""


if __name__ == "__main__":
    sys.stdout.write(page())
