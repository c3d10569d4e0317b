"""How fast exam questions are answered: demonstrations read once against read anew, and our engine beside transformers.

    python -m benchmarks.generate --suites=DATA/benchmarks/elaine [--questions=32] [--pairs=3] [--batches=1,4,8,16]

SmolLM2-135M-Instruct in float32 on a CPU, MedQA (en) with five demonstrations, greedy, 16 new tokens, no end id: all
write the same number. Two ratios, each the median over pairs that are measured one after the other, in turns:
(a) ours with the shared beginning over ours without; (b) ours over `transformers.generate`, batched with padding on the
left, at the fastest of the batch sizes given. Compilation is left out: each is run once before.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import elaine_prompts, smollm2
from benchmarks.greedy import load_ours, load_theirs
from t_elaine.generation.engine import generate
from t_elaine.generation.requests import Request
from t_elaine.generation.sampling import Sampling

NEW = 16


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write_ours(engine: Any, prompts: Sequence[np.ndarray], share: bool) -> list[list[int]]:
    """All answers of our engine, in order."""
    requests = [Request(tokens=tokens, sampling=Sampling(max_new=NEW)) for tokens in prompts]
    answers = sorted(generate(engine, requests, share=share), key=lambda answer: answer.index)
    return [answer.tokens.tolist() for answer in answers]


def write_theirs(model: Any, prompts: Sequence[np.ndarray], rows: int) -> list[list[int]]:
    """All answers of transformers, `rows` at a time, those of like length together."""
    import torch

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, list[int]] = {}
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        length = max(len(prompts[i]) for i in chosen)
        ids = torch.zeros((len(chosen), length), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):
            ids[row, length - len(prompts[i]) :] = torch.from_numpy(prompts[i].astype(np.int64))
            mask[row, length - len(prompts[i]) :] = 1
        options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
        with torch.no_grad():
            out = model.generate(ids, attention_mask=mask, eos_token_id=None, **options)
        found |= {i: out[row, length:].tolist() for row, i in enumerate(chosen)}
    return [found[i] for i in range(len(prompts))]


def pairs(count: int, ours: Callable[[], Any], other: Callable[[], Any], name: str) -> dict[str, Any]:
    """Both measured `count` times, in turns: medians of seconds, and of the ratio."""
    ratios, mine, peers = [], [], []
    for number in range(count):
        first, second = (ours, other) if number % 2 == 0 else (other, ours)
        times = {first: seconds(first), second: seconds(second)}
        mine.append(times[ours])
        peers.append(times[other])
        ratios.append(times[other] / times[ours])
        print(f"{name}, pair {number + 1}: {times[ours]:.1f} s and {times[other]:.1f} s", flush=True)
    return {
        "ours_s": round(statistics.median(mine), 2),
        "other_s": round(statistics.median(peers), 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
    }


def main(argv: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--suites", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a folder that benchmarks.smollm2 made; made anew by default")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batches", default="1,4,8,16")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.model or smollm2.make_folder(Path(temporary) / "f32")
        vocabulary, engine = load_ours(folder, arguments.rows)
        (path,) = (p for p in elaine_prompts.suites(arguments.suites) if p.parts[-3:-1] == ("en", "MedQA"))
        texts = elaine_prompts.spread(path, arguments.questions)
        prompts = [vocabulary.encode(text).astype(np.int32) for text in texts]
        model = load_theirs(folder)
        shared, alone = (lambda share=share: write_ours(engine, prompts, share) for share in (True, False))
        equal = sum(a == b for a, b in zip(shared(), alone(), strict=True))
        found: dict[str, Any] = {"questions": len(prompts), "prompt_tokens": int(np.mean([len(p) for p in prompts]))}
        found |= {"new_tokens": NEW, "rows": engine.rows, "equal_with_and_without": equal}
        found["shared_over_alone"] = pairs(arguments.pairs, shared, alone, "shared, alone")
        tried = {}
        for rows in map(int, arguments.batches.split(",")):
            tried[rows] = seconds(lambda rows=rows: write_theirs(model, prompts, rows))
            print(f"transformers, {rows} at a time: {tried[rows]:.1f} s", flush=True)
        best = min(tried, key=lambda rows: tried[rows])
        found["transformers_batch"] = best
        theirs = lambda: write_theirs(model, prompts, best)  # noqa: E731
        found["ours_over_transformers"] = pairs(arguments.pairs, shared, theirs, "ours, transformers")
    found["questions_per_s"] = round(len(prompts) / found["ours_over_transformers"]["ours_s"], 3)
    found |= {"cores": os.cpu_count(), "machine": platform.machine(), "load": round(os.getloadavg()[0], 1)}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
