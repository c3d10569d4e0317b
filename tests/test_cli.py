"""What all commands share: flags, gin files, modules, and how a mistake, a full disk and a bug end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t_elaine import cli, machine, paths
from t_elaine.config import settings
from t_elaine.data.assembly import holding
from tests.config import made_up

GIN = Path(__file__).parent / "config" / "gin"
FLAGS = ("run_dir", "steps", "overwrite", "languages", "scale")


@pytest.fixture(autouse=True)
def made_up_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "ROOTS", made_up.ROOTS)
    monkeypatch.setattr(settings, "DATACLASSES", made_up.DATACLASSES)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for file in GIN.glob("*.gin"):
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")


def train(*arguments: str) -> int:
    return cli.run("train", ["--gin_file=base.gin", *arguments], FLAGS)


def message(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed on standard error, checked to be three parts and no traceback."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    text = text[text.index("error: ") :]  # what is overridden stands before it
    assert "\nmend: " in text, text
    return text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--run_dri=x",), "did you mean --run_dir?"),
        (("--gin_fiel=x",), "did you mean --gin_file?"),
        (("--nothing_like_it",), "flags of train: --gin_file, --module, --help, --run_dir"),
        (("stray",), "unknown argument 'stray'"),
        (("--gin.train.steps",), "--gin.train.steps=VALUE"),
        (("--run_dir",), "--run_dir needs a value"),
        (("--run_dir=",), "--run_dir needs a value"),
        (("--languages",), "--languages needs a value"),
        (("--run_dir=a", "--run_dir=b"), "--run_dir is given twice"),
        (("--gin_file",), "--gin_file needs a value"),
        (("--gin_file=",), "unknown argument '--gin_file='"),
        (("--overwrite=maybe",), "neither true nor false"),
        (("--steps=ten",), "--steps=ten is not a number"),
        (("--steps=2.5",), "expected int"),
        (("--gin.train.steps=",), "not gin syntax"),
        (("--gin.train.run_dir=runs/x",), "not gin syntax: 'runs' is no value (strings stand in quotes)"),
        (("--gin.train.stepz=5",), "did you mean steps?"),
        (("--gin_file=smal.gin",), "there is no gin file 'smal.gin'"),
        (("--gin_file=.",), "there is no gin file '.'"),
        (("--module=no_such_module",), "there is no module 'no_such_module'"),
        (("--gin.Rate.peak=-1.0",), "peak is -1.0"),
        (("--steps=28",), "error: the disk is full\nwhere: somewhere/file\nmend: free some space"),
        (("--steps=30",), "the system forbids it: Read-only file system"),
    ],
)
def test_a_mistake_is_three_lines_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    assert train(*arguments) == 2
    assert expected in message(capsys)


def test_a_bug_is_a_traceback() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        train("--steps=13")


def test_a_file_without_the_right_to_read_it_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    told = cli.of_the_machine(PermissionError(13, "Permission denied", "secret.gin"))
    assert told is not None and told.where == "secret.gin"
    assert cli.of_the_machine(FileNotFoundError(2, "No such file or directory", "x")) is None


def test_no_space_is_known_by_its_text_too() -> None:
    told = cli.of_the_machine(OSError("[Errno 28] Error writing bytes to file. Detail: No space left on device"))
    assert told is not None and told.what == "the disk is full"


@pytest.mark.parametrize("arguments", [("--steps=5", "--run_dir=runs/x"), ("--steps", "5", "--run-dir", "runs/x")])
def test_flags_take_their_value_after_a_sign_or_a_space(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert train(*arguments, "--overwrite", "--languages=en,ja", "--scale=None") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[2] == "runs/x" and printed[5:] == ["5", "True", "('en', 'ja')", "None"]


@pytest.mark.parametrize(("text", "value"), [("true", "True"), ("0", "False"), ("no", "False"), ("YES", "True")])
def test_truth_values(capsys: pytest.CaptureFixture[str], text: str, value: str) -> None:
    assert train(f"--overwrite={text}") == 0
    assert capsys.readouterr().out.splitlines()[6] == value


def test_a_bare_argument_sets_the_positional_setting_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run("report", ["runs/one"], (), "run_dir") == 0
    assert capsys.readouterr().out == "runs/one\n"
    assert cli.run("report", ["runs/one", "runs/two"], (), "run_dir") == 2
    assert "unknown argument 'runs/two'" in message(capsys)


def test_every_fault_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--gin.train.stepz=5", "--gin.Rate.peek=1") == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_overrides_are_told_and_commands_run_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--gin_file=small.gin") == 0
    assert "small.gin: 4 overridden: STEPS 100 → 5" in capsys.readouterr().err
    assert train() == 0
    assert capsys.readouterr().out.splitlines()[5] == "100"


def test_a_module_of_the_working_folder_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my_tasks_of_mine.py").write_text("print('imported')\n")
    assert train("--module=my_tasks_of_mine") == 0
    assert capsys.readouterr().out.startswith("imported\n")


def test_a_fault_inside_a_module_is_shown_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "broken_tasks_of_mine.py").write_text("import no_such_package_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        train("--module=broken_tasks_of_mine")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["trian"], "did you mean train?"), (["xyzzy"], "one of "), (["--gin_file=x"], "one of ")],
)
def test_an_unknown_command(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert cli.main(arguments) == 2
    assert expected in message(capsys)


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0 and "train" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "prepare", "export"])
def test_real_commands_end_with_a_message(command: str, tmp_path: Path) -> None:
    """As a person calls it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", f"t_elaine.{command}", "--gin_file=nowhere.gin"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "error: there is no gin file 'nowhere.gin'\n" in done.stderr and "Traceback" not in done.stderr


