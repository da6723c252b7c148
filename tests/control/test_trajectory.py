"""Geometry of trajectories: straight lines, circles, the widening of a Gaussian, and token sequences by hand."""

import math

import pytest
import torch

from manta.control.trajectory import (
    follow,
    jump_concentration,
    kinetic_energy,
    path_length,
    simplex_jumps,
    step_lengths,
    straightness,
    symbol_flips,
    symbol_jumps,
    total_curvature,
)
from manta.errors import UsageError
from manta.flow.closed_form import mixture_field
from manta.flow.solvers import heun

DOUBLE = torch.float64


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def grid(num_steps: int, end: float = 1.0) -> torch.Tensor:
    return torch.linspace(0, end, num_steps + 1, dtype=DOUBLE)


def test_a_straight_flow_is_as_long_as_its_distance_and_costs_the_least() -> None:
    noise, target = randn(3, 2, 4), randn(3, 2, 4, seed=2)
    states = follow(lambda state, t, **_: target, noise, grid(8))
    assert torch.equal(states[0], noise)
    torch.testing.assert_close(states[-1], target)
    distance, jumps = (target - noise).flatten(1).norm(dim=1), step_lengths(states)
    torch.testing.assert_close(path_length(jumps), distance)
    torch.testing.assert_close(jump_concentration(jumps), torch.full((3,), 1 / 8, dtype=DOUBLE))
    torch.testing.assert_close(kinetic_energy(states, grid(8)), distance**2 / 2)
    assert float(straightness(states, grid(8)).max()) < 1e-24
    assert float(total_curvature(states).max()) < 1e-6


def test_an_uneven_pace_costs_energy_but_turns_nowhere() -> None:
    """z = t^2 y: energy 1/2 int 4 t^2 |y|^2 = 2/3 |y|^2 and S = int (1 - 2 t)^2 |y|^2 = |y|^2 / 3."""
    target, times = randn(4, 5), grid(1000)
    states = times[:, None, None] ** 2 * target
    size = target.square().sum(1)
    torch.testing.assert_close(kinetic_energy(states, times), 2 / 3 * size, rtol=1e-5, atol=0)
    torch.testing.assert_close(straightness(states, times), size / 3, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        straightness(states, times), 2 * kinetic_energy(states, times) - size, rtol=1e-9, atol=1e-9
    )
    assert float(total_curvature(states).max()) < 1e-5
    uneven = torch.tensor([0.0, 0.3, 0.4, 1.0], dtype=DOUBLE)
    assert float(straightness(uneven[:, None, None] * target, uneven).max()) < 1e-24


def test_a_flow_in_circles_turns_by_its_angle() -> None:
    """The velocity A x turns by 1.5 radians per unit of t."""
    turning = torch.tensor([[0.0, -1.5], [1.5, 0.0]], dtype=DOUBLE)
    field = lambda state, t, **_: state + (1 - t)[:, None] * (state @ turning.T)  # noqa: E731
    start, times = randn(3, 2), grid(100, 0.9)
    states = follow(field, start, times, step=heun)
    radius, angle = start.norm(dim=1), 1.5 * 0.9
    torch.testing.assert_close(total_curvature(states), torch.full((3,), 0.99 * angle, dtype=DOUBLE), rtol=1e-4, atol=0)
    torch.testing.assert_close(path_length(step_lengths(states)), radius * angle, rtol=1e-4, atol=0)
    torch.testing.assert_close(kinetic_energy(states, times), radius**2 * 1.5**2 * 0.9 / 2, rtol=1e-4, atol=0)
    ahead = torch.tensor([math.cos(angle), math.sin(angle)], dtype=DOUBLE) * radius[:, None]
    aligned = (
        torch.stack([start, start @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=DOUBLE)], 1) / radius[:, None, None]
    )
    torch.testing.assert_close((aligned @ states[-1][..., None])[..., 0], ahead, rtol=1e-3, atol=1e-3)


