"""Intervals hold the truth as often as they say, and are those of hand-computed resamples."""

import itertools
import math
import random

import pytest
import torch

from manta.errors import DataError, UsageError
from manta.metrics.bootstrap import jackknife
from manta.metrics.diversity import diversity, diversity_measured
from manta.metrics.measured import LeftOut, Share, Sums, difference_of, interval_of, resampled, value_of
from manta.metrics.overlap import bleu_of_counts
from manta.runtime import make_generator


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=make_generator(seed), dtype=torch.float64)


def every_resample(items: int) -> torch.Tensor:
    """All ways to draw as many items with replacement, so that the bootstrap is exact."""
    ways = itertools.product(range(items), repeat=items)
    return torch.tensor([[way.count(at) for at in range(items)] for way in ways], dtype=torch.float64)


def test_resamples_draw_as_many_items_evenly() -> None:
    times = resampled(30, generator=make_generator(0), resamples=3000)
    assert times.sum(1).unique().tolist() == [30]
    assert times.mean(0).tolist() == pytest.approx([1.0] * 30, abs=0.08)
    assert float(times.var()) == pytest.approx(1 - 1 / 30, rel=0.03)
    with pytest.raises(UsageError, match="at least 100"):
        resampled(30, generator=make_generator(0), resamples=10)


def test_the_interval_of_a_ratio_is_that_of_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manta.metrics.measured.FEWEST", 2)
    errors, slots = torch.tensor([0.0, 1.0, 4.0, 1.0]), torch.tensor([2.0, 5.0, 8.0, 3.0])
    found = interval_of([Sums.ratio(errors, slots)], every_resample(4), level=0.8)
    ratios = [
        sum(float(errors[at]) for at in way) / sum(float(slots[at]) for at in way)
        for way in itertools.product(range(4), repeat=4)
    ]
    low, high = torch.tensor(ratios, dtype=torch.float64).quantile(torch.tensor([0.1, 0.9], dtype=torch.float64))
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((6 / 18, float(low), float(high)))


def test_jackknife_by_hand() -> None:
    # The mean of 1, 2, 6 without each is 4, 3.5, 1.5, mean 3: SE² = 2/3 (1 + 1/4 + 9/4) = 7/3 = s²/n.
    found = jackknife(3.0, torch.tensor([4.0, 3.5, 1.5]), level=0.95)
    half = 1.959964 * math.sqrt(7 / 3)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-4)
    wider = jackknife(3.0, torch.tensor([4.0, 3.5, 1.5]), variance=5 / 3)
    assert wider.high - 3 == pytest.approx(1.959964 * 2, rel=1e-4)
    with pytest.raises(DataError, match="at least two"):
        jackknife(1.0, torch.ones(1))


def test_one_of_a_hundred_has_wilsons_limits_and_none_of_a_hundred_a_width() -> None:
    times = resampled(100, generator=make_generator(0), resamples=100)
    for successes, limits in ((0, (0.0, 0.0370)), (1, (0.0018, 0.0545))):
        found = interval_of([Share(torch.arange(100) < successes)], times)
        assert found is not None and (found.low, found.high) == pytest.approx(limits, abs=5e-5)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of a ratio, and of a mean over two runs whose prompts are the same: prompts are independent, runs are not."""
    times = resampled(80, generator=make_generator(0), resamples=200)
    hits = torch.zeros(2)
    for trial in range(250):
        tokens = 5 + 5 * normal(80, seed=trial).square()
        nats = 2 * tokens + tokens.sqrt() * normal(80, seed=10_000 + trial)
        prompts = normal(80, seed=20_000 + trial)
        runs = [Sums.mean(prompts + 0.5 * normal(80, seed=30_000 + 2 * trial + run)) for run in (0, 1)]
        for at, (truth, measured) in enumerate(((2.0, [Sums.ratio(nats, tokens)]), (0.0, runs))):
            found = interval_of(measured, times)
            assert found is not None
            hits[at] += found.low <= truth <= found.high
    # 0.94 expected of a percentile interval of 80 items; three standard errors of 250 trials are 0.045.
    assert all(0.895 <= share <= 0.985 for share in (hits / 250).tolist()), hits


def test_a_paired_difference_of_equal_systems_leaves_out_0_as_seldom_as_it_says() -> None:
    times, wrong = resampled(60, generator=make_generator(0), resamples=400), 0
    for trial in range(400):
        prompts = 3 * normal(60, seed=trial)
        first, second = (Sums.mean(prompts + normal(60, seed=1000 + 2 * trial + side)) for side in (0, 1))
        found = difference_of([first], [second], times)
        assert found is not None
        assert found.high - found.low < 1.2, "what prompts have in common cancels: alone each is ± 0.8"
        wrong += not found.low <= 0 <= found.high
    assert 0.02 <= wrong / 400 <= 0.09


def test_the_jackknife_of_different_words_has_the_spread_of_fresh_texts() -> None:
    """The bootstrap would not: a resample holds texts twice, so it has fewer different words."""
    words = [f"w{rank}" for rank in range(400)]
    weights = [1 / (1 + rank) for rank in range(400)]

    def drawn(seed: int) -> list[str]:
        rng = random.Random(seed)
        return [" ".join(rng.choices(words, weights, k=rng.randint(5, 15))) for _ in range(60)]

    truth = torch.tensor([diversity(drawn(seed))["distinct_2"] for seed in range(200)])
    times, hits = resampled(60, generator=make_generator(0), resamples=100), 0
    for seed in range(200, 350):
        measured = diversity_measured(drawn(seed))["distinct_2"]
        found = interval_of([measured], times)
        assert found is not None and isinstance(measured, LeftOut)
        hits += found.low <= float(truth.mean()) <= found.high
    assert hits / 150 >= 0.9
    assert found.high - found.low < 6 * float(truth.std()), "and it is not just wide"


def test_measured_diversity_is_the_figures_and_leaves_out_each_text() -> None:
    texts = ["a b c a b c a b", "b c d", "", "d e f g d e f g h", *["a b"] * 8]
    bare, measured = diversity(texts), diversity_measured(texts)
    assert {name: value_of(figure) for name, figure in measured.items()} == pytest.approx(bare)
    for name in ("distinct", "distinct_1", "distinct_2"):
        figure = measured[name]
        assert isinstance(figure, LeftOut)
        for at, value in enumerate(figure.without.tolist()):
            assert value == pytest.approx(diversity(texts[:at] + texts[at + 1 :])[name])


def test_what_has_no_interval() -> None:
    times = resampled(12, generator=make_generator(0), resamples=100)
    assert interval_of([1.0], times) is None
    assert interval_of([Sums.mean(torch.ones(12))], times) is None, "a width of 0 would claim what is not known"
    same = LeftOut(0.1 + 0.2, torch.full((12,), 0.1 + 0.2) + 1e-17)
    assert interval_of([same], times) is None and difference_of([same], [same], times) is None, "rounding is no width"
    assert interval_of([Sums.mean(torch.arange(9.0))], times[:, :9]) is None, "too few items"
    assert difference_of([1.0], [2.0], times) is None
    with pytest.raises(DataError, match="the same items"):
        interval_of([Sums.mean(torch.arange(20.0))], times)


def test_items_of_which_there_is_nothing_to_say_do_not_count() -> None:
    values = torch.cat([torch.arange(20.0), torch.full((5,), torch.nan)])
    assert Sums.mean(values).value == 9.5
    counts = torch.zeros(12, 10, dtype=torch.float64)
    assert float(bleu_of_counts(counts.sum(0))) == 0
