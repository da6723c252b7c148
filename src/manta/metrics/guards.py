"""Guards against collapse: what likelihood rewards and no corpus does, found by comparing texts with the corpus itself.

A guard counts the texts that show a fault and compares their share with that among held-out texts of the corpus. What
counts as a fault is set by the corpus too: the quantile of its own texts. So a corpus that repeats itself may be
repeated, and no threshold has to be chosen for a new corpus.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, linear_regression
from typing import Literal

import torch

from manta.errors import DataError, UsageError
from manta.metrics.bootstrap import wilson
from manta.metrics.copying import copying
from manta.metrics.diversity import Tokenize, repeated_share, token_entropy
from manta.metrics.extra import scipy_stats

Fault = Literal["repetition", "copying", "entropy_low", "entropy_high", "empty", "duplicates"]
"""What a guard finds: texts that repeat themselves; training texts or long stretches of them; texts of too few, or too
many, different tokens for their length; texts without a token; texts that equal an earlier one."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a guard speaks."""

    quantile: float = 0.99
    """A text is at fault beyond this quantile of the corpus (below the opposite one for low entropy), in (0.5, 1)."""
    tolerance: float = 0.02
    """Share of texts that may be at fault in excess of the corpus, 0 … 1."""
    level: float = 0.99
    """How sure a guard is: level of the corpus' Wilson interval and of the test against its end, in (0, 1)."""
    span: int = 13
    """Tokens in common with a training text from which a text counts as copied."""

    def __post_init__(self) -> None:
        if not 0.5 < self.quantile < 1 or not 0 <= self.tolerance <= 1 or not 0 < self.level < 1 or self.span < 1:
            raise UsageError(
                "guards need a quantile in (0.5, 1), a tolerance in [0, 1], a level in (0, 1) and a span of at least 1;"
                f" received {self.quantile}, {self.tolerance}, {self.level} and {self.span}"
            )


@dataclass(frozen=True)
class Bars:
    """What a single text may not exceed, from the quantiles of the corpus."""

    repetition: float
    """Most repeated 4-grams, 0 … 1."""
    offset: float
    """Entropy of the corpus' texts of n tokens is about offset + slope · ln n, nats."""
    slope: float
    """See `offset`; 0 where all texts have one length."""
    below: float
    """Least entropy, nats beyond that of the corpus' texts of the same length; negative."""
    above: float
    """Most entropy, likewise; positive."""


@dataclass(frozen=True)
class CorpusFigures:
    """The corpus' own figures, with which texts are compared; made by `corpus_figures`."""

    bars: Bars
    """What a single text may not exceed."""
    faults: Mapping[Fault, tuple[int, int]]
    """Held-out texts at fault, and all of which it could be said; no `copying` without training texts."""
    group_sizes: Mapping[int, int]
    """How many different texts occur once, twice, …: size of a group of equal texts → number of groups."""
    config: GuardConfig
    """When a guard speaks."""
    tokenize: Tokenize = field(repr=False, compare=False)
    """Splits a text; the same for corpus and generated texts."""


@dataclass(frozen=True)
class Finding:
    """A fault that more texts show than the corpus explains."""

    fault: Fault
    """Which."""
    share: float
    """Share of the texts at fault, 0 … 1."""
    limit: float
    """Share that the corpus explains: its upper limit plus the tolerance."""
    message: str
    """One line that says so."""

    def __str__(self) -> str:
        return self.message


def corpus_figures(
    texts: Sequence[str],
    *,
    training: Iterable[str] | None,
    tokenize: Tokenize = str.split,
    config: GuardConfig | None = None,
) -> CorpusFigures:
    """The figures of a corpus that the guards compare generated texts with.

    Args:
        texts: held-out texts of the corpus, at least one, a few hundred to be of use; cut as the generated texts are,
            and where there are prompts, written to the same ones.
        training: the training texts, read once; None for no guard against copying.
        tokenize: splits a text into the tokens of all guards.
        config: None for the defaults.

    Returns:
        The bars of a fault, and how many of the held-out texts are at fault themselves.

    Raises:
        DataError: no texts with a word, or no training texts.
    """
    config = config or GuardConfig()
    spoken = [text for text in texts if tokenize(text)]
    if not spoken:
        raise DataError(f"guards need held-out texts of the corpus; of {len(texts)} given none has a word")
    bars = _bars(spoken, tokenize, config.quantile)
    return CorpusFigures(
        bars, _faults(texts, bars, training, tokenize, config.span), _group_sizes(spoken), config, tokenize
    )


