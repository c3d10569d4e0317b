"""Greedy answers of our engine beside transformers' `generate`, token by token, over the ELAINE suites.

    python -m benchmarks.greedy --suites=DATA/benchmarks/elaine [--prompts=200] [--shots=5] [--new=16] [--whole=2]
        [--to=FILE]

Float32 on a CPU, SmolLM2-135M-Instruct. Ours reads an exam's demonstrations once and writes in batches; transformers
answers each prompt by itself: the first `--whole` of each suite are read whole, the others go on from a copy of its own
cache of the demonstrations (`past_key_values`), which spares most of the time. Where the two part, the gap between
transformers' first and second logit at that token is printed: below 1e-4 either choice is the likeliest token to
float32's accuracy, and it is counted as a tie. Exit code 1 if they part anywhere else.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import elaine_prompts, smollm2
from t_elaine.evaluation.engines import open_model
from t_elaine.generation.engine import generate, make_engine
from t_elaine.generation.requests import Request, common_prefix
from t_elaine.generation.sampling import Sampling
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh

TIE = 1e-4


@dataclass(frozen=True)
class Asked:
    """A prompt of a suite, as token ids."""

    suite: str
    tokens: np.ndarray


@dataclass(frozen=True)
class Parting:
    """The first token at which the two differ, and how far apart transformers has its first two logits there."""

    suite: str
    place: int
    ours: int
    theirs: int
    gap: float


def load_ours(folder: Path, rows: int) -> tuple[Any, Any]:
    """The vocabulary and the engine, float32, on one device."""
    model, mesh = open_model(str(folder)), make_mesh(MeshConfig(), jax.devices()[:1])
    compute = ComputeConfig(dtype="float32", remat="none")
    engine = make_engine(model.load(mesh), model.config, compute, mesh, model.vocabulary, rows=rows, donate=True)
    return model.vocabulary, engine


def load_theirs(folder: Path) -> Any:
    """transformers' model, float32."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def spread(folder: Path, vocabulary: Any, count: int, shots: int) -> list[Asked]:
    """`count` prompts over all suites, as evenly as it goes."""
    files = elaine_prompts.suites(folder)
    shares = [(count * (i + 1)) // len(files) - (count * i) // len(files) for i in range(len(files))]
    return [
        Asked(f"{path.parent.parent.name}/{path.parent.name}", vocabulary.encode(text).astype(np.int32))
        for path, share in zip(files, shares, strict=True)
        for text in elaine_prompts.spread(path, share, shots)
    ]


def ours(engine: Any, asked: Sequence[Asked], new: int, end: int) -> list[list[int]]:
    """Our tokens."""
    requests = [Request(tokens=one.tokens, sampling=Sampling(max_new=new), end_ids=(end,)) for one in asked]
    answers = sorted(generate(engine, requests), key=lambda answer: answer.index)
    return [answer.tokens.tolist() for answer in answers]


def kept(model: Any, asked: Sequence[Asked]) -> Any:
    """transformers' cache of what a suite's prompts have in common."""
    import torch
    import transformers

    tokens = asked[0].tokens[: common_prefix([one.tokens for one in asked])]
    cache = transformers.DynamicCache()
    with torch.no_grad():
        model(torch.tensor(tokens[None].astype(np.int64)), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def theirs(model: Any, tokens: np.ndarray, new: int, end: int, cache: Any = None) -> tuple[list[int], list[float]]:
    """transformers' tokens for one prompt, and the gap between its first two logits at each."""
    import torch

    with torch.no_grad():
        ids = torch.tensor(tokens[None].astype(np.int64))
        options = {"max_new_tokens": new, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
        options |= {"return_dict_in_generate": True, "output_logits": True}
        options |= {} if cache is None else {"past_key_values": copy.deepcopy(cache)}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    tops = [torch.topk(scores[0], 2).values for scores in out.logits]
    return out.sequences[0, len(tokens) :].tolist(), [float(top[0] - top[1]) for top in tops]


def partings(
    asked: Sequence[Asked], mine: Sequence[list[int]], model: Any, new: int, end: int, whole: int
) -> Iterator[Any]:
    """For each prompt: None where all tokens are equal, else where they part."""
    read, cache = Counter[str](), None
    for one, tokens in zip(asked, mine, strict=True):
        read[one.suite] += 1
        if read[one.suite] == 1:
            cache = None
        elif read[one.suite] == whole + 1:
            cache = kept(model, [other for other in asked if other.suite == one.suite])
        reference, gaps = theirs(model, one.tokens, new, end, cache)
        if tokens == reference:
            yield None
            continue
        place = next((i for i, (a, b) in enumerate(zip(tokens, reference, strict=False)) if a != b), -1)
        yield Parting(one.suite, place, tokens[place], reference[place], gaps[place])


def main(argv: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--suites", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a folder that benchmarks.smollm2 made; made anew by default")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--whole", type=int, default=2, help="prompts of each suite that transformers reads whole")
    parser.add_argument("--to", type=Path)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.model or smollm2.make_folder(Path(temporary) / "f32")
        vocabulary, engine = load_ours(folder, rows=16)
        asked = spread(arguments.suites, vocabulary, arguments.prompts, arguments.shots)
        began, mine, found, model = time.perf_counter(), [], [], load_theirs(folder)
        for suite in dict.fromkeys(one.suite for one in asked):
            questions = [one for one in asked if one.suite == suite]
            mine += (tokens := ours(engine, questions, arguments.new, vocabulary.eos))
            print(f"{time.perf_counter() - began:.0f} s: {suite}, {len(tokens)} answers of ours", flush=True)
            found += list(partings(questions, tokens, model, arguments.new, vocabulary.eos, arguments.whole))
            parted = [parting for parting in found[-len(tokens) :] if parting]
            told = f"{len(tokens) - len(parted)} equal {parted or ''}"
            print(f"{time.perf_counter() - began:.0f} s: {suite}, {told}", flush=True)
    parted = [parting for parting in found if parting]
    ties = [parting for parting in parted if parting.gap < TIE]
    told = {"prompts": len(found), "tokens": sum(map(len, mine)), "equal": len(found) - len(parted), "ties": len(ties)}
    told |= {"suites": len({one.suite for one in asked}), "shots": arguments.shots}
    told |= {"read_whole": arguments.whole * told["suites"], "seconds": round(time.perf_counter() - began)}
    print(json.dumps(told))
    if arguments.to:
        arguments.to.write_text(json.dumps(told | {"parted": [asdict(one) for one in parted]}) + "\n")
    return int(len(parted) > len(ties))


if __name__ == "__main__":
    sys.exit(main())