def test_a_gaussians_flow_has_its_closed_energy_and_straightness() -> None:
    """state = t m + r xi with r = sqrt((1 - t)^2 + s^2 t^2): v = m + r' xi, and S = |xi|^2 (int r'^2 - (s - 1)^2)."""
    mean, std, xi = randn(1, 3), 0.3, randn(6, 3, seed=2)
    field = mixture_field(mean, torch.tensor([std], dtype=DOUBLE))
    states = follow(field, xi, grid(200), step=heun)
    fine = (torch.arange(20_000, dtype=DOUBLE) + 0.5) / 20_000
    slope = (std**2 * fine - (1 - fine)) / ((1 - fine) ** 2 + std**2 * fine**2).sqrt()
    energy = ((mean + slope[:, None, None] * xi) ** 2).sum(2).mean(0) / 2
    torch.testing.assert_close(states[-1], mean + std * xi, rtol=0, atol=1e-3)
    torch.testing.assert_close(kinetic_energy(states, grid(200)), energy, rtol=1e-3, atol=0)
    expected = xi.square().sum(1) * ((slope**2).mean() - (std - 1) ** 2)
    torch.testing.assert_close(straightness(states, grid(200)), expected, rtol=1e-3, atol=0)


def test_a_pause_has_no_direction_and_does_not_turn() -> None:
    corner = torch.tensor([[0.0, 0], [1, 0], [1, 0], [1, 1], [1, 1], [0, 1]], dtype=DOUBLE)[:, None]
    torch.testing.assert_close(total_curvature(corner), torch.tensor([math.pi], dtype=DOUBLE))
    back = torch.tensor([[0.0, 0], [1, 0], [0, 0]], dtype=DOUBLE)[:, None]
    torch.testing.assert_close(total_curvature(back), torch.tensor([math.pi], dtype=DOUBLE))


def test_committed_tokens_jump_as_their_one_hots_do() -> None:
    tokens = torch.randint(0, 5, (6, 3, 7), generator=torch.Generator().manual_seed(0))
    one_hot = torch.nn.functional.one_hot(tokens, 5).float()
    assert torch.equal(simplex_jumps(one_hot), symbol_jumps(tokens))
    assert torch.equal(path_length(symbol_jumps(tokens)).long(), symbol_flips(tokens))


def test_total_variation_of_a_slow_change_adds_up_to_that_of_a_sudden_one() -> None:
    first, last = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.2, 0.3, 0.5])
    share = torch.linspace(0, 1, 5)[:, None, None, None]
    slow = (1 - share) * first + share * last
    sudden = torch.where(share < 0.6, first, last)
    for way, concentration in ((slow, 0.25), (sudden, 1.0)):
        jumps = simplex_jumps(way)
        torch.testing.assert_close(path_length(jumps), torch.tensor([[0.8]]))
        torch.testing.assert_close(jump_concentration(jumps), torch.tensor([[concentration]]))


def test_one_commitment_a_step_is_sudden_at_each_position_and_even_for_the_request() -> None:
    unset, text = 9, torch.arange(4)
    tokens = torch.stack([torch.where(torch.arange(4) < step, text, unset) for step in range(5)])[:, None]
    jumps = symbol_jumps(tokens)
    assert torch.equal(jump_concentration(jumps), torch.ones(1, 4))
    torch.testing.assert_close(jump_concentration(jumps.mean(-1)), torch.tensor([0.25]))
    assert torch.equal(symbol_flips(tokens, unset=unset), torch.zeros(1, 4, dtype=torch.int64))
    revised = torch.cat([tokens, tokens[3:4], tokens[4:]])
    assert symbol_flips(revised, unset=unset).tolist() == [[0, 0, 0, 1]]
    assert symbol_flips(revised).tolist() == [[1, 1, 1, 3]]


def test_what_does_not_move_has_no_concentration_and_one_point_is_no_trajectory() -> None:
    assert bool(jump_concentration(step_lengths(torch.ones(3, 2, 4))).isnan().all())
    with pytest.raises(UsageError, match="two points"):
        step_lengths(torch.ones(1, 2, 4))
    with pytest.raises(UsageError, match="one state per time"):
        kinetic_energy(torch.ones(3, 2, 4), [0.0, 0.2, 0.6, 1.0])
