"""docs/two_weeks: one walk in three languages; its commands exist, its figures follow from docs/tpu.md and `plan`."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from t_elaine import plan
from t_elaine.cli import COMMANDS
from tests.test_house import REPOSITORY

DOCS = [REPOSITORY / "docs" / f"two_weeks{language}.md" for language in ("", ".ja", ".zh")]
BLOCK = re.compile(r"^```\n(.*?)^```$", re.M | re.S)
PLAIN = DOCS[0].read_text(encoding="utf-8")


def blocks(path: Path) -> list[str]:
    return BLOCK.findall(path.read_text(encoding="utf-8"))


def commands() -> list[list[str]]:
    lines = [line for block in blocks(DOCS[0]) for line in block.splitlines() if not line.startswith((" ", ")"))]
    return [shlex.split(line) for line in lines if line.startswith(("t-elaine ", "scripts/"))]


@pytest.mark.parametrize("path", DOCS[1:], ids=lambda path: path.name)
def test_every_language_has_the_same_commands_and_figures(path: Path) -> None:
    assert blocks(path) == blocks(DOCS[0])
    told = path.read_text(encoding="utf-8")
    cells = [re.findall(r"[\d,.]*\d", line.rpartition(" | ")[2]) for line in PLAIN.splitlines() if line.startswith("|")]
    here = [re.findall(r"[\d,.]*\d", line.rpartition(" | ")[2]) for line in told.splitlines() if line.startswith("|")]
    assert cells[3:] == here[3:]  # the first row counts tokens in billions, or in 億
    for figure in ("8,181.50", "36.3", "11,630", "3.69", "2,308"):
        assert figure in told and figure in PLAIN


@pytest.mark.parametrize("name", sorted({words[1] for words in commands() if words[0] == "t-elaine"} - {"doctor"}))
def test_flags_of_the_commands_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert name in COMMANDS
    assert import_module(f"t_elaine.{name}").main(["--help"]) == 0
    known = set(re.findall(r"^  --(\w+)=", capsys.readouterr().out, re.M))
    for words in commands():
        if words[:2] == ["t-elaine", name]:
            given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
            assert {flag for flag in given if not flag.startswith("gin.")} <= known | {"gin_file", "module"}


@pytest.mark.parametrize("words", [w for w in commands() if w[0] != "t-elaine"], ids=" ".join)
def test_scripts_and_their_flags_exist(words: list[str]) -> None:
    usage = (REPOSITORY / words[0]).read_text(encoding="utf-8")
    assert all(word.partition("=")[0] in usage for word in words[1:])


def test_the_plans_of_day_five_say_what_the_page_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.gin").write_text(next(b for b in blocks(DOCS[0]) if b.startswith("RUN_DIR")), encoding="utf-8")
    large, small = (words[2:] for words in commands() if words[:2] == ["t-elaine", "plan"])
    assert plan.main([*large, "--gin.plan.compile=False", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run"]["steps"] == 28611 and told["run"]["price_per_chip_hour"] == 1.0
    assert f"{told['tokens_per_second_per_chip']['sync exposed']:,.0f}" == "2,308"
    assert plan.main([*small, "--gin.plan.compile=False", "--json"]) == 0
    assert f"{json.loads(capsys.readouterr().out)['step_seconds']['sync exposed']:.2f}" == "3.69"


def test_the_sums_follow_from_the_rate() -> None:
    tokens, chips, allowance = 60e9, 256, 1.25
    text = (REPOSITORY / "docs/tpu.md").read_text(encoding="utf-8")
    rate = float(re.findall(r"\*\*T-ELAINE, sync exposed[^|]*\| \*\*(\d+)", text)[0])
    hours, chip_hours = tokens / (chips * rate * 3600), tokens / (rate * 3600)
    money = allowance * chip_hours
    assert f"{rate:,.0f}" == "2,559" and round(tokens / 2097152 + 0.5) == 28611
    assert f"{hours:.1f}" == "25.4" and f"{chip_hours:,.0f}" == "6,513" and f"{money:,.0f}" == "8,141"
    assert f"{round(money) + 32 + 425 * 0.02:,.2f}" == "8,181.50"
    assert f"{hours / 0.7:.1f}" == "36.3" and round(round(money) / 0.7) == 11630
    assert all(figure in PLAIN for figure in ("2,559", "28,611", "25.4", "6,513", "8,141"))
