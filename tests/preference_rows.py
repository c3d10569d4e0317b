"""Rows of made-up pairs for the tests of preferences, and what their losses are by NumPy alone. No tests."""

from typing import Any

import numpy as np

GROUPS = 3


def rows(seed: int, count: int, length: int, vocabulary: int = 64) -> dict[str, np.ndarray]:
    """`count` rows [count, T] with one to three pairs and padding; the last row has none."""
    rng = np.random.default_rng(seed)
    names = ("tokens", "targets", "segments", "positions", "groups")
    found: dict[str, Any] = {name: np.zeros((count, length), np.int32) for name in names}
    found |= {name: np.zeros((count, length), np.float32) for name in ("weights", "reference")}
    found["groups"] = rng.integers(0, GROUPS, (count, length), dtype=np.int32)  # padding's is nobody's
    for row in range(count - 1):
        at = 0
        for pair in range(int(rng.integers(1, 4))):
            group, prompt = int(rng.integers(0, GROUPS)), rng.integers(1, vocabulary, int(rng.integers(1, 4)))
            sizes = [int(size) for size in rng.integers(1, 5, 2)]
            if at + 2 * len(prompt) + sum(sizes) > length:
                break
            for side, size in enumerate(sizes):
                n = len(prompt) + size
                tokens = np.concatenate([prompt, rng.integers(1, vocabulary, size)])
                here = slice(at, at + n - 1)
                found["tokens"][row, at : at + n] = tokens
                found["targets"][row, here], found["weights"][row, at + len(prompt) - 1 : at + n - 1] = tokens[1:], 1
                found["segments"][row, at : at + n] = 2 * pair + 1 + side
                found["positions"][row, at : at + n] = np.arange(n)
                found["groups"][row, at : at + n] = group
                found["reference"][row, at] = -rng.uniform(2, 20)
                at += n
    return found


def expected(logits: np.ndarray, found: dict[str, np.ndarray], preference: Any) -> dict[str, Any]:
    """The update's loss and, by group, pairs, rewards and how many are right: float64, pair by pair."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    log = np.take_along_axis(log, found["targets"][..., None].astype(np.int64), -1)[..., 0]
    losses, nats, by_group = [], [], np.zeros((4, GROUPS))
    for row in range(len(log)):
        for chosen in range(1, int(found["segments"][row].max()), 2):
            rewards = []
            for side in (chosen, chosen + 1):
                here = found["segments"][row] == side
                learnt = here & (found["weights"][row] > 0)
                rewards.append(preference.beta * (log[row][learnt].sum() - found["reference"][row][here].sum()))
                nats += (-log[row][learnt]).tolist() if side == chosen else []
            margin, wrong = rewards[0] - rewards[1], preference.label_smoothing
            losses.append((1 - wrong) * np.log1p(np.exp(-margin)) + wrong * np.log1p(np.exp(margin)))
            group = int(found["groups"][row][found["segments"][row] == chosen][0])
            by_group[:, group] += [1, *rewards, margin > 0]
    return {"loss": np.mean(losses) + preference.rpo_alpha * np.mean(nats), "by_group": by_group}
