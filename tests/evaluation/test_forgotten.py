"""The guard on a finished model: its exit code, its verdict in the result, and what it refuses before any scoring."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from t_elaine.errors import UserError
from t_elaine.evaluate import evaluate
from t_elaine.evaluation import forgotten, runner
from t_elaine.forgetting import EXCEEDED, Forgetting
from tests.evaluation.making import make_place
from tests.evaluation.test_command import SETTINGS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("forgotten"))


def judged(place: Path, limits: Forgetting | None, **more: object) -> tuple[int, dict]:
    given = {"checkpoint": str(place / "child"), "parent": str(place / "parent"), "stores": (str(place / "held"),)}
    code = evaluate(**(given | SETTINGS | {"exams": ()} | more), forgetting=limits)
    return code, json.loads((place / "child" / "evaluation" / "step-7.json").read_text(encoding="utf-8"))


def test_the_verdict_follows_the_limits_and_asks_no_model_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = judged(place, None)
    assert code == 0 and "forgetting" not in result
    sides = [forgotten.figures(result, side) for side in ("child", "parent")]
    rises = {group: sides[0][group] / sides[1][group] - 1 for group in sides[0]}
    assert {group[1] for group in rises} == {"textbook", "web text", "general"}
    monkeypatch.setattr(runner, "judge", lambda *given, **named: pytest.fail("no model is asked again"))
    capsys.readouterr()

    general = next(group for group in rises if group[1] == "general")
    limit = max(rises[general] - 1e-3, 0)
    code, result = judged(place, Forgetting(general=limit))
    past = rises[general] > limit
    assert code == (EXCEEDED if past else 0) and bool(result["forgetting"]["exceeded"]) == past
    code, result = judged(place, Forgetting(general=None, others=1e9))
    assert code == 0 and result["forgetting"]["exceeded"] == []
    assert "every guarded group is within its limit (others 100000000000.0 %)" in capsys.readouterr().out
    worst = max(rises, key=lambda group: rises[group])
    assert rises[worst] > 0.001, "two random models differ"
    code, result = judged(place, Forgetting(general=0.0, others=rises[worst] / 2))
    assert code == EXCEEDED == 3 and result["forgetting"]["exceeded"][0]["parent"] == sides[1][worst]
    assert result["forgetting"]["told"] in " ".join(capsys.readouterr().out.split())


def test_what_cannot_be_guarded_is_refused_before_anything_is_scored(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "judge", lambda *given, **named: pytest.fail("nothing is scored"))
    new = {"name": "other"}
    with pytest.raises(UserError, match="no parent is given"):
        judged(place, Forgetting(), parent="", **new)
    with pytest.raises(UserError, match="no store is given"):
        judged(place, Forgetting(), stores=(), exams=("samples/en",), **new)
    with pytest.raises(UserError, match="the guard has no limit"):
        judged(place, Forgetting(general=None), **new)
    one = runner.gather((str(place / "held"),), (), "validation", 0)
    for limits, kept, match in (
        (Forgetting(others=1.0), "textbook", "a limit for general text, and no general text"),
        (Forgetting(others=1.0), "general", "a limit for other text, and no other text"),
    ):
        held = tuple([document for document in held if document.group[1] == kept] for held in one.held)
        with pytest.raises(UserError, match=match):
            forgotten.check(limits, replace(one, held=held), 2)