def test_mixed_jax_and_jaxlib_are_told_before_they_are_imported(tmp_path: Path) -> None:
    """A stand-in for jaxlib's metadata of another version, found first."""
    folder = tmp_path / "jaxlib-0.4.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: jaxlib\nVersion: 0.4.1\n")
    for start in (["-m", "t_elaine.train"], ["-m", "t_elaine", "train"]):
        done = subprocess.run(
            [sys.executable, *start], capture_output=True, text=True, cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert f"error: jax {machine.version_of('jax')} does not work with jaxlib 0.4.1" in done.stderr
        assert "mend: pip install jax==" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("path", ["{file}/runs", "{file}/runs/one", "/proc/no_such_place/one", "{folder}"])
def test_a_place_where_nothing_can_be_written_is_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    (tmp_path / "file").write_text("")
    where = path.format(file=tmp_path / "file", folder=tmp_path)

    def work() -> int:
        if where == str(tmp_path):
            paths.write_text(where, "a page")
        paths.make_folder(where)
        return 0

    assert cli.guarded(work) == 2
    assert where.removesuffix("/one") in message(capsys)


def test_a_full_disk_names_the_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths.os, "fsync", full)
    assert cli.guarded(lambda: paths.write_text("page.html", "text") or 0) == 2
    assert "the disk is full\nwhere: page.html" in message(capsys)
    assert not list(Path().glob(".writing*"))


def test_only_flags_that_exist_are_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run("report", [], (), "run_dir") == 2
    assert "mend: t-elaine report RUN_DIR or report.run_dir = … in a gin file" in message(capsys)
    assert cli.run("report", [], ()) == 2
    assert "mend: report.run_dir = … in a gin file" in message(capsys)


def test_an_empty_list_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--languages=") == 0
    assert "()" in capsys.readouterr().out.splitlines()


def test_the_first_page_says_what_each_command_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["help"]):
        assert cli.main(arguments) == 0
        printed = capsys.readouterr().out
        assert all(f"  {name:10} {cli.COMMANDS[name]}" in printed for name in cli.available())
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out.startswith("t-elaine ")


LOST = """
import sys, time
from t_elaine import cli

class Finalised:
    def __del__(self):
        raise KeyboardInterrupt

def work():
    Finalised()
    time.sleep(20)
    return 0

sys.exit(cli.guarded(work))
"""


def test_a_keyboard_interrupt_in_a_finaliser_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=15)
    assert done.returncode == 130 and done.stderr == "stopped by the keyboard; what was saved is kept\n"


def test_an_interrupt_before_the_first_checkpoint_promises_none() -> None:
    work = "def work(): raise KeyboardInterrupt"
    program = f"import sys\nfrom t_elaine import cli\n{work}\nsys.exit(cli.guarded(work, 'train'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=15)
    assert done.returncode == 130 and "from the last, or begins anew without one" in done.stderr


def test_stores_in_an_impossible_place_are_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("this system has no /proc")

    def work() -> int:
        with holding(Path("/proc/no_such_place/stores"), "one"):
            return 0

    assert cli.guarded(work) == 2
    assert "no folder can be made there\nwhere: /proc/no_such_place/stores" in message(capsys)


@pytest.mark.parametrize("arguments", [["train", "--help"], ["doctor"], ["no_such_command"], []])
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("buffered", [True, False])
def test_output_that_nobody_reads_ends_quietly(arguments: list[str], both: bool, buffered: bool) -> None:
    """A pipe whose reading end is closed before a word is written; then the errors' too."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "t_elaine", *arguments],
        stdout=writing, stderr=writing if both else subprocess.PIPE, text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "" if buffered else "1"},
    )  # fmt: skip
    os.close(writing)
    told = arguments == ["no_such_command"] and not both  # its words go to the open one
    assert done.returncode == (2 if told else 141)
    assert both or told or done.stderr == ""


def test_another_broken_pipe_is_a_bug() -> None:
    def work() -> int:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        cli.guarded(work)
