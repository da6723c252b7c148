"""Coarse classes of words, learnt from texts: words whose neighbours are alike."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

CONTEXTS = 256
"""Neighbours that a word is told by: the most frequent ones."""
ROUNDS = 30
"""Rounds of k-means."""


def word_classes(
    rows: Iterable[Sequence[int]], vocab_size: int, num_classes: int, *, alone: Sequence[int], seed: int = 0
) -> Int64[Tensor, "{vocab_size}"]:
    """A class for every word.

        c_w = how often each frequent word stands just before w, and just after
        x_w = √(c_w / Σ c_w)                     Hellinger: distances of distributions
        k-means of x, words weighed by √frequency

    A word that the texts do not have is all zeros, and in the class whose mean is nearest to that. k-means is a dozen
    lines here, as no library that does it is needed for anything else at training.

    Args:
        rows: texts as tokens.
        vocab_size: words.
        num_classes: k, at least 2 more than `alone` has.
        alone: words with a class of their own, the first ones.
        seed: of the first centres.
    """
    counts = torch.zeros(vocab_size)
    pairs: list[Tensor] = []
    for row in rows:
        tokens = torch.as_tensor(row, dtype=torch.long)
        counts += torch.bincount(tokens, minlength=vocab_size)
        pairs.append(torch.stack([tokens[:-1], tokens[1:]]))
    frequent = counts.argsort(descending=True, stable=True)[:CONTEXTS]
    place = torch.full((vocab_size,), -1).scatter(0, frequent, torch.arange(len(frequent)))
    left, right = torch.cat(pairs, 1) if pairs else torch.zeros(2, 0, dtype=torch.long)
    beside = torch.zeros(vocab_size, 2 * CONTEXTS)
    for word, neighbour, shift in ((right, left, 0), (left, right, CONTEXTS)):
        told = place[neighbour] >= 0
        index = word[told] * 2 * CONTEXTS + place[neighbour[told]] + shift
        beside += torch.bincount(index, minlength=beside.numel()).view_as(beside)
    features = (beside / beside.sum(1, keepdim=True).clamp_min(1)).sqrt()
    free = torch.ones(vocab_size, dtype=torch.bool)
    free[torch.tensor(list(alone), dtype=torch.long)] = False
    found = torch.zeros(vocab_size, dtype=torch.long)
    found[~free] = torch.arange(len(alone))
    weights = counts.sqrt()[free]
    found[free] = len(alone) + clusters(features[free], weights, num_classes - len(alone), seed)
    return found


def clusters(points: Float[Tensor, "m f"], weights: Float[Tensor, "m"], k: int, seed: int) -> Int64[Tensor, "m"]:
    """Weighted k-means (Lloyd), whose first centres are drawn apart from each other (k-means++).

    Args:
        points: to be clustered.
        weights: of the points, at least 0.
        k: clusters, at least 1.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.multinomial(weights + 1e-9, 1, generator=generator)]
    nearest = torch.full((len(points),), torch.inf)
    while len(chosen) < k:
        nearest = torch.minimum(nearest, torch.cdist(points, points[chosen[-1]])[:, 0])
        chosen.append(torch.multinomial(nearest.square() * weights + 1e-9, 1, generator=generator))
    centres = points[torch.cat(chosen)]
    found = torch.cdist(points, centres).argmin(1)
    for _ in range(ROUNDS):
        total = torch.zeros(k).index_add(0, found, weights)
        sums = torch.zeros_like(centres).index_add(0, found, points * weights[:, None])
        centres = torch.where(total[:, None] > 0, sums / total.clamp_min(1e-9)[:, None], centres)
        found = torch.cdist(points, centres).argmin(1)
    return found
