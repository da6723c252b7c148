"""Consensus targets: of several texts that answer one prompt, the one most like the others."""

import re
from collections.abc import Hashable, Mapping, Sequence
from itertools import islice, pairwise

import numpy as np
from jaxtyping import Float

MAX_TEXTS = 256
"""Texts of one prompt that are compared: the cost is their number squared."""
MAX_WORDS = 1024
"""Words of a text that are compared, from its first: one text may be a book, and memory grows with the words."""
_WORD = re.compile(r"\w+|[^\w\s]")


def similarity(candidates: Sequence[str], references: Sequence[str]) -> Float[np.ndarray, "c k"]:
    """The F1 of words between two lists of texts, the mean of unigrams and bigrams, without regard to case.

        F1(a, b) = 2 Σ_g min(count_a(g), count_b(g)) / (|a| + |b|)

    The first `MAX_WORDS` words of a text count. Two texts without any bigram (one word each) agree on bigrams as far as
    on unigrams.

    Args:
        candidates: c texts.
        references: k texts.

    Returns:
        Numbers in [0, 1]; 1 for equal texts.
    """
    words = [[m[0].lower() for m in islice(_WORD.finditer(text), MAX_WORDS)] for text in (*candidates, *references)]
    one = np.nan_to_num(_f1(words, len(candidates)), nan=1.0)
    two = _f1([list(pairwise(text)) for text in words], len(candidates))
    return (one + np.where(np.isnan(two), one, two)) / 2


def medoids(
    groups: Mapping[str, Sequence[str]], extra_candidates: Mapping[str, Sequence[str]] | None = None
) -> dict[str, str]:
    """For each prompt, the candidate with the greatest mean similarity to the references of that prompt.

        medoid = argmax_c  mean_{r ≠ c} F1(c, r)

    Candidates are the references, each compared with the others, and the extra ones, compared with all references.
    Where a prompt has fewer than two references, all its candidates are compared among themselves. The first wins a
    tie.

    Args:
        groups: references by prompt; the first `MAX_TEXTS` of a prompt count.
        extra_candidates: more candidates by prompt, such as samples of a teacher; the first `MAX_TEXTS` count.

    Returns:
        One text a prompt, for every prompt that has a text.

    Source: minimum Bayes risk decoding (Kumar and Byrne 2004) with references for samples.
    """
    extra_candidates = extra_candidates or {}
    chosen = {}
    for prompt in dict.fromkeys((*groups, *extra_candidates)):
        references = list(groups.get(prompt, ()))[:MAX_TEXTS]
        candidates = references + list(extra_candidates.get(prompt, ()))[:MAX_TEXTS]
        if len(references) < 2:
            references = candidates
        if len(candidates) > 1:
            scores = similarity(candidates, references)
            others = np.full(len(candidates), len(references))
            others[: len(references)] -= 1
            np.fill_diagonal(scores, 0)
            chosen[prompt] = candidates[int(np.argmax(scores.sum(1) / others))]
        elif candidates:
            chosen[prompt] = candidates[0]
    return chosen


def _f1(rows: Sequence[Sequence[Hashable]], first: int) -> Float[np.ndarray, "c k"]:
    """F1 of the bags `rows[:first]` with the bags `rows[first:]`; NaN where both are empty."""
    names = {name: column for column, name in enumerate({name: None for row in rows for name in row})}
    counts = np.zeros((len(rows), len(names)), dtype=np.float32)
    for row, bag in enumerate(rows):
        for name in bag:
            counts[row, names[name]] += 1
    overlap = np.zeros((first, len(rows) - first), dtype=np.float32)
    for threshold in range(1, int(counts.max(initial=0)) + 1):  # min(a, b) = Σ_t [a ≥ t][b ≥ t]
        at_least = (counts >= threshold).astype(np.float32)
        overlap += at_least[:first] @ at_least[first:].T
    sizes = counts.sum(1)
    with np.errstate(invalid="ignore"):
        return 2.0 * overlap / (sizes[:first, None] + sizes[None, first:])
