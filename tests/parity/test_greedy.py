"""Greedy answers are transformers' `generate`'s, token by token, with SmolLM2-135M in float32."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")

from benchmarks import greedy  # noqa: E402
from t_elaine.generation.engine import generate  # noqa: E402
from t_elaine.generation.requests import Request  # noqa: E402
from t_elaine.generation.sampling import Sampling  # noqa: E402


@pytest.fixture(scope="module")
def both(smollm2_dir: Path) -> Iterator[tuple[Any, Any, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine two of its threads wait for each other, and take several times longer
    yield *greedy.load_ours(smollm2_dir, rows=8), greedy.load_theirs(smollm2_dir)
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "shots", "suites"), [(22, 0, "*/*"), (4, 2, "en/MMLU")])
def test_a_few_prompts(
    both: tuple[Any, Any, Any], shared_data: Path, tmp_path: Path, prompts: int, shots: int, suites: str
) -> None:
    """Two questions of each of the 11 suites in one ragged batch; and four that share demonstrations."""
    vocabulary, engine, model = both
    whole = shared_data / "benchmarks" / "elaine"
    for path in whole.glob(suites):
        link = tmp_path / path.relative_to(whole)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path)
    asked = greedy.spread(tmp_path, vocabulary, prompts, shots)
    assert len(asked) == prompts
    settings = Sampling(max_new=16)
    requests = [Request(tokens=one.tokens, sampling=settings, end_ids=(vocabulary.eos,)) for one in asked]
    answers = sorted(generate(engine, requests), key=lambda answer: answer.index)
    found = greedy.partings(asked, [a.tokens.tolist() for a in answers], model, 16, vocabulary.eos, whole=prompts)
    parted = [parting for parting in found if parting]
    assert not [parting for parting in parted if parting.gap >= greedy.TIE], parted
    assert len(parted) <= 1 and len({tuple(answer.tokens) for answer in answers}) > prompts // 3


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_two_hundred_prompts(shared_data: Path, smollm2_dir: Path) -> None:
    folder = shared_data / "benchmarks" / "elaine"
    assert greedy.main([f"--suites={folder}", f"--model={smollm2_dir}", "--prompts=200"]) == 0
