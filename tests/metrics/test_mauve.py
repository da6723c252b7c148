import math
from inspect import unwrap
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from manta.errors import DataError, UsageError
from manta.metrics.bootstrap import jackknife
from manta.metrics.mauve import MauveConfig, frontier_area, k_means, mauve, principal_components
from manta.metrics.measured import LeftOut
from manta.runtime import make_generator

QUICK = MauveConfig(min_texts=2, clusters=12, repeats=2, restarts=2)
FEW = MauveConfig(min_texts=2)
HISTOGRAM = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=make_generator(seed), dtype=torch.float64)


def shares(counts: list[int]) -> Tensor:
    return torch.tensor(counts, dtype=torch.float64) / sum(counts)


def score(first: Tensor, second: Tensor, config: MauveConfig = QUICK) -> float:
    return mauve(first, second, generator=make_generator(0), config=config).value


@given(HISTOGRAM)
def test_equal_histograms_have_area_1(counts: list[int]) -> None:
    assert frontier_area(shares(counts), shares(counts)) == 1


@given(HISTOGRAM, HISTOGRAM)
def test_the_area_is_symmetric_and_between_its_limits(first: list[int], second: list[int]) -> None:
    p, q = shares(first), shares(second)
    area = frontier_area(p, q)
    assert 1 / 252 - 1e-9 <= area <= 1
    assert area == pytest.approx(frontier_area(q, p), abs=1e-12)
    assert (area == 1) == torch.equal(p, q)
    assert area == pytest.approx(frontier_area(p, q, points=2001), abs=3e-3)


