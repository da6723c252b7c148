"""Both ends of every number that a flow may be told."""

import math
from typing import Any

import pytest
import torch

from manta.errors import ConfigError, UsageError
from manta.flow import FlowObjectiveConfig, TimeDensityConfig, steps_within
from manta.flow.solvers import checked_grid, renoise

ENDS: tuple[tuple[Any, str, tuple[Any, ...], tuple[Any, ...]], ...] = (
    (FlowObjectiveConfig, "weight_cap", (1.0,), (0.999,)),
    (FlowObjectiveConfig, "start_share", (0.0, 0.84), (-1e-9, 0.85)),
    (FlowObjectiveConfig, "end_share", (0.0, 0.84), (-1e-9, 0.85)),
    (FlowObjectiveConfig, "self_cond_probability", (0.0, 1.0), (-1e-9, 1.001)),
    (FlowObjectiveConfig, "self_cond_noise", (0.0, 1.5), (-1e-9,)),
    (TimeDensityConfig, "uniform_share", (1e-9, 1.0), (0.0, 1.001)),
    (TimeDensityConfig, "num_bins", (4,), (3,)),
    (TimeDensityConfig, "horizon", (1,), (0,)),
    (TimeDensityConfig, "warmup", (1,), (0,)),
    (TimeDensityConfig, "gamma_limit", (1e-9,), (0.0,)),
    (TimeDensityConfig, "logit_std", (1e-9,), (0.0,)),
)


@pytest.mark.parametrize(("made", "name", "right", "wrong"), ENDS)
def test_both_ends_of_what_may_be_said(made, name, right, wrong):
    for value in right:
        assert getattr(made(**{name: value}), name) == value
    for value in wrong:
        with pytest.raises(ConfigError, match=name):
            made(**{name: value})


def test_a_grid_lies_within_zero_and_one_and_rises():
    assert checked_grid([0.0, 1.0]).tolist() == [0.0, 1.0] and checked_grid([0.25, 0.5]).dtype == torch.float64
    for wrong in ([0.5], [], [-1e-9, 1.0], [0.0, 1.0 + 1e-9], [0.0, 0.5, 0.5, 1.0], [0.5, 0.25]):
        with pytest.raises(UsageError, match="rises strictly"):
            checked_grid(wrong)


@pytest.mark.parametrize(
    ("kind", "budget", "calls", "steps"),
    [
        ("euler", 1, 1, 1),
        ("euler", 7, 2, 3),
        ("heun", 1, 1, 1),
        ("heun", 4, 1, 2),
        ("heun", 5, 1, 3),
        ("heun", 6, 2, 2),
    ],
)
def test_steps_that_a_budget_pays_for(kind, budget, calls, steps):
    assert steps_within(kind, budget, calls) == steps
    with pytest.raises(UsageError, match="budget is"):
        steps_within(kind, calls - 1, calls)


def test_all_of_the_noise_or_none_of_it_is_drawn_anew():
    state, t, after = torch.ones(1, 2), torch.tensor([0.25]), torch.tensor([0.5])

    def field(state, t, **_):
        return 0.5 * state

    def fresh(like):
        return torch.full_like(like, 3.0)

    noise_hat = (1 - 0.25 * 0.5) / 0.75
    kept = 1 / 3  # of the noise, whose ratio falls from 3 to 1
    for eta in (0.0, 1.0):
        new = eta * math.sqrt(1 - kept**2)
        expected = 0.5 * 0.5 + 0.5 * (math.sqrt(1 - new**2) * noise_hat + new * 3.0)
        found = renoise(field, t, after, state, eta=eta, noise=fresh)
        torch.testing.assert_close(found, torch.full((1, 2), expected))
    for eta in (-1e-9, 1.001):
        with pytest.raises(UsageError, match="eta"):
            renoise(field, t, after, state, eta=eta, noise=fresh)
