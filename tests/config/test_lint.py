"""The lint beside gin itself: what it accepts, what it lists, what gin would pass over."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import gin
import pytest

from t_elaine.config import gin_files, lint, overrides, reach, settings
from t_elaine.errors import UserError


def told(files: list[str], flags: list[str] | None = None, command: str = "") -> str:
    statements = gin_files.statements(files, flags or [])
    found = lint.faults(statements) or (lint.missing(command, statements, {}) if command else [])
    return "\n".join(f"{f.what} | {f.where} | {f.mend}" for f in found)


def write(text: str, name: str = "own.gin") -> list[str]:
    Path(name).write_text(text, encoding="utf-8")
    return [name]


def test_overrides_on_purpose_are_listed_not_refused(house: Path) -> None:
    flags = ["train.steps = 7", "PEAK = 2e-4", "train.steps = 8"]
    told = " ".join(
        line.strip() for line in lint.check("train", gin_files.statements(["base.gin", "small.gin"], flags))
    )
    assert "small.gin: " in told and "STEPS 100 → 5" in told
    assert "overridden:" in told and "PEAK 0.001 → 0.0002;" in told and "train.steps 7 → 8" in told
    assert "shuffle" not in told


def test_many_overrides_take_few_lines(house: Path) -> None:
    flags = [f"Corpora.folders = {['stores/' + 'x' * 90]!r}", *(f"train.steps = {n}" for n in range(20))]
    lines = overrides.tell(gin_files.statements(["base.gin"], flags))
    assert len(lines) < 8 and max(map(len, lines)) <= overrides.WIDTH


def test_very_many_overrides_are_counted_and_the_flags_told_first(house: Path) -> None:
    words = ["alpha" * 6, "beta" * 7]
    for name, word in zip(("one.gin", "two.gin"), words, strict=True):
        write("".join(f"s{i}/train.run_dir = '{word}'\n" for i in range(30)), name)
    flags = [f"s{i}/train.run_dir = 'by flag'" for i in range(2)]
    statements = gin_files.statements(["one.gin", "two.gin"], flags)
    first = [dataclasses.replace(s, source="zero.gin", rank=-1, value="0") for s in statements[:30]]
    lines = overrides.tell([*first, *statements], "train")
    assert len(lines) == overrides.MOST and max(map(len, lines)) <= overrides.WIDTH
    assert lines[0].startswith("one.gin: 30 overridden") and lines[-1].startswith("config.gin in the run folder")
    told = " ".join(line.strip() for line in lines)
    assert "two.gin: 30 overridden" in told and re.search(r"; and \d+ more", told)
    assert told.count("by flag") == 2 and "flags: 2 overridden: s0/train.run_dir" in told
    assert "config.gin" not in "".join(overrides.tell([*first, *statements], "export"))


@pytest.mark.parametrize(
    "flag",
    [
        "Rate.peak = 1",  # a whole number where a fraction may stand
        "Rate.kind = 'linear'",
        "Corpora.folders = ('one',)",  # a tuple where a list stood
        "Corpora.weights = {'en': 1, 'ja': 2.5}",
        "Corpora.shape = [5, 6]",
        "Corpora.rate = None",  # leaves reader/Rate.warmup_steps idle: on purpose
        "train.corpora = @other/Corpora()",  # a scope that binds nothing of its own
        "train.scale = None",
        "LANGUAGES = []",
        "train.steps = 0x10",
    ],
)
def test_a_changed_value_of_the_right_type_passes(house: Path, flag: str) -> None:
    assert told(["base.gin"], [flag], "train") == ""


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("Rate.peak = '3e-4'", "Rate.peak = '3e-4' is of the wrong type | --gin.Rate.peak | expected float"),
        ("train.steps = 1e5", "expected int"),
        ("train.steps = True", "expected int"),
        ("train.overwrite = 1", "expected bool"),
        ("Rate.kind = 'cosin'", "expected Literal['cosine', 'linear']"),
        ("Corpora.shape = (1,)", "expected tuple[int, int]"),
        ("Corpora.shape = (1, 2, 3)", "expected tuple[int, int]"),
        ("Corpora.weights = {'en': 'much'}", "expected Mapping[str, float] or None"),
        ("STEPS = 'ten'", "train.steps = %STEPS is of the wrong type | base.gin:12 (%STEPS = 'ten' at --gin.STEPS)"),
        ("train.hook = @Rate()", "wrong type"),
        ("t_elaine.Rate.peak = 1.0", "did you mean Rate?"),
        ("Fate.peak = 1.0", "did you mean Rate?"),
        ("Rap.peak = 1.0", "known: "),  # nothing is near it
        ("Idle.size = 3", "nothing refers to @Idle()"),
        ("eval/train.steps = 3", "nothing enters the scope 'eval' | --gin.eval/train.steps | take the scope out"),
        ("reader.warmup_steps = 3", "nothing is called 'reader'"),
        ("train.argv = ('x',)", "train has no setting 'argv'"),
        ("train.steps = %MISSING", "macro %MISSING has no value"),
        ("gin.macro.value = 3", "nothing is called 'gin.macro'"),
    ],
)
def test_what_gin_lets_pass_is_refused(house: Path, flag: str, expected: str) -> None:
    assert expected in told(["base.gin"], [flag])


def test_a_function_may_be_given_without_parentheses(house: Path) -> None:
    assert told(["base.gin"], ["train.hook = @Rate"]) == ""


def test_a_binding_that_a_longer_scope_always_outdoes_is_told(house: Path) -> None:
    files = write("train.rate = @slow/Rate()\ntrain.slow = @slow/Rate()\nslow/Rate.peak = 1.0\n")
    assert told(files) == ""
    assert "Rate.peak = 2.0 never takes effect: slow/Rate.peak (own.gin:3) outdoes it" in told(
        files, ["Rate.peak = 2.0"]
    )


def test_circles_of_macros_end(house: Path) -> None:
    assert "leads back to itself" in told(write("A = %B\nB = [%A]\ntrain.steps = %A\n"))


def test_a_file_read_twice_is_told(house: Path) -> None:
    assert "shared.gin is read twice" in told(write("include 'base.gin'\ninclude 'shared.gin'\n"))


def test_an_including_file_may_override(house: Path) -> None:
    files = write("include 'base.gin'\nSTEPS = 3\n")
    assert told(files) == ""
    assert overrides.tell(gin_files.statements(files, [])) == ["own.gin: 1 overridden: STEPS 100 → 3"]


def test_what_an_override_leaves_idle_is_no_fault(house: Path) -> None:
    assert told(write("include 'base.gin'\nCorpora.rate = None\n")) == ""  # reader/Rate.warmup_steps has no reader now
    assert told(["base.gin", *write("Corpora.rate = None\n")]) == ""
    found = told(["base.gin"], ["Corpora.rate = None", "reader/Rate.kind = 'linear'"])
    assert "nothing enters the scope 'reader' | --gin.reader/Rate.kind" in found


def test_required_settings_are_asked_for(house: Path) -> None:
    files = write("train.corpora = @Corpora()\ntrain.rate = @Rate()\n")
    found = told(files, [], "train")
    for missing in ("Corpora.folders (Sequence[str])", "Rate.peak (float)", "train.run_dir (str)"):
        assert f"{missing} has no value | t-elaine train" in found
    assert told(["base.gin"], [], "report").startswith(
        "report.run_dir (str) has no value | t-elaine report | report.run_dir = …"
    )


def test_gin_required_must_be_given_by_a_flag(house: Path) -> None:
    files = write("RUN_DIR = %gin.REQUIRED\nreport.run_dir = %RUN_DIR\n")
    assert told(files) == ""
    assert "RUN_DIR must be given | own.gin:2 | --gin.RUN_DIR=VALUE" in told(files, [], "report")
    assert told(files, ["RUN_DIR = 'x'"], "report") == ""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("steps/axis.name = 'Rate.warmup_step'", "did you mean warmup_steps?"),
        ("steps/axis.name = 'PEAKS'", "axis PEAKS: no such macro"),
        ("steps/axis.values = [0, 'ten']", "Rate.warmup_steps = 'ten' is of the wrong type"),
        ("slow/axis.name = 'other/Rate.peak'", "nothing enters the scope 'other'"),
        ("slow/axis.name = 'Idle.size'\nslow/axis.values = [1, 2]", "nothing refers to @Idle()"),
        ("peak/axis.values = ['high']", "wrong type"),
        ("both/zip.parts = [@steps/axis(), 5]", "expected Sequence[list[dict[str, Any]]]"),
        ("sweep.grid = @Rate()", "wrong type"),
    ],
)
def test_axes_of_sweeps_are_judged_like_flags(house: Path, change: str, expected: str) -> None:
    assert expected in told(["base.gin", "sweep.gin", *write(change)])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"train.steps = 5\nimport os\n", "gin import of 'os'"),
        (b"train.steps = \n", "not gin syntax"),
        (b"train.steps = [1,\n", "not gin syntax"),
        (b"train.run_dir = 'x\n", "not gin syntax"),
        (b"train.steps 5\n", "own.gin:1"),
        (b"A:\n  b = 1\n c = 2\n", "not gin syntax"),
        (b"include 'nowhere.gin'\n", "there is no gin file 'nowhere.gin'"),
        (b"include 'own.gin'\n", "gin files include each other: own.gin → own.gin"),
        (b"\xef\xbb\xbftrain.steps = 5\n", "byte-order mark"),
        (b"# caf\xe9\n", "own.gin is not UTF-8"),
        (b"train.steps = 5 + 5\n", "own.gin:1"),
        (b"train.steps = os.system\n", "own.gin:1"),
        (b"\x00", "own.gin"),
    ],
)
def test_a_broken_file_is_a_clear_message(house: Path, content: bytes, expected: str) -> None:
    Path("own.gin").write_bytes(content)
    with pytest.raises(UserError) as caught:
        gin_files.statements(["own.gin"], [])
    assert expected in caught.value.text() and caught.value.mend


def test_a_wrong_include_is_told_with_the_file_and_line_that_has_it(house: Path) -> None:
    write("train.steps = 5\n\ninclude 'nowhere.gin'\n", "between.gin")
    with pytest.raises(UserError) as caught:
        gin_files.statements(write("include 'between.gin'\n"), [])
    assert caught.value.where.startswith("included at between.gin:3; looked in the working folder")
    write("\ninclude 'own.gin'\n", "between.gin")
    with pytest.raises(UserError, match=r"own\.gin → between\.gin → own\.gin") as caught:
        gin_files.statements(["own.gin"], [])
    assert caught.value.where == "between.gin:2"
    with pytest.raises(UserError) as caught:
        gin_files.statements(["nowhere.gin"], [])
    assert caught.value.where.startswith("looked in the working folder")


def test_windows_line_ends_are_read(house: Path) -> None:
    Path("own.gin").write_bytes(b"train.steps = 5\r\ntrain.run_dir = 'x'\r\n")
    assert [(s.key, s.value, s.line) for s in gin_files.statements(["own.gin"], [])] == [
        ("train.steps", 5, 1),
        ("train.run_dir", "x", 2),
    ]


SCOPES = """
S = @Rate()
train.corpora = @a/Corpora()
a/Corpora.rate = @Rate()
a/Rate.peak = 1.0
train.rate = %S
S/Rate.peak = 2.0
S/Rate.kind = 'linear'
train.slow = @a/b/Rate()
a/b/Rate.warmup_steps = 3
Rate.warmup_steps = 9
Corpora.folders = %DEEP
DEEP = ['x', %INNER]
INNER = 'y'
train.run_dir = 'r'
"""


@pytest.mark.parametrize("text", [SCOPES, "include 'base.gin'", "include 'base.gin'\nSTEPS=2\ntrain.slow = @Rate()"])
def test_what_takes_effect_is_what_gin_calls(house: Path, text: str) -> None:
    files = write(text)
    made = settings.register()
    gin_files.apply(gin_files.statements(files, []))
    made["train"]()
    bound = {
        ("/".join(scope), name): set(values)
        for (scope, name), values in reach.states(gin_files.statements(files, []), ["train"]).items()
    }
    called = {
        (scope, selector.split(".")[-1])
        for scope, selector in gin.config._OPERATIVE_CONFIG
        if not selector.startswith("gin.")
    }
    assert set(bound) == called
    for (scope, name), names in bound.items():
        with gin.config_scope(scope or None):
            assert set(gin.get_bindings(name, resolve_references=False)) == names


def test_the_configuration_in_force_reads_back_the_same(house: Path) -> None:
    flags = ["train.run_dir = 'a b/日本'", "Corpora.rate = None", "report.run_dir = 'elsewhere'"]
    made = settings.register()
    gin_files.apply(gin_files.statements(["base.gin", "small.gin"], flags))
    first = made["train"]()
    text = reach.text_in_force("train", gin_files.statements(["base.gin", "small.gin"], flags))
    for left_out in ("RUN_DIR", "reader/Rate", "report"):  # what is outdone or not read by this command
        assert left_out not in text
    files = write(text, "again.gin")
    assert told(files, [], "train") == ""
    made = settings.register()
    gin_files.apply(gin_files.statements(files, []))
    assert made["train"]() == first
    assert reach.text_in_force("train", gin_files.statements(files, [])) == text
    assert first["run_dir"] == "a b/日本" and first["rate"].peak == 1e-3


def test_gin_prints_and_reads_back_what_the_makers_hold(house: Path) -> None:
    made = settings.register()
    gin_files.apply(gin_files.statements(["base.gin"], []))
    first, text = made["train"](), gin.config_str()
    made = settings.register()
    gin.parse_config(text)
    assert made["train"]() == first and gin.config_str() == text


def test_every_setting_resolves_and_has_types() -> None:
    paths = [*settings.ROOTS.values(), *settings.DATACLASSES, *settings.FUNCTIONS.values()]
    for path in paths:
        settings.resolve(path)
    names = [path.split(":")[1] for path in settings.DATACLASSES] + list(settings.ROOTS) + list(settings.FUNCTIONS)
    assert len(names) == len(set(names))
    for name, target in settings.configurables().items():
        for parameter in settings.parameters(target):
            assert parameter in lint.types.hints(target), f"{name}.{parameter} has no type"


def test_the_lint_starts_no_device_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; from t_elaine.config import lint; code = lint.main();"
        "from jax._src import xla_bridge; assert not xla_bridge._backends, xla_bridge._backends;"
        "heavy = {'tensorflow', 'seqio', 'transformers', 'torch', 'datasets'} & set(sys.modules);"
        "assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shipped files, 0 faults" in done.stdout
