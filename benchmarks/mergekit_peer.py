"""Runs mergekit on jobs that `benchmarks/merge.py` writes; started by the Python that has mergekit.

    python benchmarks/mergekit_peer.py JOBS.json

JOBS.json: a list of {"config": mergekit's configuration, "out": folder}. What its DARE methods kept is written to
OUT/masks.json, by tensor and by the model's place: its random generator is not ours, so the draws are handed over.
"""

import base64
import json
import sys
import time
from pathlib import Path
from typing import Any

import mergekit.sparsify
import numpy as np
import torch
import transformers
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge

transformers.utils.logging.disable_progress_bar()


def record_draws(masks: dict[str, list[str]]) -> None:
    """Let every Bernoulli draw be written down under the tensor that is being merged."""
    merge_group, bernoulli = GeneralizedTaskArithmeticMerge.merge_group, torch.bernoulli
    now: list[str] = []

    def named(self: Any, group: Any, /, **parameters: Any) -> Any:
        now[:] = [group.metadata.name]
        return merge_group(self, group, **parameters)

    def drawn(chances: torch.Tensor) -> torch.Tensor:
        mask = bernoulli(chances)
        bits = np.packbits(mask.numpy().astype(bool).reshape(-1))
        masks.setdefault(now[0], []).append(base64.b64encode(bits.tobytes()).decode())
        return mask

    GeneralizedTaskArithmeticMerge.merge_group = named
    mergekit.sparsify.torch.bernoulli = drawn


def main() -> None:
    masks: dict[str, list[str]] = {}
    record_draws(masks)
    torch.manual_seed(0)
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        masks.clear()
        started = time.perf_counter()
        config = MergeConfiguration.model_validate(job["config"])
        run_merge(config, job["out"], options=MergeOptions(quiet=True, copy_tokenizer=False))
        seconds = time.perf_counter() - started
        (Path(job["out"]) / "masks.json").write_text(json.dumps(masks), encoding="utf-8")
        (Path(job["out"]) / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


main()
