"""Which of several texts for one request is told: the one most like the others, or the likeliest."""

from collections import Counter
from collections.abc import Sequence

LONGEST = 4
"""Words of the longest runs that texts are compared by."""
SEEDS_APART = 0x9E3779B97F4A7C15
"""Between the seeds of the texts of a request; odd, so that none comes twice."""


def seed_of(seed: int, sample: int) -> int:
    """Seed of one of the texts for a request; the first has the request's own."""
    return (seed + sample * SEEDS_APART) % 2**63


def least_risk(texts: Sequence[Sequence[int]]) -> int:
    """Which text has the least risk if the truth is one of them, each as probable as any other.

    ``argmax_i Σ_{j≠i} F(i, j)``,  F the mean over n = 1 … 4 of the harmonic mean of precision and recall of n-grams

    Args:
        texts: tokens of each, at least one text.

    Returns:
        Its place; of equals the first.

    Source: minimum Bayes risk decoding: Kumar and Byrne 2004; Eikema and Aziz, arXiv 2108.04718.
    """
    grams = [[_ngrams(text, n) for n in range(1, LONGEST + 1)] for text in texts]
    gains = [0.0] * len(texts)
    for i in range(len(texts)):
        for j in range(i):
            alike = _likeness(grams[i], grams[j])
            gains[i] += alike
            gains[j] += alike
    return max(range(len(texts)), key=lambda i: (round(gains[i], 9), -i))


def _ngrams(text: Sequence[int], n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))


def _likeness(one: Sequence[Counter[tuple[int, ...]]], other: Sequence[Counter[tuple[int, ...]]]) -> float:
    """F of two texts; runs that neither has, since both are too short, do not count, and two empty texts are alike."""
    scores = []
    for a, b in zip(one, other, strict=True):
        if total := a.total() + b.total():
            scores.append(2 * (a & b).total() / total)
    return sum(scores) / len(scores) if scores else 1.0
