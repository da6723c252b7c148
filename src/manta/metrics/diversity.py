"""How varied generated texts are, and whether they loop: figures that likelihood and overlap do not show.

A text is split into words at white space unless another `tokenize` is given: `words.words_of` gives the one that suits
a corpus, since where no space stands between words a text would count as one. Compare figures of one tokenizer only.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from statistics import fmean, median, pstdev

import torch

from manta.errors import DataError, UsageError
from manta.metrics.measured import LeftOut, Measured, Share, Sums

Tokenize = Callable[[str], Sequence[Hashable]]
"""Splits a text into its tokens: `str.split`, or the ids that a tokenizer gives."""


def diversity(texts: Sequence[str], tokenize: Tokenize = str.split, *, unit: str = "words") -> dict[str, float]:
    """The figures of this module for a set of texts.

    Args:
        texts: at least one.
        tokenize: splits a text; the "words" of all figures.
        unit: what its tokens are called in the names of lengths.

    Returns:
        `distinct` (`distinct_share`), `distinct_1` to `distinct_4` (`distinct_n`), `repeated_4` (`repeated_share`),
        `entropy` (`token_entropy`, nats), `mean_words`, `std_words`, `min_words`, `median_words` and `max_words`
        (`length_statistics`), and `empty`, the share of texts without a word.

    Raises:
        DataError: no texts.
    """
    lengths = length_statistics(texts, tokenize)
    return {
        "distinct": distinct_share(texts),
        **{f"distinct_{n}": distinct_n(texts, n, tokenize) for n in range(1, 5)},
        "repeated_4": repeated_share(texts, 4, tokenize),
        "entropy": token_entropy(texts, tokenize),
        **{f"{name}_{unit}": value for name, value in lengths.items() if name != "empty"},
        "empty": lengths["empty"],
    }


def diversity_measured(
    texts: Sequence[str], tokenize: Tokenize = str.split, *, unit: str = "words"
) -> dict[str, Measured]:
    """The figures of `diversity` with what their intervals over texts are computed from.

    Args:
        texts: at least one.
        tokenize: splits a text.
        unit: as for `diversity`.

    Returns:
        The same names; least, median and greatest length are bare numbers.

    Raises:
        DataError: no texts.
    """
    bare = diversity(texts, tokenize, unit=unit)
    words = _words(texts, tokenize)
    sizes = torch.tensor([len(each) for each in words], dtype=torch.float64)
    grams = [[_grams(each, n) for each in words] for n in range(1, 5)]
    repeats = torch.tensor([[len(each), len(each) - len(set(each))] for each in grams[3]], dtype=torch.float64)
    found: dict[str, Measured] = dict(bare)
    found["distinct"] = _left_out([[text.strip()] for text in texts])
    found |= {f"distinct_{n}": _left_out(each) for n, each in enumerate(grams, 1) if any(each)}
    if bool(repeats[:, 0].any()):
        found["repeated_4"] = Sums.ratio(repeats[:, 1], repeats[:, 0])
    found["entropy"] = Sums.mean(torch.tensor([_entropy(each) for each in words], dtype=torch.float64))
    found[f"mean_{unit}"] = Sums.mean(sizes)
    found[f"std_{unit}"] = Sums(torch.stack([sizes, sizes.square(), torch.ones_like(sizes)], -1), _deviation)
    found["empty"] = Share(sizes == 0)
    return found


def distinct_share(texts: Sequence[str]) -> float:
    """The number of different texts over the number of texts, in (0, 1]; white space at the ends does not count.

    Compare it with that of as many texts of the corpus: it falls with the number of texts where they are short.

    Raises:
        DataError: no texts.
    """
    _check(texts)
    return len({text.strip() for text in texts}) / len(texts)


def distinct_n(texts: Sequence[str], n: int, tokenize: Tokenize = str.split) -> float:
    """Different n-grams of words over all n-grams, of all texts together; 0 where no text has n words.

    Compare it with that of as many words of the corpus: it falls with the number of words.

    Source: Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models" (NAACL 2016).

    Args:
        texts: at least one.
        n: at least 1.
        tokenize: splits a text.

    Raises:
        DataError: no texts.
        UsageError: n below 1.
    """
    grams = [gram for words in _words(texts, tokenize) for gram in _grams(words, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repeated_share(texts: Sequence[str], n: int = 4, tokenize: Tokenize = str.split) -> float:
    """The share of n-grams of words that have occurred before in the same text, over all texts; 0 in sound prose.

        rep-n = 1 − Σ |different n-grams of a text| / Σ |n-grams of a text|

    A text that loops tends to 1. Not to be confused with `1 - distinct_n`, which compares texts with each other, nor
    with the mean of the texts' own shares, in which short texts weigh more.

    Source: seq-rep-n of Welleck et al., "Neural Text Generation with Unlikelihood Training" (ICLR 2020).

    Args:
        texts: at least one.
        n: at least 1.
        tokenize: splits a text.

    Raises:
        DataError: no texts.
        UsageError: n below 1.
    """
    total = repeated = 0
    for words in _words(texts, tokenize):
        grams = _grams(words, n)
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated / total if total else 0.0


def token_entropy(texts: Sequence[str], tokenize: Tokenize = str.split) -> float:
    """Entropy of the unigram distribution of a text, averaged over texts; what guards generative perplexity.

        H = mean over texts of −Σ_w (n_w / n) ln(n_w / n)

    where the text has n tokens, n_w of them w. A text of n tokens has at most ln n nats, so the figure grows with the
    length: compare it with that of texts of the corpus cut to the same length and split by the same tokenizer
    (published figures: the judge's tokens). A text without tokens counts as 0. Not to be confused with the entropy of
    all texts' tokens together, which stays high where every text repeats another word.

    Source: Dieleman et al., "Continuous diffusion for categorical data" (2022); Zheng et al., "Masked Diffusion Models
    are Secretly Time-Agnostic Masked Models" (ICLR 2025).

    Args:
        texts: at least one.
        tokenize: splits a text.

    Returns:
        Nats, 0 or more.

    Raises:
        DataError: no texts.
    """
    return fmean(_entropy(words) for words in _words(texts, tokenize))


def length_statistics(texts: Sequence[str], tokenize: Tokenize = str.split) -> dict[str, float]:
    """Words a text: `mean`, `std` (over the texts given, not of a larger population), `min`, `median`, `max`; `empty`.

    Args:
        texts: at least one.
        tokenize: splits a text.

    Returns:
        Words, and for `empty` the share of texts without a word.

    Raises:
        DataError: no texts.
    """
    lengths = [len(words) for words in _words(texts, tokenize)]
    return {
        "mean": fmean(lengths),
        "std": pstdev(lengths),
        "min": float(min(lengths)),
        "median": float(median(lengths)),
        "max": float(max(lengths)),
        "empty": lengths.count(0) / len(lengths),
    }


def _check(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise DataError("one text was given where a list of texts is needed; put it into a list")
    if not texts:
        raise DataError("diversity of no texts is not defined; give at least one")


def _words(texts: Sequence[str], tokenize: Tokenize) -> list[Sequence[Hashable]]:
    _check(texts)
    return [tokenize(text) for text in texts]


def _grams(words: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    if n < 1:
        raise UsageError(f"an n-gram has at least one word, received n = {n}")
    return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]


def _left_out(grams: Sequence[Sequence[Hashable]]) -> Measured:
    """Different over all, with what it is without each text: those that no other text has go with it."""
    holders = Counter(gram for each in grams for gram in set(each))
    total, different = sum(map(len, grams)), len(holders)
    without = [
        (different - sum(holders[gram] == 1 for gram in set(each))) / max(1, total - len(each)) for each in grams
    ]
    return LeftOut(different / total, torch.tensor(without, dtype=torch.float64))


def _deviation(sums: torch.Tensor) -> torch.Tensor:
    mean, square = sums[..., 0] / sums[..., 2], sums[..., 1] / sums[..., 2]
    return (square - mean.square()).clamp(min=0).sqrt()


def _entropy(words: Sequence[Hashable]) -> float:
    # `fsum` rounds once, so the order of the words cannot matter, and a text of one word repeated has 0 and not −1e-17.
    n = len(words)
    return math.fsum(count / n * math.log(n / count) for count in Counter(words).values())
