"""The closed-form mixture: checked against importance sampling, conditioning and differentiation."""

import math

import pytest
import torch

from manta.errors import UsageError
from manta.flow.closed_form import mixture_field


def gaussians() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.0], [0.0, -1.5]], dtype=torch.float64)
    return means, torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def test_estimate_and_covariance_agree_with_importance_sampling() -> None:
    field = mixture_field(*gaussians())
    clean = field.sample(400_000, torch.Generator().manual_seed(0))
    state, t = torch.tensor([[0.4, -0.2]], dtype=torch.float64), torch.tensor([0.6], dtype=torch.float64)
    weights = torch.softmax(-((state - 0.6 * clean) ** 2).sum(1) / (2 * 0.4**2), 0)
    mean = weights @ clean
    covariance = (weights[:, None] * (clean - mean)).T @ (clean - mean)
    torch.testing.assert_close(field(state, t)[0], mean, rtol=0, atol=5e-3)
    torch.testing.assert_close(field.covariance(state, t)[0], covariance, rtol=0, atol=5e-3)


def test_jacobian_of_the_estimate_is_the_covariance_scaled() -> None:
    field = mixture_field(*gaussians())
    state = torch.randn(2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for t in (0.2, 0.6, 0.9):
        time = torch.tensor([t], dtype=torch.float64)
        jacobian = torch.func.jacrev(lambda x, at: field(x[None], at)[0])(state, time)
        torch.testing.assert_close(jacobian, t / (1 - t) ** 2 * field.covariance(state[None], time)[0])


def test_a_known_coordinate_conditions_the_others() -> None:
    means = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])[..., None]
    field = mixture_field(means, torch.tensor([0.1, 0.1]))
    state = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
    clean = field(state, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(clean, torch.ones_like(clean), rtol=0, atol=1e-9)


def test_at_noise_the_estimate_is_the_mean_of_the_data() -> None:
    means, stds, weights = gaussians()
    clean = mixture_field(means, stds, 3 * weights)(torch.full((1, 2), math.pi), torch.zeros(1))
    assert clean.dtype == torch.float32
    torch.testing.assert_close(clean[0], (weights @ means).float())


def test_a_mixture_without_spread_is_refused() -> None:
    with pytest.raises(UsageError, match="above 0"):
        mixture_field(torch.zeros(2, 1), torch.zeros(2))


def test_velocity_and_its_derivatives_agree_with_differentiation() -> None:
    field = mixture_field(*gaussians())
    state = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([0.0, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)
    velocity = field.velocity(state, time)
    torch.testing.assert_close(velocity, (field(state, time) - state) / (1 - time[:, None]))
    for row in range(5):
        jacobian = torch.func.jacrev(lambda x, at: field.velocity(x[None], at[None])[0])(state[row], time[row])
        torch.testing.assert_close(field.velocity_jacobian(state, time)[row], jacobian)
    zero, one = torch.zeros_like(state), torch.ones_like(time)
    still = torch.func.jvp(field.velocity, (state, time), (zero, one))[1]
    carried = torch.func.jvp(field.velocity, (state, time), (velocity, one))[1]
    torch.testing.assert_close(field.velocity_time_derivative(state, time), still)
    torch.testing.assert_close(field.material_derivative(state, time), carried)
    assert field.material_derivative(state.float(), time.float()).dtype == torch.float32
    assert not bool(field.velocity(state, torch.ones(5, dtype=torch.float64)).any())


def test_score_is_the_gradient_of_a_density_that_integrates_to_one() -> None:
    means, stds, weights = gaussians()
    field, time = mixture_field(means[:, :1], stds, weights), torch.full((2001,), 0.7, dtype=torch.float64)
    state = torch.linspace(-10, 10, 2001, dtype=torch.float64)[:, None]
    assert float(field.log_density(state, time).exp().sum() * 0.01) == pytest.approx(1, abs=1e-9)
    score = torch.func.grad(lambda x: field.log_density(x, time).sum())(state)
    torch.testing.assert_close(field.score(state, time), score)


def test_draws_are_of_the_generator_alone(no_global_draws) -> None:
    field = mixture_field(*gaussians())
    with no_global_draws():
        one, two = (field.sample(7, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)


def test_a_component_of_weight_zero_is_none() -> None:
    means, stds, _ = gaussians()
    with_zero = mixture_field(means, stds, torch.tensor([1.0, 2.0, 0.0]))
    without = mixture_field(means[:2], stds[:2], torch.tensor([1.0, 2.0]))
    state, t = torch.tensor([[0.3, -0.4]], dtype=torch.float64), torch.tensor([0.6])
    torch.testing.assert_close(with_zero(state, t), without(state, t))
    torch.testing.assert_close(with_zero.log_density(state, t), without.log_density(state, t))


def test_draws_have_double_precision() -> None:
    field = mixture_field(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    clean = field.sample(8, torch.Generator().manual_seed(0))
    assert not torch.equal(clean.float().double(), clean)
