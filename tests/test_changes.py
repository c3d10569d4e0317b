"""A run whose settings were changed on the way says so: at the resume, on its page, in the card of an export."""

from pathlib import Path

import pytest

from t_elaine import changes
from t_elaine.changes import Change
from t_elaine.hf import card
from t_elaine.reporting import page
from t_elaine.reporting.record import read_record
from t_elaine.training import run_folder
from tests import tiny_runs
from tests.reporting.making import make_run_folder

FIRST = "# What t-elaine train reads\nRUN_DIR = 'a'\nAdamW.b2 = 0.95\nSchedule.peak = 2e-05\n"
SECOND = "# What t-elaine train reads\nRUN_DIR = 'b'\nLoop.steps = 46\nSchedule.peak = 0.01\n"
CHANGED = [
    Change(step=36, name="AdamW.b2", before="0.95", after=changes.UNSET),
    Change(step=36, name="Loop.steps", before=changes.UNSET, after="46"),
    Change(step=36, name="Schedule.peak", before="2e-05", after="0.01"),
]


def start(folder: Path, first: int, text: str) -> None:
    """Write the records of a start, as training does."""
    run_folder.write_records(str(folder), first, text, (), {})


def test_changes_are_listed_by_step_and_belong_to_a_checkpoint(tmp_path: Path) -> None:
    start(tmp_path, 0, FIRST)
    assert changes.changes(str(tmp_path)) == []
    start(tmp_path, 36, SECOND)
    assert changes.changes(str(tmp_path)) == CHANGED
    start(tmp_path, 40, SECOND.replace("0.01", "0.02"))
    assert [(c.step, c.name) for c in changes.changes(str(tmp_path))][3:] == [(40, "Schedule.peak")]
    assert changes.changes(str(tmp_path), until=40) == CHANGED and changes.changes(str(tmp_path), until=36) == []
    assert [changes.settings_at(str(tmp_path), step) for step in (36, 37, 40)] == [FIRST, SECOND, SECOND]
    assert "0.02" in changes.settings_at(str(tmp_path), 41)


def test_what_trained_nothing_or_was_rolled_back_is_no_change(tmp_path: Path) -> None:
    start(tmp_path, 0, FIRST)
    start(tmp_path, 36, SECOND)
    start(tmp_path, 36, FIRST)  # the start before trained nothing
    assert changes.changes(str(tmp_path)) == []
    start(tmp_path, 40, SECOND)
    start(tmp_path, 30, FIRST)  # the checkpoints after 30 are gone
    assert changes.changes(str(tmp_path)) == [] and not list(tmp_path.glob("*before-step-4*"))
    start(tmp_path, 36, SECOND)
    assert changes.changes(str(tmp_path)) == CHANGED


def test_what_was_tried_before_the_first_checkpoint_is_no_change(tmp_path: Path) -> None:
    start(tmp_path, 0, FIRST)
    start(tmp_path, 0, SECOND)
    assert changes.changes(str(tmp_path)) == []


def test_a_line_tells_them(tmp_path: Path) -> None:
    told = changes.sentence(CHANGED)
    assert told.startswith("settings changed from step 36 on: AdamW.b2 0.95 → its default; Loop.steps its default → 46")
    assert changes.sentence(CHANGED, most=1).endswith("; and 2 more (config.gin, config.before-step-36.gin)")
    assert changes.sentence([]) == ""


def test_a_resume_tells_other_settings_and_keeps_silent_about_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stores, run_dir = [tiny_runs.make_store(tmp_path / "store")], tmp_path / "run"

    def printed(steps: int, text: str) -> str:
        assert tiny_runs.train_here(run_dir, stores, steps=steps, evaluate_tokens=0, config_text=text) == 0
        return capsys.readouterr().out

    assert "settings changed" not in printed(2, FIRST) + printed(4, FIRST)
    assert "settings changed from step 4 on: AdamW.b2 0.95 → its default;" in printed(5, SECOND)
    assert "settings changed" not in printed(6, SECOND)
    assert {change.step for change in changes.changes(str(run_dir))} == {4}


def test_page_and_card_list_them(tmp_path: Path) -> None:
    run = make_run_folder(tmp_path, steps=46, resumes=(36,))
    plain = page.render(read_record(str(run)))
    assert "were changed" not in plain
    (run / "config.before-step-36.gin").write_text(FIRST)
    (run / "config.gin").write_text(SECOND + "Start.checkpoint = '/home/me/models/base'\n")
    told = page.render(read_record(str(run)))
    assert "Settings that were changed while the run was going on." in told and 'href="#made">which' in told
    assert "<code>Schedule.peak</code>" in told and ">2e-05</td>" in told and ">0.01</td>" in told

    last = card._settings_section(str(run), 46)
    assert "| Schedule.peak | 36 | 2e-05 | 0.01 |" in last and "Schedule.peak = 0.01" in last
    assert "/home/me" not in last and "…/base" in last
    early = card._settings_section(str(run), 36)
    assert "Schedule.peak = 2e-05" in early and "0.01" not in early and "changed" not in early
