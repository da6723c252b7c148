"""Figures with what their intervals are computed from: per item, so that items can be resampled without measuring anew.

An item is what is independent of the others: a prompt with all its texts. A corpus score such as BLEU is a function of
counts summed over the items, so a resample of the items costs one product of matrices.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from manta.errors import DataError, UsageError
from manta.metrics.bootstrap import Interval, jackknife, wilson

FEWEST = 10
"""Items below which there is no interval: of fewer the bootstrap's are much too narrow."""
NO_WIDTH = 1e-9
"""An interval so narrow, of its figure, is rounding: there is none."""
RESAMPLES = 2000
"""Resamples of a bootstrap, which tell the ends to about a twentieth of the interval."""


@dataclass(frozen=True)
class Sums:
    """A figure that is a function of sums over items: a mean, a ratio, a corpus score of counts."""

    rows: Float[Tensor, "n k"]
    """What each item adds; zeros where there is nothing to say of it."""
    figure: Callable[[Float[Tensor, "... k"]], Float[Tensor, "..."]]
    """The figure of such sums, for any number of them at once."""

    @property
    def value(self) -> float:
        """Of all items."""
        return float(self.figure(self.rows.double().sum(0)))

    @staticmethod
    def mean(values: Float[Tensor, "n"]) -> "Sums":
        """The mean of a value an item; items whose value is nan do not count."""
        return Sums.ratio(values.nan_to_num(0.0), ~values.isnan())

    @staticmethod
    def ratio(numerators: Tensor, denominators: Tensor) -> "Sums":
        """Σ numerators / Σ denominators."""
        return Sums(torch.stack([numerators.double(), denominators.double()], -1), _ratio)


@dataclass(frozen=True)
class LeftOut:
    """A figure in [0, 1] that is no function of sums, such as the share of different words; for the jackknife."""

    value: float
    """Of all items."""
    without: Float[Tensor, "n"]
    """Of all items but each one in turn."""
    variance: float = 0.0
    """What measuring the same items again would add, such as another clustering."""


@dataclass(frozen=True)
class Share:
    """The share of items that are so and not otherwise."""

    values: Bool[Tensor, "n"]
    """Whether each item is so."""

    @property
    def value(self) -> float:
        """Of all items."""
        return float(self.values.double().mean())


Measured = Sums | LeftOut | Share | float | int
"""A figure with what its interval is computed from; a bare number has none."""


def value_of(measured: Measured) -> float:
    """The figure itself."""
    return float(measured) if isinstance(measured, int | float) else measured.value


def resampled(items: int, *, generator: torch.Generator, resamples: int = RESAMPLES) -> Float[Tensor, "r n"]:
    """How often each item is in each of many draws of as many items with replacement.

    Every figure of the items is resampled by these same draws, where `scipy.stats.bootstrap` draws anew for each.

    Args:
        items: n, at least 1.
        generator: draws.
        resamples: r, at least 100.

    Raises:
        UsageError: fewer than 100 resamples, or no items.
    """
    if items < 1 or resamples < 100:
        raise UsageError(f"a bootstrap needs items and at least 100 resamples, received {items} and {resamples}")
    times = torch.zeros(resamples, items, dtype=torch.float64)
    for row in times:
        row += torch.bincount(torch.randint(items, (items,), generator=generator), minlength=items)
    return times


def interval_of(runs: Sequence[Measured], times: Float[Tensor, "r n"], *, level: float = 0.95) -> Interval | None:
    """How well the items, such as prompts, tell the mean of a figure over runs, such as sampling seeds.

    `Sums`: the middle `level` of the figures of the resamples (percentile bootstrap), whose items are the same in every
    run. `LeftOut`: the jackknife. `Share`: Wilson's limits, so that 0 of n has a width. The runs are taken as they are:
    what others would give shows in their own spread, and what another training would give in neither.

    Args:
        runs: one figure of the same items, once a run.
        times: from `resampled`.
        level: in (0, 1).

    Returns:
        The mean over runs with its interval. None for a bare number, for fewer than `FEWEST` items, and where the
        interval would have no width, which would claim what is not known.

    Raises:
        DataError: a run is of another number of items.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3 and chapter 11; Koehn,
    "Statistical Significance Tests for Machine Translation Evaluation" (2004), for corpus scores.
    """
    return _interval(runs, (), times, level)


def difference_of(
    first: Sequence[Measured], second: Sequence[Measured], times: Float[Tensor, "r n"], *, level: float = 0.95
) -> Interval | None:
    """The paired difference of a figure of two systems on the same items: what the items have in common cancels.

    Two systems differ at this level if the interval leaves out 0. Not to be confused with a comparison of two
    intervals, which overlap long before the systems are equal.

    Args:
        first: a figure of one system, once a run.
        second: the same figure of the other, of the same items in the same order.
        times: from `resampled`.
        level: in (0, 1).

    Returns:
        Mean of first less mean of second, with its interval; None as for `interval_of`.

    Raises:
        DataError: a run is of another number of items.
    """
    return _interval(first, second, times, level)


def _interval(plus: Sequence[Measured], minus: Sequence[Measured], times: Tensor, level: float) -> Interval | None:
    runs = (*plus, *minus)
    if not plus or any(isinstance(run, int | float) or len(_items(run)) < FEWEST for run in runs):
        return None
    if any(len(_items(run)) != times.shape[1] for run in runs):
        raise DataError(f"runs of one figure are of the same items; received other numbers than {times.shape[1]}")
    value = _less([value_of(run) for run in plus], [value_of(run) for run in minus])
    if isinstance(plus[0], Share) and not minus:
        shares = torch.stack([_items(run) for run in plus]).double().mean(0)
        return wilson(float(shares.sum()), len(shares), level=level)
    if isinstance(plus[0], LeftOut):
        sides = [[run for run in side if isinstance(run, LeftOut)] for side in (plus, minus)]
        variance = sum(run.variance / len(side) ** 2 for side in sides for run in side)
        found = jackknife(value, _less(*([run.without for run in s] for s in sides)), variance=variance, level=level)
        if found.high - found.low <= NO_WIDTH * max(1, abs(value)):
            return None
        return found if minus else Interval(value, max(0.0, found.low), min(1.0, found.high), level)
    drawn = _less(*([_figures(run, times) for run in side] for side in (plus, minus)))
    drawn = drawn[drawn.isfinite()]  # a resample of items of which there is nothing to say has no figure
    if len(drawn) < 100 or not math.isfinite(value):
        return None
    if float(drawn.max() - drawn.min()) <= NO_WIDTH * max(1, abs(value)):
        return None
    low, high = drawn.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(value, low, high, level)


def _items(run: Measured) -> Tensor:
    """A row an item."""
    assert not isinstance(run, int | float), "a bare number has no items"
    return run.rows if isinstance(run, Sums) else run.values if isinstance(run, Share) else run.without


def _figures(run: Measured, times: Tensor) -> Tensor:
    """The figure in every resample."""
    sums = Sums.mean(run.values.double()) if isinstance(run, Share) else run
    assert isinstance(sums, Sums), "the jackknife does not resample"
    return sums.figure(times @ sums.rows.double())


def _less(plus: Sequence[Any], minus: Sequence[Any]) -> Any:
    """Mean of some less the mean of others, which is 0 for none."""
    mean = sum(plus[1:], plus[0]) / len(plus)
    return mean - sum(minus[1:], minus[0]) / len(minus) if minus else mean


def _ratio(sums: Tensor) -> Tensor:
    return sums[..., 0] / sums[..., 1]
