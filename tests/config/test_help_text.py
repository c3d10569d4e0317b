"""Help pages and docs/config.md come from the code and leave no setting unexplained."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from t_elaine import cli
from t_elaine.config import help_text, settings, types
from tests.conftest import REPOSITORY


def test_the_committed_page_is_what_the_code_makes() -> None:
    written = (REPOSITORY / "docs" / "config.md").read_text(encoding="utf-8")
    assert written == help_text.page(), "make docs"


@pytest.mark.parametrize(
    "name", [p.split(":")[1] for p in settings.DATACLASSES] + [*settings.FUNCTIONS, *settings.ROOTS]
)
def test_every_setting_has_its_line(name: str) -> None:
    target = settings.configurables()[name]
    assert help_text.summary(target)
    assert [setting for setting, _, _, told in help_text.rows(target) if not told] == []


@pytest.mark.parametrize("command", [c for c in cli.available() if c in settings.ROOTS])
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module(f"t_elaine.{command}").main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"t-elaine {command}") and "--gin_file=" in printed
    flags = [line.strip() for line in printed.split("settings (gin):")[0].splitlines() if line.startswith("  --")]
    assert [flag for flag in flags if len(flag.split()) < 2] == [], "a flag without a word on it"
    for setting in settings.parameters(settings.resolve(settings.ROOTS[command])):
        assert f"\n    {setting}: " in printed


def test_groups_are_found_through_unions_and_lists() -> None:
    assert {"Mixture", "Replay", "Phase", "LlamaConfig", "RopeScaling"} <= set(help_text.reachable("train"))
    assert set(help_text.reachable("sweep")) == {"sweep", "axis", "product", "zip", "chain"}


def spread(*, first: int, second: float = 0.5) -> None:
    """Do something.

    Args:
        first: one line
            and another: with a colon
          and a third.
        second: short.
    Returns:
        nothing.
    """


def test_descriptions_go_over_several_lines() -> None:
    assert help_text.describe(spread, "first") == "one line and another: with a colon and a third."
    assert help_text.describe(spread, "second") == "short."
    assert help_text.describe(spread, "third") == ""
    assert [row[2] for row in help_text.rows(spread)] == ["(required)", "0.5"]


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"), (float | None, "float or None"), (tuple[str, ...], "tuple[str, ...]"), (Any, "Any"),
        (Sequence[str], "Sequence[str]"), (Mapping[str, float] | None, "Mapping[str, float] or None"),
        (Literal["a", "b"], "Literal['a', 'b']"), (list[dict[str, Any]], "list[dict[str, Any]]"),
        (list, "list"),
    ],
)  # fmt: skip
def test_types_as_one_reads_them(hint: Any, text: str) -> None:
    assert types.show(hint) == text
