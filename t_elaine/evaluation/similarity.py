"""How alike two texts are, by their words: BLEU and ROUGE as two widely used packages compute them. No words are made.

MMedBench's figures come from these: NLTK's sentence BLEU (Papineni et al. 2002, with the first smoothing of Chen and
Cherry 2014), and the package rouge 1.0.1 (after Lin 2004), which compares SETS of words, with sentences cut at full
stops.
"""

import math
from collections import Counter
from collections.abc import Sequence

# What a count of no match becomes in the first smoothing.
EPSILON = 0.1


def bleu(hypothesis: Sequence[str], reference: Sequence[str], order: int) -> float:
    """Sentence BLEU with equal weights of the n-grams up to an order; 0 without a common word.

    Args:
        hypothesis, reference: words.
        order: 1 for BLEU-1.
    """
    precisions = []
    for n in range(1, order + 1):
        ours, theirs = Counter(_grams(hypothesis, n)), Counter(_grams(reference, n))
        matches = sum((ours & theirs).values())
        if n == 1 and not matches:
            return 0.0
        precisions.append((matches or EPSILON) / max(1, ours.total()))
    brevity = min(1.0, math.exp(1 - len(reference) / len(hypothesis)))
    return brevity * math.exp(math.fsum(math.log(value) for value in precisions) / order)


def rouge(hypothesis: str, reference: str, order: int) -> float:
    """F1 of the sets of n-grams; texts have blanks between words. An empty text gives 0."""
    ours, theirs = (set(_grams(_flat(_sentences(text)), order)) for text in (hypothesis, reference))
    return _f1(len(ours & theirs), len(ours), len(theirs))


def rouge_l(hypothesis: str, reference: str) -> float:
    """F1 of longest common subsequences: the set of words that stand in one of them, over the sets of all words.

    Each sentence of the reference is set beside each of the hypothesis.
    """
    ours, theirs = _sentences(hypothesis), _sentences(reference)
    common = {word for one in theirs for other in ours for word in _common(one, other)}
    return _f1(len(common), len(set(_flat(ours))), len(set(_flat(theirs))))


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _sentences(text: str) -> list[list[str]]:
    """Words by sentence. A blank after the last full stop makes a sentence of one empty word, as in the package."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _flat(sentences: Sequence[Sequence[str]]) -> list[str]:
    return [word for sentence in sentences for word in sentence]


def _f1(common: int, ours: int, theirs: int) -> float:
    """The package adds 1e-8 below; its figures are off by less than that."""
    return 2 * common / (ours + theirs) if common else 0.0


def _common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """A longest common subsequence; of several the one that drops the last words of `other` first."""
    lengths = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, word in enumerate(one, 1):
        above, row = lengths[i - 1], lengths[i]
        for j, another in enumerate(other, 1):
            row[j] = above[j - 1] + 1 if word == another else max(above[j], row[j - 1])
    found, i, j = [], len(one), len(other)
    while i and j:
        if one[i - 1] == other[j - 1]:
            found.append(one[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found
