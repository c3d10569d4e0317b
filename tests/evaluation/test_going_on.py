"""An evaluation that is stopped: what it says meanwhile, what it keeps, and what it leaves where nothing came of it."""

import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.errors import UserError
from t_elaine.evaluate import evaluate
from t_elaine.evaluation import bits_per_byte, engines, options, runner
from t_elaine.evaluation import progress as progressing
from tests.evaluation.making import make_place, make_run, make_store, make_vocabulary
from tests.evaluation.test_command import SETTINGS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("going_on"))


def arguments(place: Path, to: Path) -> dict[str, Any]:
    models = {"checkpoint": str(place / "child"), "parent": str(place / "parent")}
    return SETTINGS | models | {"stores": (str(place / "held"),), "exams": ("samples/ja",), "to": str(to)}


def test_the_same_command_goes_on_with_the_next_model(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, asked = runner.judge, list[str]()

    def until_parent(model: Any, *given: Any, **named: Any) -> Any:
        asked.append(Path(model.path).name)
        if model.path.endswith("parent") and len(asked) == 2:
            raise KeyboardInterrupt
        return judge(model, *given, **named)

    evaluate(**arguments(place, tmp_path / "whole"))
    monkeypatch.setattr(runner, "judge", until_parent)
    with pytest.raises(KeyboardInterrupt):
        evaluate(**arguments(place, tmp_path / "stopped"))
    assert not list((tmp_path / "stopped").glob("*.json"))
    evaluate(**arguments(place, tmp_path / "stopped"))
    assert asked == ["child", "parent", "parent"], "the child was scored once"
    whole, again = (json.loads((tmp_path / name / "step-7.json").read_text()) for name in ("whole", "stopped"))
    assert whole == again
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["step-7.json"]


def test_the_same_command_goes_on_within_a_model(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits_per_byte, "WINDOW_TOKENS", 60)
    monkeypatch.setattr(options, "QUESTIONS", 4)
    score, left, scored = engines.score, [10**9], [0]

    def until(engine: Any, pieces: Any, done: Any, names: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        scored[0] += len(pieces)
        return score(engine, pieces, done, names)

    for module in (bits_per_byte, options):
        monkeypatch.setattr(module, "score", until)
    evaluate(**arguments(place, tmp_path / "whole"))
    whole, scored[0] = scored[0], 0
    starts = 0
    while not list((tmp_path / "stopped").glob("*.json")):
        left[0], starts = 3, starts + 1
        with suppress(KeyboardInterrupt):
            evaluate(**arguments(place, tmp_path / "stopped"))
    assert starts > 3 and scored[0] == whole, "each piece was scored once over all starts"
    results = [json.loads((tmp_path / name / "step-7.json").read_text()) for name in ("whole", "stopped")]
    assert results[0] == results[1]
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["step-7.json"]


def test_scores_of_another_evaluation_are_not_taken(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, asked = runner.judge, list[str]()

    def child_only(model: Any, *given: Any, **named: Any) -> Any:
        asked.append(Path(model.path).name)
        if model.path.endswith("parent"):
            raise KeyboardInterrupt
        return judge(model, *given, **named)

    monkeypatch.setattr(runner, "judge", child_only)
    for limit in (4, 3, 4):
        with pytest.raises(KeyboardInterrupt):
            evaluate(**arguments(place, tmp_path) | {"limit": limit})
    assert asked == ["child", "parent", "child", "parent", "parent"]


def test_a_limit_below_nothing_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="limit is -3"):
        evaluate(**arguments(place, tmp_path) | {"limit": -3})


def test_a_folder_made_for_nothing_goes_again(place: Path, tmp_path: Path) -> None:
    wrong = make_run(tmp_path / "wrong", make_vocabulary(tmp_path / "vocabulary"))
    other = tmp_path / "other"
    text = make_vocabulary(other).path.read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text + " ", encoding="utf-8")
    store = make_store(tmp_path / "held", load_vocabulary(other))
    with pytest.raises(UserError, match="the store was made with the vocabulary"):
        evaluate(checkpoint=str(wrong), stores=(str(store),), exams=(), **SETTINGS)
    assert not (wrong / "evaluation").exists()


def test_lines_elsewhere_than_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progressing.time, "monotonic", lambda: now)
    file = io.StringIO()
    with progressing.progress(Console(file=file, width=40), "scoring child", 1000) as done:
        for _ in range(10):
            now += 6.0
            done(100)
    assert file.getvalue().splitlines() == [
        "scoring child: 1,000 tokens",
        "scoring child: 20%, about 48 s left",
        "scoring child: 40%, about 36 s left",
        "scoring child: 60%, about 24 s left",
        "scoring child: 80%, about 12 s left",
    ]
