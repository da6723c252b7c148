"""Time densities: a planted loss curve is found, quantiles rise, sampling is stratified, resuming is exact."""

import math

import pytest
import torch

from manta.errors import CheckpointError, ConfigError, TrainingError, UsageError
from manta.flow.path import log_noise_ratio
from manta.flow.time_density import KINDS, TimeDensity, TimeDensityConfig, implied_likelihood, isotonic_regression


def planted_loss(t: torch.Tensor, location: float = 1.0, scale: float = 0.5) -> torch.Tensor:
    return 0.1 + torch.sigmoid((log_noise_ratio(t) - location) / scale)


def train(density: TimeDensity, num_batches: int, generator: torch.Generator, location: float = 1.0) -> None:
    for _ in range(num_batches):
        t = density.sample(64, generator)
        loss = planted_loss(t.double(), location)
        density.observe(t, loss + 0.05 * torch.randn(64, dtype=torch.float64, generator=generator))


def trained(kind: str = "calibrated", num_batches: int = 200, **options) -> TimeDensity:
    density = TimeDensityConfig(kind=kind, **options).build()  # pyright: ignore[reportArgumentType]
    train(density, num_batches, torch.Generator().manual_seed(0))
    return density


def test_isotonic_regression_pools_violators_and_is_the_nearest_rising_sequence() -> None:
    fit = isotonic_regression(torch.tensor([1.0, 3.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, 3.0, 1.0]))
    torch.testing.assert_close(fit, torch.tensor([1, 2.25, 2.25, 4], dtype=torch.float64))
    values = torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = 0.1 + torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fit = isotonic_regression(values, weights)
    assert bool((fit.diff() >= 0).all())
    # Optimality: the residual is orthogonal to the fit and points out of the cone of rising sequences.
    residual = weights * (values - fit)
    assert abs(float(residual @ fit)) < 1e-12
    assert bool((residual.flip(0).cumsum(0).flip(0) <= 1e-12).all()) and abs(float(residual.sum())) < 1e-12


def test_the_density_finds_a_planted_transition() -> None:
    density = trained(uniform_share=0.01)
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    # The planted loss is a logistic distribution function of gamma, and gamma falls with t.
    expected = 1.0 + 0.5 * torch.log((1 - levels) / levels)
    torch.testing.assert_close(log_noise_ratio(density.quantile(levels)), expected, rtol=0, atol=0.12)


def test_the_density_follows_a_transition_that_moves() -> None:
    density = trained(horizon=2048)
    train(density, 200, torch.Generator().manual_seed(1), location=-1.5)
    middle = log_noise_ratio(density.quantile(torch.tensor([0.5], dtype=torch.float64)))
    assert float(middle) == pytest.approx(-1.5, abs=0.3)


def test_the_uniform_share_covers_every_interval() -> None:
    density = trained(uniform_share=0.2)
    t = torch.sort(density.quantile(torch.linspace(0, 1, 20_001, dtype=torch.float64))).values
    for low in torch.arange(0, 1, 0.1).tolist():
        share = float(((t >= low) & (t < low + 0.1)).double().mean())
        assert share > 0.02 - 1e-3


def test_it_is_uniform_until_calibrated_and_where_nothing_is_learned() -> None:
    q = torch.linspace(0, 1, 11, dtype=torch.float64)
    density = TimeDensityConfig(warmup=128).build()
    density.observe(torch.rand(127), torch.rand(127))
    assert not density.calibrated
    assert torch.equal(density.quantile(q), q)
    flat = TimeDensityConfig(warmup=128).build()
    flat.observe(torch.linspace(0.01, 0.99, 128), torch.ones(128))
    assert flat.calibrated
    torch.testing.assert_close(flat.quantile(q), q)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("num_steps", [1, 2, 8, 64])
def test_grids_rise_strictly_from_zero_to_one(kind: str, num_steps: int) -> None:
    grid = trained(kind).grid(num_steps)
    assert len(grid) == num_steps + 1
    assert grid[0] == 0 and grid[-1] == 1
    assert bool((grid.diff() > 0).all())


@pytest.mark.parametrize("kind", list(KINDS))
def test_samples_put_one_time_in_each_stratum(kind: str, no_global_draws) -> None:
    density = trained(kind)
    with no_global_draws():
        t = density.sample(256, torch.Generator().manual_seed(5))
    edges = density.quantile(torch.arange(257, dtype=torch.float64) / 256)
    ordered = torch.sort(t.double()).values
    assert bool((ordered >= edges[:-1] - 1e-6).all()) and bool((ordered <= edges[1:] + 1e-6).all())
    assert float(t.max()) < 1
    assert not torch.equal(t, torch.sort(t).values)


