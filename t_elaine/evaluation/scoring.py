"""From numbers per question or document to a result with its uncertainty. Pure numpy; no model, no files.

Intervals are percentile bootstraps (Efron 1979) over questions or documents, 95 %, seeded. A difference between two
models is paired: both are resampled with the same draws.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, isfinite, nan

import numpy as np

LEVEL = 0.95
# Documents are dealt into at most this many blocks, and blocks are resampled: the cost stays bounded.
MAX_BLOCKS = 2000
# Fewer units than this say nothing about their spread: no interval is given.
MIN_UNITS = 5


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its 95 % interval; ends that are not known are NaN here and null in files."""

    value: float
    low: float
    high: float

    def to_dict(self, digits: int = 6) -> dict[str, float | None]:
        found = {name: float(getattr(self, name)) for name in ("value", "low", "high")}
        return {name: round(value, digits) if isfinite(value) else None for name, value in found.items()}


def weights(n: int, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap draws: float64 [resamples, n], how often each of n units is drawn."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return drawn.astype(np.float64)


def ratio(numerator: np.ndarray, denominator: np.ndarray, resamples: int = 2000, seed: int = 0) -> Interval:
    """sum(numerator) / sum(denominator) over units, arrays [n]. A mean is the ratio to ones."""
    return difference(numerator, np.zeros_like(np.asarray(numerator, np.float64)), denominator, resamples, seed)


def difference(
    child: np.ndarray, parent: np.ndarray, denominator: np.ndarray, resamples: int = 2000, seed: int = 0
) -> Interval:
    """(sum(child) - sum(parent)) / sum(denominator) over the same units, arrays [n]: the paired difference."""
    gap, below = _blocks(np.asarray(child, np.float64) - np.asarray(parent, np.float64)), _blocks(denominator)
    if len(gap) < MIN_UNITS:
        return Interval(value=float(gap.sum() / below.sum()), low=nan, high=nan)
    drawn = weights(len(gap), resamples, seed)
    sums = drawn @ below
    values = np.divide(drawn @ gap, sums, out=np.full(len(sums), np.nan), where=sums > 0)
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=float(gap.sum() / below.sum()), low=float(low), high=float(high))


def _blocks(units: np.ndarray) -> np.ndarray:
    """Sums over blocks of units, dealt in turn; the units themselves where there are few."""
    units = np.asarray(units, np.float64)
    return units if len(units) <= MAX_BLOCKS else np.bincount(np.arange(len(units)) % MAX_BLOCKS, units)


def choose(scores: Sequence[float], count: int) -> tuple[int, ...]:
    """Indices of the `count` highest scores, ascending; of equal ones the first."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return tuple(sorted(order[:count]))


def chance(options: Sequence[int], golds: Sequence[tuple[int, ...]]) -> float:
    """Expected accuracy of drawing as many different options as are right, all sets alike likely."""
    return float(np.mean([1 / comb(n, len(gold)) for n, gold in zip(options, golds, strict=True)]))


def majority(golds: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], float]:
    """The most frequent right answer and the accuracy of always giving it; of equal ones the first letters."""
    counts = Counter(golds)
    best = min(counts, key=lambda gold: (-counts[gold], gold))
    return best, counts[best] / len(golds)


def option_scores(log_likelihoods: Mapping[str, Sequence[float]], lengths: Sequence[int]) -> dict[str, list[float]]:
    """The three scores of a question's options, higher is better.

    Args:
        log_likelihoods: nats of each option by way of asking, "text" and "letter".
        lengths: UTF-8 bytes of each option's text.

    Returns:
        text (summed), text_per_byte (summed / bytes, so that long options are not punished), letter.
    """
    text = [float(value) for value in log_likelihoods["text"]]
    return {
        "text_per_byte": [value / max(1, n) for value, n in zip(text, lengths, strict=True)],
        "text": text,
        "letter": [float(value) for value in log_likelihoods["letter"]],
    }
