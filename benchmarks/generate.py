"""All answers to a set of prompts by our engine and by transformers, for `benchmarks.evaluate`; it measures nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from t_elaine.generation.engine import generate
from t_elaine.generation.requests import Request
from t_elaine.generation.sampling import Sampling

NEW = 16


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
