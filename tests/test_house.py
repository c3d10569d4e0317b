"""The shape of the house: imports run one way, heavy libraries stay in their rooms, files stay small."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from t_elaine.cli import COMMANDS

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "t_elaine"
ROOMS = sorted(p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists())

# Room → rooms it may import from (its own is always allowed; errors, paths, columns, faults, changes are open to all).
MAY_IMPORT = {
    "config": set(ROOMS) | {"commands"},
    "evaluation": {"generation", "model", "data", "hf", "parallel", "checkpoints"},
    "planning": {"training", "parallel", "model"},
    "hf": {"model", "parallel", "checkpoints", "generation"},
    "peers": {"generation"},
    "training": {"model", "parallel", "checkpoints"},
    "generation": {"data", "model", "parallel"},
    "checkpoints": {"parallel"},
    "studies": set(),
    "reporting": set(),
    "data": set(),
    "model": set(),
    "parallel": set(),
}
# model and parallel meet here alone.
EXCEPTIONS = {
    ("parallel/sharding.py", "t_elaine.model.placement"),
    # A checkpoint of adapters is read as the model that they make of their base.
    ("checkpoints/adapters.py", "t_elaine.model"),
}
OPEN_TO_ALL = {
    "t_elaine",
    *(
        f"t_elaine.{name}"
        for name in (
            "__version__",
            "changes",
            "columns",
            "errors",
            "faults",
            "forgetting",
            "interrupts",
            "parentage",
            "paths",
        )
    ),
}

# Third-party package → files or rooms that may import it; packages not named here are refused.
THIRD_PARTY = {
    "jax": [
        "model",
        "parallel",
        "checkpoints",
        "training",
        "hf",
        "evaluation",
        "generation",
        "planning",
        "data/loader.py",
    ],
    "jaxlib": ["training", "parallel"],
    "flax": ["model"],
    "optax": ["training"],
    "orbax": ["checkpoints"],
    "tensorstore": ["checkpoints"],
    "etils": ["checkpoints"],  # Orbax takes its paths; on local paths it loads nothing heavy
    "numpy": ["*"],
    "ml_dtypes": ["hf", "checkpoints"],
    "pyarrow": ["data"],
    "tokenizers": ["data"],
    "tiktoken": ["data"],
    "sentencepiece": ["data"],
    "gguf": ["hf"],
    "zstandard": ["data"],
    "seqio": ["data/tasks.py"],
    "tensorflow": ["data/tasks.py"],
    "tensorflow_datasets": ["data/tasks.py", "data/sources.py"],
    "apache_beam": ["data/beam.py"],
    "safetensors": ["hf"],
    "huggingface_hub": ["hf"],
    "transformers": ["hf", "peers/worker.py"],  # the worker runs in a process, and often a Python, of its own
    "torch": ["hf", "peers/worker.py"],
    "vllm": ["peers/worker.py"],
    "gin": ["config"],
    "fsspec": ["paths.py"],
    "rich": ["*"],
    "tensorboardX": ["training"],
    "matplotlib": ["reporting"],
    "jinja2": ["reporting", "data/chat_jinja.py"],  # chat templates, in its sandbox
    "markupsafe": ["reporting"],
    "scipy": ["evaluation", "studies"],
    "jieba": ["evaluation/words.py"],  # Chinese and Japanese words, loaded when such a text comes
    "janome": ["evaluation/words.py"],
}


def sources() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "_shipped" not in p.parts)


def read_all() -> dict[Path, ast.Module]:
    """Every file's syntax tree, read before a test has run: beside another thread or a finalizer that formats a
    traceback (Python's traceback module parses too), CPython 3.11's parser can fail on its count of nesting."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sources()}


TREES = read_all()


def imports(path: Path) -> list[str]:
    """Every module that a file imports, at any depth of nesting."""
    found = []
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def room_of(module: str) -> str:
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in ROOMS:
        return parts[1]
    return "commands"


def test_every_room_is_in_the_table() -> None:
    assert set(ROOMS) <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    inside = str(path.relative_to(PACKAGE))
    room = inside.split("/")[0] if "/" in inside else "commands"
    for module in imports(path):
        top = module.split(".")[0]
        if top == "t_elaine":
            if room == "commands" or module in OPEN_TO_ALL or module.rpartition(".")[0] in OPEN_TO_ALL - {"t_elaine"}:
                continue
            if any(inside == file and module.startswith(target) for file, target in EXCEPTIONS):
                continue
            target = room_of(module)
            assert target == room or target in MAY_IMPORT[room], f"{inside} imports {module}"
        elif top not in sys.stdlib_module_names:
            assert top in THIRD_PARTY, f"{inside} imports {module}: name it in THIRD_PARTY with its rooms"
            allowed = THIRD_PARTY[top]
            is_allowed = room == "commands" or "*" in allowed or room in allowed or inside in allowed
            assert is_allowed, f"{inside} imports {module}, which belongs to {allowed}"


@pytest.mark.parametrize("folder", ["t_elaine", "data_tasks", "tests", "benchmarks"])
def test_no_file_outgrows_its_room(folder: str) -> None:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in (REPOSITORY / folder).rglob("*.py")}
    assert {str(p): n for p, n in lengths.items() if n > 350} == {}


def test_no_room_bears_the_name_of_a_command() -> None:
    assert set(ROOMS) & set(COMMANDS) == set()


@pytest.mark.parametrize("command", [c for c in COMMANDS if importlib.util.find_spec(f"t_elaine.{c}")])
def test_commands_stay_thin(command: str) -> None:
    """Under 80 lines of code; docstrings do not count, since the help pages are made of them."""
    file = PACKAGE / f"{command}.py"
    documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
    bodies = [node.body[0] for node in ast.walk(TREES[file]) if isinstance(node, documented) and node.body]
    strings = [body for body in bodies if isinstance(body, ast.Expr) and isinstance(body.value, ast.Constant)]
    said = sum((body.end_lineno or body.lineno) - body.lineno + 1 for body in strings)
    assert len(file.read_text(encoding="utf-8").splitlines()) - said < 80


def test_training_imports_nothing_heavy() -> None:
    heavy = ["tensorflow", "seqio", "transformers", "torch", "datasets", "tensorflow_datasets"]
    program = f"import sys, t_elaine.train; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "[]"


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports them by that name alone: two alike and neither is collected."""
    names = [path.name for path in (REPOSITORY / "tests").rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}
