"""How sure a figure is: bootstrap and jackknife, Wilson's interval of a share, rank correlation with its chance level.

`manta.metrics.measured` applies them to figures of several runs.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from manta.errors import DataError, UsageError
from manta.metrics.extra import scipy_stats

_CHUNK = 2**20
"""Most numbers drawn at once."""


@dataclass(frozen=True)
class Interval:
    """A figure and the limits between which it is known, in the unit of the figure."""

    value: float
    """The estimate."""
    low: float
    """Lower limit."""
    high: float
    """Upper limit."""
    level: float
    """Share of experiments whose limits hold the true value, in (0, 1)."""

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Correlation:
    """A rank correlation and how easily chance reaches it."""

    rho: float
    """Spearman's ρ in [−1, 1]."""
    p_value: float
    """Chance of a |ρ| at least this large between unrelated variables, in (0, 1]."""


def bootstrap_mean(
    values: Float[Tensor, "n"], *, generator: torch.Generator, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """Percentile interval of a mean: the middle `level` of the means of n values drawn with replacement.

    Where n is small (about 20) it is somewhat too narrow. Not to be confused with the spread of the values.

    Args:
        values: at least two independent values, such as one a text or one a seed; never several of one text.
        generator: draws the resamples.
        resamples: how many, at least 100; each end is then known to about a tenth of the interval or better.
        level: in (0, 1).

    Returns:
        The mean with its interval.

    Raises:
        DataError: fewer than two values, one that is not finite, or scipy is not installed.
        UsageError: too few resamples, or a level out of range.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.
    """
    return bootstrap_ratio(values, torch.ones_like(values), generator=generator, resamples=resamples, level=level)


def bootstrap_difference(
    first: Float[Tensor, "n"],
    second: Float[Tensor, "n"],
    *,
    generator: torch.Generator,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a paired difference, mean(first − second): what pairs have in common cancels.

    Two systems differ at this level if the interval leaves out 0. Not to be confused with a comparison of two
    intervals, which overlap long before the systems are equal.

    Args:
        first: a value for each item, such as a score of one system on each prompt.
        second: a value for the same items in the same order.
        generator: draws the resamples.
        resamples: at least 100.
        level: in (0, 1).

    Returns:
        The mean difference with its interval.

    Raises:
        DataError: the counts differ, fewer than two pairs, a value that is not finite, or scipy is not installed.
        UsageError: too few resamples, or a level out of range.

    Source: as `bootstrap_mean`; Koehn, "Statistical Significance Tests for Machine Translation Evaluation" (2004).
    """
    _same_length(first, second)
    return bootstrap_mean(first.double() - second.double(), generator=generator, resamples=resamples, level=level)


def bootstrap_ratio(
    numerators: Float[Tensor, "n"],
    denominators: Float[Tensor, "n"],
    *,
    generator: torch.Generator,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of Σ numerators / Σ denominators, such as nats over tokens, items resampled whole.

    Not to be confused with the mean of the ratios, in which short texts weigh as much as long ones.

    Args:
        numerators: a value for each item.
        denominators: a positive value for each item.
        generator: draws the resamples.
        resamples: at least 100.
        level: in (0, 1).

    Returns:
        The ratio with its interval.

    Raises:
        DataError: the counts differ, fewer than two items, a value that is not finite, a denominator not above 0, or
            scipy is not installed.
        UsageError: too few resamples, or a level out of range.

    Source: as `bootstrap_mean`.
    """
    _same_length(numerators, denominators)
    pairs = torch.stack([numerators, denominators], -1).double()
    n = len(pairs)
    if n < 2:
        raise DataError(f"an interval needs at least two independent values, received {n}")
    if not bool(pairs.isfinite().all()) or bool((pairs[:, 1] <= 0).any()):
        raise DataError("a bootstrap needs finite values, and positive ones to divide by")
    if resamples < 100:
        raise UsageError(f"give at least 100 resamples, received {resamples}")
    _check_level(level)
    drawn = scipy_stats("a bootstrap").bootstrap(
        tuple(pairs.T.numpy(force=True)),
        lambda above, below, axis: above.sum(axis) / below.sum(axis),
        paired=True,
        method="percentile",
        confidence_level=level,
        n_resamples=resamples,
        batch=max(1, _CHUNK // n),
        rng=_numpy_generator(generator),
    )
    low, high = map(float, drawn.confidence_interval)
    value, over = pairs.sum(0).tolist()
    return Interval(value / over, low, high, level)


def jackknife(value: float, without: Float[Tensor, "n"], *, variance: float = 0.0, level: float = 0.95) -> Interval:
    """Normal interval of a figure from its values without each item in turn.

        SE² = (n − 1)/n · Σᵢ (θ₋ᵢ − mean θ₋)² + variance,    θ ± z SE

    It serves figures that a bootstrap biases, since a resample holds items twice: numbers of different words, MAUVE.
    Not for quantiles.

    Args:
        value: θ of all n items.
        without: θ of all items but each one, at least two.
        variance: of what else is drawn at random.
        level: in (0, 1); z is the normal quantile of (1 + level)/2.

    Returns:
        The figure with its interval.

    Raises:
        DataError: fewer than two items, or a value that is not finite.
        UsageError: a level out of range.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 11.
    """
    n = len(without)
    if n < 2 or not bool(without.isfinite().all()):
        raise DataError(f"the jackknife needs at least two items and finite values, received {n}")
    _check_level(level)
    values = without.double()
    spread = float((values - values.mean()).square().sum()) * (n - 1) / n
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(spread + variance)
    return Interval(value, value - half, value + half, level)


def wilson(successes: int | float, trials: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share: all p that do not differ from s/n by more than z of their own errors.

        (s/n − p)² = z² p (1 − p) / n    ⇔    p = (s + z²/2 ± z √(s (n − s)/n + z²/4)) / (n + z²)

    It stays within [0, 1] and has a width at 0 of n and at n of n, where the bootstrap's is 0. SciPy's `binomtest` has
    it for whole successes only.

    Args:
        successes: s, 0 … n; a fraction where a trial is a mean of several, and the interval then rather too wide.
        trials: n, at least 1, independent.
        level: in (0, 1); z is the normal quantile of (1 + level)/2.

    Returns:
        The share s/n with its interval.

    Raises:
        DataError: no trials, or successes out of range.
        UsageError: a level out of range.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927); Brown, Cai and
    DasGupta, "Interval Estimation for a Binomial Proportion" (2001).
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise DataError(f"a share needs trials and no more successes than trials, received {successes} of {trials}")
    _check_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    half = z * math.sqrt(successes * (trials - successes) / trials + z * z / 4)
    # At the ends the closed form is 0 or 1, but for rounding.
    low = (successes + z * z / 2 - half) / (trials + z * z) if successes else 0.0
    high = (successes + z * z / 2 + half) / (trials + z * z) if successes < trials else 1.0
    return Interval(successes / trials, low, high, level)


def spearman(
    first: Float[Tensor, "n"], second: Float[Tensor, "n"], *, generator: torch.Generator, permutations: int = 9_999
) -> Correlation:
    """Spearman's rank correlation with a two-sided permutation test.

        ρ = corr(rank(first), rank(second)),   p = (1 + #{|ρ of a shuffled second| ≥ |ρ|}) / (1 + permutations)

    Equal values share the mean of their ranks. If there are no more than `permutations` orders of n items, all of them
    are tried and p is exact. Not to be confused with Pearson's correlation, which asks for a straight line.

    Args:
        first: a value for each of n items, at least 3.
        second: another value for each.
        generator: draws the shuffles.
        permutations: at least 99; the smallest p is 1/(1 + permutations).

    Returns:
        ρ and p.

    Raises:
        DataError: the counts differ, fewer than 3 items, a value that is not a number, all values equal, or scipy is
            not installed.
        UsageError: too few permutations.

    Source: Spearman (1904); Phipson and Smyth, "Permutation P-values Should Never Be Zero" (2010).
    """
    _same_length(first, second)
    n = len(first)
    if n < 3:
        raise DataError(f"a rank correlation needs at least 3 items, received {n}")
    if permutations < 99:
        raise UsageError(f"give at least 99 permutations, received {permutations}")
    if bool(first.isnan().any()) or bool(second.isnan().any()):
        raise DataError("a rank correlation needs numbers, received a value that is not one")
    if bool((first == first[0]).all()) or bool((second == second[0]).all()):
        raise DataError("a rank correlation is not defined where all values are equal")
    stats = scipy_stats("a rank correlation")
    # Less their mean, ranks are multiples of 1/2, so equal correlations compare as equal in any order of summation.
    x, y = (stats.rankdata(values.numpy(force=True)) - (n + 1) / 2 for values in (first, second))
    reached = stats.permutation_test(
        (y,),
        lambda shuffled, axis: abs(shuffled @ x),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=permutations,
        batch=max(1, _CHUNK // n),
        rng=_numpy_generator(generator),
    )
    return Correlation(float(stats.pearsonr(x, y).statistic), float(reached.pvalue))


def _numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """A generator as SciPy takes them, seeded by one of PyTorch."""
    return np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))


def _same_length(first: Tensor, second: Tensor) -> None:
    if len(first) != len(second):
        raise DataError(f"pairs need as many values on either side, received {len(first)} and {len(second)}")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UsageError(f"the level of an interval lies between 0 and 1, received {level}")
