"""The guard of a training run: it stops one that forgets, leaves others alone, and keeps its parent's figures."""

import json
import math
from pathlib import Path

import pytest

from t_elaine.errors import UserError
from t_elaine.forgetting import Forgetting, exceeded, sentence
from tests import tiny_runs
from tests.tiny_runs import lines, make_store, train_here

FILE = "parent_figures.json"
WILD = {"peak": 0.5, "steps": 8, "evaluate_every": 2, "every": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cache: str) -> Path:
    """A store, one of general text that is never trained on, and a parent that was trained on the former."""
    folder = tmp_path_factory.mktemp("guarded")
    make_store(folder / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_runs, "GROUPS", [("en", "general"), ("ja", "general"), ("ja", "guideline")])
        make_store(folder / "general")
    (folder / "cache").symlink_to(cache)
    assert train_here(folder / "parent", [folder / "store"], compilation_cache=cache) == 0
    return folder


def run(place: Path, name: str, limits: Forgetting, **changes: object) -> int:
    given = {"checkpoint": str(place / "parent"), "compilation_cache": str(place / "cache")}
    return train_here(place / name, [place / "store"], forgetting=limits, **(given | WILD | changes))


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


def kept(folder: Path) -> dict:
    return json.loads((folder / FILE).read_text())


def test_a_run_that_forgets_is_stopped_with_its_checkpoint_and_stays_stopped(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = Forgetting(general=0.05, stores=(str(place / "general"),))
    assert run(place, "wild", limits) == 3
    held = [line for line in lines(place / "wild") if line["kind"] == "validation"]
    assert [line["step"] for line in held] == [0, 2], "stopped at the first evaluation"
    worst = max(
        (one["bits_per_byte"] / held[0]["group"][name]["bits_per_byte"], name)
        for name, one in held[1]["group"].items()
        if name.endswith("general")
    )
    found = kept(place / "wild")
    assert found["stopped_at"] == 2 and found["figures"] == held[0]["group"]
    language, category = worst[1].split(", ")
    first = found["exceeded"][0]
    assert (first["language"], first["category"]) == (language, category) and category == "general"
    assert first["rise"] == pytest.approx(worst[0] - 1, abs=1e-5)
    reason = status(place / "wild")["reason"]
    for part in (f"general text, {language}", f"{first['child']:.4f}", f"{first['parent']:.4f}", "at most 5.0 %"):
        assert part in reason and part in capsys.readouterr().out + reason
    assert status(place / "wild")["state"] == "stopped" and (place / "wild" / "checkpoints" / "2").is_dir()

    with pytest.raises(UserError, match=r"the guard stopped the run at step 2(.|\n)*raise Forgetting.general"):
        run(place, "wild", limits)
    steps = {line["step"] for line in lines(place / "wild")}
    assert max(steps) == 2, "nothing was trained"
    assert run(place, "wild", Forgetting(general=1e6, stores=limits.stores)) == 0
    assert status(place / "wild")["state"] == "finished" and kept(place / "wild")["figures"] == held[0]["group"]


def test_a_run_that_keeps_within_its_limits_is_left_alone_and_goes_on_with_its_parents_figures(place: Path) -> None:
    limits = Forgetting(general=0.3, others=0.3, stores=(str(place / "general"),))
    calm = {"peak": 1e-4, "stop_at": 4}
    assert run(place, "calm", limits, **calm) == 0
    before = (place / "calm" / FILE).read_bytes()
    assert json.loads(before)["from"].endswith("parent/checkpoints/12")
    assert run(place, "calm", limits, **(calm | {"stop_at": None})) == 0
    assert (place / "calm" / FILE).read_bytes() == before, "the figures are kept, not measured again"
    assert status(place / "calm")["state"] == "finished"


def test_a_guard_that_comes_later_evaluates_the_parent_itself(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = Forgetting(general=0.05, others=0.05, stores=(str(place / "general"),))
    assert run(place, "late", limits, stop_at=1, peak=1e-4) == 0
    wanted = kept(place / "late")["figures"]
    (place / "late" / FILE).unlink()
    assert run(place, "late", limits, peak=1e-4) == 0
    assert "evaluating the parent" in capsys.readouterr().out
    found = kept(place / "late")["figures"]
    assert {name: one["bits_per_byte"] for name, one in found.items()} == pytest.approx(
        {name: one["bits_per_byte"] for name, one in wanted.items()}, rel=1e-6
    )


def test_without_a_guard_nothing_is_kept_and_the_lines_are_as_before(place: Path) -> None:
    assert not (place / "parent" / FILE).exists()
    assert all("group" not in line for line in lines(place / "parent"))


def test_what_cannot_be_guarded_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is guarded"):
        run(place, "none", Forgetting(), evaluate_tokens=0)
    other = make_store(tmp_path / "other", vocabulary="w" * 64)
    with pytest.raises(UserError, match="its vocabulary is not that of the stores trained on"):
        run(place, "vocabulary", Forgetting(stores=(str(other),)))
    with pytest.raises(UserError, match="general is -1"):
        Forgetting(general=-1.0)
    with pytest.raises(UserError, match="began with random weights"):
        cached = {"compilation_cache": str(place / "cache")}
        train_here(place / "parent", [place / "store"], steps=14, forgetting=Forgetting(), **cached)


def test_limits_by_group() -> None:
    parent = {("en", "general"): 1.0, ("ja", "general"): 2.0, ("ja", "textbook"): 1.0, ("zh", "x"): None}
    child = {("en", "general"): 1.019, ("ja", "general"): 2.1, ("ja", "textbook"): 1.4, ("zh", "x"): 9.0}
    found = exceeded(child, parent, Forgetting(general=0.02))
    assert [(one["language"], one["rise"]) for one in found] == [("ja", 0.05)]
    worst = exceeded(child | {("en", "general"): math.nan}, parent, Forgetting(general=0.02, others=0.1))
    assert [one["category"] for one in worst] == ["general", "textbook", "general"] and worst[0]["rise"] is None
    told = sentence(worst)
    assert told.startswith("forgotten: general text, en: not finite bits per byte, the parent has 1.0000")
    assert "2 more past their limits: ja, textbook; general text, ja" in told
    assert exceeded(child, parent, Forgetting(general=None)) == []