@pytest.mark.parametrize("kind", list(KINDS))
def test_resuming_is_bit_exact(kind: str) -> None:
    whole, generator = trained(kind, 40), torch.Generator().manual_seed(9)
    resumed = TimeDensityConfig(kind=kind).build()  # pyright: ignore[reportArgumentType]
    resumed.load_state_dict(whole.state_dict())
    twin = torch.Generator()
    twin.set_state(generator.get_state())
    train(whole, 20, generator)
    train(resumed, 20, twin)
    assert torch.equal(whole.grid(50), resumed.grid(50))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_observations_are_means_per_bin() -> None:
    density = TimeDensityConfig(num_bins=4, gamma_limit=2.0, horizon=10**9).build()
    density.observe(torch.tensor([0.0, 0.4, 0.4, 1.0]), torch.tensor([9.0, 2.0, 4.0, 1.0]))
    gammas, losses, weights = density.measured_loss()
    torch.testing.assert_close(gammas, torch.tensor([-1.5, 0.5, 1.5], dtype=torch.float64))
    torch.testing.assert_close(losses, torch.tensor([1.0, 3.0, 9.0], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("num_dims", [1, 16])
def test_implied_likelihood_of_a_gaussian_is_its_channel_capacity(num_dims: int) -> None:
    t = torch.linspace(0.001, 0.95, 4000, dtype=torch.float64)
    snr = (t / (1 - t)) ** 2
    found = implied_likelihood(t.flip(0), num_dims / (1 + snr.flip(0)))
    assert found == pytest.approx(num_dims / 2 * math.log1p(float(snr[-1])), rel=1e-4)
    cut = implied_likelihood(t, num_dims / (1 + snr), snr_max=10.0)
    assert cut == pytest.approx(num_dims / 2 * math.log(11), rel=1e-4)


def test_implied_likelihood_from_the_measured_bins() -> None:
    density = TimeDensityConfig(kind="uniform", num_bins=200, horizon=10**9).build()
    t = torch.linspace(0.0005, 0.9995, 20_000, dtype=torch.float64)
    density.observe(t, 1 / (1 + (t / (1 - t)) ** 2))
    assert density.implied_likelihood(8, snr_max=100.0) == pytest.approx(4 * math.log(101), rel=0.01)


def test_wrong_use_is_refused() -> None:
    density = TimeDensityConfig().build()
    with pytest.raises(TrainingError, match="not finite"):
        density.observe(torch.tensor([0.5]), torch.tensor([float("nan")]))
    with pytest.raises(CheckpointError, match="48 bins"):
        density.load_state_dict(TimeDensityConfig(num_bins=10).build().state_dict())
    with pytest.raises(UsageError, match="num_steps"):
        density.grid(0)
    with pytest.raises(ConfigError, match="uniform_share"):
        TimeDensityConfig(uniform_share=0.0)
    with pytest.raises(UsageError, match="two measurements"):
        density.implied_likelihood(1)


def test_no_time_is_rounded_to_one(monkeypatch) -> None:
    density = TimeDensityConfig(kind="uniform").build()
    monkeypatch.setattr(density, "quantile", lambda q: torch.ones_like(q))
    assert float(density.sample(4, torch.Generator().manual_seed(0)).max()) < 1


def test_where_nothing_is_learned_the_density_is_the_uniform_share() -> None:
    """What the losses say has the rest of the mass, whatever their size."""
    for size in (0.1, 10.0):
        density = TimeDensityConfig(uniform_share=0.5, warmup=128).build()
        t = torch.linspace(0.005, 0.995, 400)
        density.observe(t, size * (t < 0.5).float())
        assert density.calibrated
        q = torch.tensor([0.25 * 0.5 / 2], dtype=torch.float64)  # far from the fall at 0.5 there is nothing else
        assert float(density.quantile(q)) == pytest.approx(0.125, abs=0.03)


def test_implied_likelihood_of_two_measurements_by_hand() -> None:
    """Errors of 3 and 1 at signal-to-noise ratios of 1 and 4, the first as far as 0, a straight line between them."""
    t, error = torch.tensor([2 / 3, 0.5], dtype=torch.float64), torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert implied_likelihood(t, error) == pytest.approx(0.5 * (3 + 6))
    for end, area in ((0.5, 1.5), (1.0, 3.0), (2.5, 3 + 1.5 * 2.5), (4.0, 9.0), (99.0, 9.0), (1e-6, 3e-6)):
        assert implied_likelihood(t, error, snr_max=end) == pytest.approx(0.5 * area)
    for few, end in ((1, None), (2, 0.0), (2, -1.0)):
        with pytest.raises(UsageError, match="two measurements"):
            implied_likelihood(t[:few], error[:few], snr_max=end)


def test_a_density_is_calibrated_by_enough_observations_in_two_bins() -> None:
    density = TimeDensityConfig(warmup=4, num_bins=4).build()
    density.observe(torch.full((9,), 0.5), torch.ones(9))
    assert not density.calibrated, "one bin says nothing of a change"
    density.observe(torch.tensor([0.99]), torch.ones(1))
    assert density.calibrated
    few = TimeDensityConfig(warmup=4, num_bins=4).build()
    few.observe(torch.tensor([0.01, 0.5, 0.99]), torch.ones(3))
    assert not few.calibrated
    few.observe(torch.tensor([0.5]), torch.ones(1))
    assert few.calibrated
