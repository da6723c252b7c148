"""What MAUVE compares: a vector a text, from the words themselves or from a judge's hidden states."""

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from manta.errors import UsageError
from manta.metrics.words import normal, split_words

WIDTH: Final = 512
"""Features of a text."""


def hashed_ngrams(texts: Sequence[str], *, most: int = 2, width: int = WIDTH) -> Float[Tensor, "n d"]:
    """Counts of hashed n-grams of words, a signed feature each, their square roots taken.

        φ_j(text) = Σ_grams with h(gram) = j  s(gram) √count(gram)

    with a hash h and a sign s that are the same on every machine. No encoder is needed, so that the features of a small
    domain do not depend on what some model was trained on; words they have never seen together count as different,
    however near their meaning. Case is ignored, and characters count where no space stands between words.

    Args:
        texts: n texts.
        most: n-grams of 1 … `most` words.
        width: d, at least 2.

    Raises:
        UsageError: `most` below 1 or `width` below 2.

    Source: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning" (ICML 2009).
    """
    if most < 1 or width < 2:
        raise UsageError(f"hashed n-grams need most ≥ 1 and width ≥ 2, received {most} and {width}")
    found = torch.zeros(len(texts), width)
    for row, text in enumerate(texts):
        words = split_words(normal(text).lower())
        grams = Counter(tuple(words[at : at + n]) for n in range(1, most + 1) for at in range(len(words) - n + 1))
        for gram, count in grams.items():
            code = int.from_bytes(blake2b(" ".join(gram).encode("utf-8", "surrogatepass"), digest_size=8).digest())
            found[row, code // 2 % width] += (1 if code % 2 else -1) * count**0.5
    return found
