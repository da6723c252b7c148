import pytest
import torch

from manta.errors import DataError
from manta.metrics.features import frechet_distance, nearest, precision_recall


def draws(n, d, seed, mean=0.0, scale=1.0):
    return mean + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_distance_of_two_gaussians_has_its_closed_form():
    one, two = draws(60_000, 3, 0), draws(60_000, 3, 1, mean=2.0, scale=3.0)
    assert frechet_distance(one, two) == pytest.approx(3 * 4 + 3 * (1 - 3) ** 2, rel=0.03)
    turn = torch.linalg.qr(draws(3, 3, 2))[0]
    stretched = one * torch.tensor([1.0, 2.0, 3.0])
    expected = sum((a - b) ** 2 for a, b in zip((1, 2, 3), (1, 1, 1), strict=True))
    assert frechet_distance(stretched @ turn, one @ turn) == pytest.approx(expected, rel=0.05)


def test_equal_sets_have_no_distance_and_the_order_does_not_count():
    one, two = draws(300, 5, 0), draws(300, 5, 1, mean=0.5)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, two) == pytest.approx(frechet_distance(two, one[torch.randperm(300)]), rel=1e-9)


def test_features_that_hold_fewer_dimensions_than_they_have_are_compared_too():
    flat = draws(100, 8, 0) @ (torch.arange(8) < 3).double().diag()
    assert frechet_distance(flat, flat + 1) == pytest.approx(8, rel=1e-6)


def test_what_covers_half_has_precision_and_half_the_recall():
    real = torch.cat([draws(200, 2, 0), draws(200, 2, 1, mean=50.0)])
    ours = draws(200, 2, 2)
    precision, recall = precision_recall(ours, real)
    assert precision > 0.9 and 0.4 < recall < 0.55
    far = precision_recall(draws(100, 2, 3, mean=500.0), real)
    assert far == (0.0, 0.0)


def test_the_nearest_is_the_nearest():
    points, others = draws(2_500, 4, 0), draws(77, 4, 1)
    expected = ((points[:, None] - others[None]) ** 2).mean(-1).sqrt().amin(1)
    torch.testing.assert_close(nearest(points, others), expected)
    assert nearest(others, others).max() < 1e-6


def test_too_few_and_broken_features_are_refused():
    with pytest.raises(DataError, match="too few"):
        frechet_distance(draws(20, 3, 0), draws(200, 3, 1))
    broken = draws(100, 3, 0)
    broken[0, 0] = float("nan")
    with pytest.raises(DataError, match="finite"):
        frechet_distance(broken, draws(100, 3, 1))