@pytest.mark.parametrize("common", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_the_area_of_histograms_that_share_one_bin(common: float, scale: float) -> None:
    # KL(P‖R) = −(1 − a) ln λ and KL(Q‖R) = −(1 − a) ln(1 − λ), so with s = c (1 − a) the area is
    # s ∫ λ^s (1 − λ)^(s − 1) dλ = Γ(s + 1)² / Γ(2s + 1); at a = 0 that is 1 / binom(2c, c).
    p, q = torch.tensor([common, 1 - common, 0]), torch.tensor([common, 0, 1 - common])
    s = scale * (1 - common)
    exact = math.gamma(s + 1) ** 2 / math.gamma(2 * s + 1)
    assert frontier_area(p, q, scale=scale, points=20_001) == pytest.approx(exact, abs=1e-6)
    assert frontier_area(p, q, scale=scale) == pytest.approx(exact, abs=3e-3)


def test_an_empty_bin_of_both_changes_nothing() -> None:
    p, q = torch.tensor([0.3, 0.7]), torch.tensor([0.6, 0.4])
    more = frontier_area(torch.tensor([0.3, 0.0, 0.7]), torch.tensor([0.6, 0.0, 0.4]))
    assert frontier_area(p, q) == pytest.approx(more, abs=1e-12)


def test_a_set_with_itself_scores_1() -> None:
    features = normal(60, 8, seed=1)
    found = mauve(features, features.flip(0), generator=make_generator(0), config=QUICK)
    assert found.value == 1 and found.spread == 0
    assert found.clusters == 12 and len(found.values) == 2


def test_sets_apart_score_the_lower_limit() -> None:
    near, far = normal(60, 8, seed=1), normal(60, 8, seed=2)
    near[:, 0] += 100
    far[:, 0] -= 100
    assert score(near, far) == pytest.approx(1 / 252, abs=2e-4)


def test_two_samples_of_one_source_score_high() -> None:
    assert score(normal(300, 8, seed=1), normal(300, 8, seed=2)) > 0.9


def test_order_exchange_rotation_and_scale_change_nothing() -> None:
    first, second = normal(90, 8, seed=1), normal(70, 8, seed=2) + 0.5
    plain = score(first, second)
    assert 0.1 < plain < 0.9
    shuffled = first[torch.randperm(90, generator=make_generator(3))], second.flip(0)
    assert score(*shuffled) == pytest.approx(plain, abs=1e-9)
    assert score(second, first) == pytest.approx(plain, abs=1e-9)
    rotation, _ = torch.linalg.qr(normal(8, 8, seed=4))
    assert score(first @ rotation, second @ rotation) == pytest.approx(plain, abs=1e-9)
    assert score(7 * first, 7 * second) == pytest.approx(plain, abs=1e-9)
    raw = MauveConfig(min_texts=2, clusters=12, repeats=2, restarts=2, normalise=False)
    moved = score(7 * first @ rotation + 3, 7 * second @ rotation + 3, raw)
    assert moved == pytest.approx(score(first, second, raw), abs=1e-9)


def test_normalising_ignores_the_length_of_each_vector() -> None:
    first, second = normal(60, 8, seed=1), normal(60, 8, seed=2) + 0.5
    stretched = second * (1 + normal(60, 1, seed=3).square())
    assert score(first, stretched) == pytest.approx(score(first, second), abs=1e-9)


def test_it_falls_as_the_sources_move_apart() -> None:
    first, second = normal(150, 6, seed=1), normal(150, 6, seed=2)
    config = MauveConfig(min_texts=2, clusters=15, repeats=2, restarts=2, normalise=False)
    found = [score(first, second + shift, config) for shift in (0, 0.3, 0.6, 1.2, 2.4)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.9 and found[-1] < 0.01


def test_a_missing_mode_is_seen() -> None:
    centres = 20 * normal(6, 8, seed=0)
    human = torch.cat([centre + normal(40, 8, seed=i) for i, centre in enumerate(centres)])
    partial = torch.cat([centre + normal(80, 8, seed=9 + i) for i, centre in enumerate(centres[:3])])
    config = MauveConfig(min_texts=2, clusters=6, repeats=2, normalise=False)
    # One cluster a mode: P = 1/6 six times, Q = 1/3 three times.
    p, q = torch.full((6,), 1 / 6), torch.tensor([1 / 3] * 3 + [0] * 3)
    assert score(human, partial, config) == pytest.approx(frontier_area(p, q), abs=1e-6)


def test_it_follows_its_generator_and_repeats() -> None:
    first, second = normal(60, 8, seed=1), normal(60, 8, seed=2) + 0.4
    config = MauveConfig(min_texts=2, clusters=20, repeats=3, restarts=1)
    one, again = (mauve(first, second, generator=make_generator(5), config=config) for _ in range(2))
    assert one == again
    assert one.spread > 0 and min(one.values) <= one.value <= max(one.values)
    assert (
        one.values[:1]
        == mauve(
            first,
            second,
            generator=make_generator(5),
            config=MauveConfig(min_texts=2, clusters=20, repeats=1, restarts=1),
        ).values
    )
    assert "20 clusters" in str(one)


def test_the_number_of_clusters_follows_the_smaller_set() -> None:
    first, second = normal(64, 4, seed=1), normal(30, 4, seed=2)
    config = MauveConfig(min_texts=2, repeats=1, restarts=1)
    assert mauve(first, second, generator=make_generator(0), config=config).clusters == 3


def test_principal_components_keep_what_they_should() -> None:
    plane = torch.cat([normal(50, 2, seed=1) * torch.tensor([5.0, 2.0]), torch.zeros(50, 6)], 1)
    rotation, _ = torch.linalg.qr(normal(8, 8, seed=2))
    points = plane @ rotation + 1
    kept = principal_components(points, 1.0)
    assert kept.shape == (50, 2)
    assert torch.allclose(torch.cdist(kept, kept), torch.cdist(points, points), atol=1e-6)
    assert principal_components(points, 0.5).shape == (50, 1)
    assert principal_components(torch.ones(5, 3), 0.9).tolist() == [[0.0]] * 5


def test_k_means_finds_clusters_that_are_apart() -> None:
    centres = 50 * normal(7, 3, seed=0)
    truth = torch.arange(7).repeat(20)
    labels = k_means(centres[truth] + normal(140, 3, seed=1), 7, generator=make_generator(0))
    pairs = set(zip(truth.tolist(), labels.tolist(), strict=True))
    assert len(pairs) == 7 and len({label for _, label in pairs}) == 7


def test_k_means_ends_where_no_point_is_nearer_to_another_mean() -> None:
    points = normal(200, 4, seed=1)
    labels = k_means(points, 9, generator=make_generator(0))
    means = torch.stack([points[labels == label].mean(0) for label in range(9)])
    assert torch.equal(torch.cdist(points, means).argmin(1), labels)


def test_the_best_of_several_runs_is_kept() -> None:
    points = normal(120, 3, seed=1)

    def cost(labels: Tensor) -> float:
        means = torch.stack([points[labels == label].mean(0) for label in range(10)])
        return float((points - means[labels]).square().sum())

    # More runs of one seed begin with the same ones.
    costs = [
        [cost(k_means(points, 10, generator=make_generator(seed), restarts=runs)) for runs in (1, 2, 5)]
        for seed in range(10)
    ]
    assert all(each == sorted(each, reverse=True) for each in costs)
    assert sum(five < one for one, _, five in costs) > 5


def test_k_means_of_few_different_points() -> None:
    points = torch.tensor([[0.0], [1.0]]).repeat(10, 1)
    labels = k_means(points, 5, generator=make_generator(0))
    assert len(labels.unique()) == 2
    assert mauve(points[:4], points[4:10], generator=make_generator(0), config=FEW).value == 1


def test_wrong_input() -> None:
    generator, features = make_generator(0), normal(4, 3, seed=1)
    with pytest.raises(DataError, match="fewer than 100 texts is luck of the draw, received 150 and 99"):
        mauve(normal(150, 3, seed=1), normal(99, 3, seed=2), generator=generator)
    with pytest.raises(DataError, match="finite"):
        mauve(features, features / 0, generator=generator, config=FEW)
    with pytest.raises(DataError, match="received 3 and 2"):  # as users call it, without checks of shapes
        unwrap(mauve)(features, features[:, :2], generator=generator, config=FEW)
    with pytest.raises(DataError, match="sum"):
        frontier_area(torch.ones(2), torch.ones(2))
    wrong: list[dict[str, Any]] = [{"clusters": 1}, {"explained_variance": 0.0}, {"scale": 0.0}, {"repeats": 0}]
    for each in [*wrong, {"points": 1}]:
        with pytest.raises(UsageError, match=r"MAUVE|explained_variance"):
            MauveConfig(**each)


def test_the_interval_has_the_spread_of_fresh_texts() -> None:
    """Over fresh draws of both sets, not over quantisations alone, whose spread is far less."""
    config = MauveConfig(repeats=1, restarts=1, normalise=False)

    def drawn(seed: int) -> Any:
        first, second = normal(150, 2, seed=2 * seed), normal(150, 2, seed=2 * seed + 1) + 0.7
        return mauve(first, second, generator=make_generator(seed), config=config)

    found = [drawn(seed) for seed in range(60)]
    values = torch.tensor([each.value for each in found], dtype=torch.float64)
    widths = []
    for each in found:
        assert isinstance(each.measured, LeftOut)
        interval = jackknife(each.value, each.measured.without)
        widths.append(interval.high - interval.low)
    half = sum(widths) / len(widths) / 2
    assert half == pytest.approx(1.96 * float(values.std()), rel=0.35)


def test_without_each_text_is_the_score_of_the_others_in_the_same_clusters() -> None:
    first, second = torch.zeros(6, 1), torch.zeros(6, 1)
    first[:4], second[:2] = 1.0, 1.0
    found = mauve(first, second, generator=make_generator(0), config=MauveConfig(min_texts=2, normalise=False))
    assert found.without is not None
    shares_left = [((3, 2), (1, 4)), ((3, 2), (2, 3)), ((4, 1), (2, 3))]  # both have a 1 left out, the first one, none
    wanted = [frontier_area(*(shares(list(each)) for each in pair)) for pair in shares_left]
    assert found.without.tolist() == pytest.approx([wanted[at] for at in (0, 0, 1, 1, 2, 2)])
