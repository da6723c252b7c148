"""One figure for how well a model writes and how many words it writes a call."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

WEIGHT: Final = 3.0
"""How fast a worse text loses its worth: at nine tenths of the best quality it keeps exp(−0.3) = 74%."""
ALLOWED_LOSS: Final = 5.0
"""Percent below the quality at the fewest words a call from which a setting does not count."""


def accuracy_under_parallelism(words_per_call: Sequence[float], quality: Sequence[float], best: float) -> float:
    """Area under a model's quality over its words a call, in which quality below the best counts less.

    ``AUP = ρ₁ y₁ + Σ_{i≥2} (ρ_i − ρ_{i−1}) (w(y_i) y_i + w(y_{i−1}) y_{i−1}) / 2``
    ``w(y) = min(exp(−3 (1 − y / best)), 1)``

    over its settings in the order of ρ, without those whose quality lies more than 5 below that of the first. At one
    word a call it is the quality itself. The source counts tokens where words are counted here, as tokenizers differ.

    Args:
        words_per_call: ρ of each setting, above 0.
        quality: y of each, in percent.
        best: the highest quality of all models that are compared, above 0.

    Source: d3LLM, arXiv 2601.07568.
    """
    points = sorted(zip(words_per_call, quality, strict=True))
    least = points[0][1] - ALLOWED_LOSS
    kept = [(rho, y, y * min(math.exp(-WEIGHT * (1 - y / best)), 1.0)) for rho, y in points if y >= least]
    area = kept[0][0] * kept[0][1]
    for (before, _, left), (rho, _, right) in pairwise(kept):
        area += (rho - before) * (left + right) / 2
    return area