def find_collapse(texts: Sequence[str], corpus: CorpusFigures, *, training: Iterable[str] | None) -> list[Finding]:
    """The faults of generated texts that their corpus does not explain; an empty list for sound texts.

    A fault is found if so many texts at fault would hardly come of as many as the corpus may have and some more:

        P(Binomial(texts, limit) ≥ texts at fault) ≤ 1 − level,    limit = high(share of held-out texts) + tolerance

    with the upper Wilson limit. A text is at fault for its entropy if it lies outside the corpus' quantiles around
    offset + slope · ln(tokens), the corpus' entropy at its length, and never for too little if all its tokens differ.
    For duplicates the larger of the two sets is thinned to the size of the smaller, in expectation over all ways:

        E[different texts among m of N] = Σ_groups 1 − binom(N − size, m) / binom(N, m)

    A text is found at every fault that it has: one that loops both repeats itself and has too few different tokens.
    Nothing is said of lengths; compare `length_statistics`.

    Args:
        texts: generated texts, at least one.
        corpus: from `corpus_figures`.
        training: the training texts again, read once; None if and only if `corpus` was made without.

    Returns:
        Findings, at most one a fault, in the order of `Fault`.

    Raises:
        DataError: no texts, no training texts, or scipy is not installed.
        UsageError: training texts given here and not to `corpus_figures`, or the other way round.

    Source: Hurlbert, "The Nonconcept of Species Diversity" (1971), for the expected number of different texts.
    """
    if isinstance(texts, str) or not texts:
        raise DataError("guards need a list of generated texts; give at least one")
    if (training is None) == ("copying" in corpus.faults):
        raise UsageError("give the training texts to corpus_figures and to find_collapse, or to neither")
    observed = _faults(texts, corpus.bars, training, corpus.tokenize, corpus.config.span)
    expected = dict(corpus.faults)
    ours = _group_sizes([text for text in texts if corpus.tokenize(text)])
    size = min(_total(ours), _total(corpus.group_sizes))
    if size:
        observed["duplicates"] = _duplicates(ours, size), size
        expected["duplicates"] = _duplicates(corpus.group_sizes, size), size
    config = corpus.config
    findings = []
    for fault, (hits, of) in observed.items():
        if not of:
            continue
        normal = wilson(*expected[fault], level=config.level)
        limit = normal.high + config.tolerance
        if _tail(hits, of, limit) <= 1 - config.level:
            message = f"{_describe(fault, corpus)}: {hits / of:.1%} of {of} texts, {normal.value:.1%} in the corpus"
            findings.append(Finding(fault, hits / of, limit, message))
    return findings


def _describe(fault: Fault, corpus: CorpusFigures) -> str:
    bars = corpus.bars
    return {
        "repetition": f"texts that repeat themselves (more than {bars.repetition:.1%} of their 4-grams)",
        "copying": f"texts copied from the training texts (whole, or {corpus.config.span} tokens in a row)",
        "entropy_low": f"texts of too few different tokens ({-bars.below:.2f} nats below others of their length)",
        "entropy_high": f"texts of too many different tokens ({bars.above:.2f} nats above others of their length)",
        "empty": "texts without a token",
        "duplicates": "texts that equal an earlier one",
    }[fault]


def _bars(texts: Sequence[str], tokenize: Tokenize, quantile: float) -> Bars:
    tails = torch.tensor([1 - quantile, quantile], dtype=torch.float64)
    repeats = torch.tensor([repeated_share([text], 4, tokenize) for text in texts], dtype=torch.float64)
    entropies = [token_entropy([text], tokenize) for text in texts]
    sizes = [math.log(len(tokenize(text))) for text in texts]
    slope, offset = linear_regression(sizes, entropies) if len(set(sizes)) > 1 else (0.0, fmean(entropies))
    residuals = [entropy - offset - slope * size for entropy, size in zip(entropies, sizes, strict=True)]
    below, above = torch.tensor(residuals, dtype=torch.float64).quantile(tails).tolist()
    # Rounding alone should put no text beyond the bar.
    return Bars(float(repeats.quantile(quantile)), offset, slope, below - 1e-9, above + 1e-9)


def _faults(
    texts: Sequence[str], bars: Bars, training: Iterable[str] | None, tokenize: Tokenize, span: int
) -> dict[Fault, tuple[int, int]]:
    """Texts at fault, and texts of which it can be said: texts without a token are at no other fault than that."""
    spoken = [text for text in texts if tokenize(text)]
    of, repeating, low, high = len(spoken), 0, 0, 0
    for text in spoken:
        entropy, most = token_entropy([text], tokenize), math.log(len(tokenize(text)))
        usual = bars.offset + bars.slope * most
        repeating += repeated_share([text], 4, tokenize) > bars.repetition
        low += entropy < min(usual + bars.below, most - 1e-9)
        high += entropy > usual + bars.above
    found: dict[Fault, tuple[int, int]] = {"repetition": (repeating, of)}
    if training is not None:
        found["copying"] = sum(copying(spoken, training, span=span, tokenize=tokenize).copied) if spoken else 0, of
    found["entropy_low"] = low, of
    found["entropy_high"] = high, of
    found["empty"] = len(texts) - of, len(texts)
    return found


def _tail(hits: int, trials: int, share: float) -> float:
    """P(Binomial(trials, share) ≥ hits)."""
    return float(scipy_stats("a guard").binom.sf(hits - 1, trials, min(1.0, share)))


def _group_sizes(texts: Sequence[str]) -> dict[int, int]:
    return dict(Counter(Counter(" ".join(text.split()) for text in texts).values()))


def _total(sizes: Mapping[int, int]) -> int:
    return sum(size * groups for size, groups in sizes.items())


def _duplicates(sizes: Mapping[int, int], count: int) -> int:
    """Texts that equal an earlier one, expected among `count` drawn without replacement; rounded."""
    missed = scipy_stats("a guard").hypergeom.pmf(0, _total(sizes), list(sizes), count) @ list(sizes.values())
    return round(count - (sum(sizes.values()) - float(missed)))
