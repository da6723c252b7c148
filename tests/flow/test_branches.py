"""Corners of the flow: three axes, grids with an uneven step, rows that are not scored, settings at their limits."""

import math

import pytest
import torch

from manta.errors import ConfigError, DataError, UsageError
from manta.flow import escaping, guided, mixture_field, repetition_direction
from manta.flow.closed_loop import Disturbance, disturbance_errors, hold, record
from manta.flow.objective import FlowObjectiveConfig, velocity_matching
from manta.flow.path import LinearPath
from manta.flow.solvers import checked_grid, solve
from manta.flow.time_density import TimeDensityConfig, implied_likelihood
from manta.types import Estimate

STATE = torch.randn(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def half(state, t, *, cond=None, self_cond=None):
    return 0.5 * state


def settings(**config) -> dict:
    return {
        "path": LinearPath(),
        "time_density": TimeDensityConfig(kind="uniform").build(),
        "generator": torch.Generator().manual_seed(0),
        "config": FlowObjectiveConfig(**{"start_share": 0.0, "end_share": 0.0, "self_cond_probability": 0.0, **config}),
    }


def test_guidance_goes_from_the_null_through_the_prompted_estimate() -> None:
    field = guided(lambda s, t, **_: s + 3, lambda s, t, **_: s + 1, 2.0)
    estimate = Estimate.of(field(STATE, torch.zeros(4), cond=None, self_cond=None))
    torch.testing.assert_close(estimate.clean, STATE + 5)
    assert estimate.nfe == 2


def test_what_the_prompted_call_told_stands_beside_the_guided_estimate() -> None:
    field = guided(lambda s, t, **_: Estimate(s, "prompted"), lambda s, t, **_: Estimate(s, "null"), 2.0)
    reached = list(solve(field, STATE, [0.0, 0.5, 1.0]))
    assert [(found.aux, found.nfe) for found in reached] == [("prompted", 2), ("prompted", 4)]


def test_a_direction_needs_three_texts_that_differ_in_means() -> None:
    feedback = torch.tensor([[1.0, 2.0], [1.0, 2.0], [9.0, 9.0], [9.0, 9.0], [4.0, 2.0], [4.0, 2.0]])
    direction, gap = repetition_direction(feedback, torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0, 1.0]))
    assert direction.tolist() == [1.0, 0.0] and gap == 1.0
    direction, _ = repetition_direction(torch.tensor([[0.0, 3.0], [0.0, 0.0], [4.0, 0.0]]), torch.arange(3.0))
    torch.testing.assert_close(direction, torch.tensor([0.8, -0.6]))
    with pytest.raises(DataError, match="do not differ"):
        repetition_direction(torch.ones(3, 2), torch.arange(3.0))
    assert escaping(half, torch.ones(2), 1.0) is not half


@pytest.mark.parametrize(("t", "index"), [(0.0, 0), (0.24, 1), (0.26, 1), (0.45, 2), (0.99, 2)])
def test_a_disturbance_acts_at_the_nearest_beginning_of_a_step(t: float, index: int) -> None:
    assert Disturbance(t=t, delta=torch.ones(1)).index(checked_grid([0.0, 0.25, 0.5, 1.0])) == index


def test_disturbances_are_answered_one_by_one_and_no_call_is_forgotten() -> None:
    deltas = [Disturbance(t=t, delta=torch.full((3, 2), 0.1)) for t in (0.0, 0.5)]
    errors = disturbance_errors(half, STATE, [0.0, 0.25, 0.5, 1.0], deltas)
    assert [error.t for error in errors] == [0.0, 0.5]
    for error in errors:
        torch.testing.assert_close(error.replay, torch.full((4,), 0.1 * 6**0.5, dtype=torch.float64))
    assert float(errors[0].feedback.mean()) < float(errors[1].feedback.mean()) < float(errors[1].replay.mean())
    assert record(half, STATE, [0.0, 0.5, 1.0]).nfe == 2
    kept = hold(half, 2)
    answers = [kept(STATE + k, torch.zeros(4)) for k in range(4)]
    assert [answer.nfe for answer in answers] == [1, 0, 1, 0]
    torch.testing.assert_close(answers[1].clean, half(STATE, torch.zeros(4)))
    torch.testing.assert_close(answers[3].clean, half(STATE + 2, torch.zeros(4)))


def test_the_posterior_target_is_scored_like_the_draw() -> None:
    mean, std = torch.full_like(STATE, 0.3), torch.full_like(STATE, 0.4)
    seen = {}

    def field(state, t, *, cond, self_cond):
        seen.update(state=state, t=t)
        return 0.5 * state

    loss = velocity_matching(field, STATE, posterior=(mean, std), weight=0.5, **settings(weight_cap=3.0))
    total = 0.0
    for row in range(4):
        t, state = float(seen["t"][row]), seen["state"][row]
        target = 0.3 + 0.16 * t / (0.16 * t * t + (1 - t) ** 2) * (state - t * 0.3)
        total += min(1 / (1 - t) ** 2, 3.0) * float((0.5 * state - target).square().mean())
    assert float(loss.parts["velocity"]) == pytest.approx(total / 4, rel=1e-5)
    assert float(loss.total) == pytest.approx(total / 8, rel=1e-5)
    assert float(loss.parts["clean_error"]) == pytest.approx(float((0.5 * seen["state"] - STATE).square().mean()))


def test_the_density_hears_the_mean_error_of_the_scored_positions_of_each_row() -> None:
    heard, arguments = [], settings()
    arguments["time_density"].observe = lambda t, loss: heard.append((t, loss))
    mask = torch.arange(3) < torch.tensor([3, 2, 1, 0])[:, None]
    velocity_matching(lambda s, t, **_: 0 * s, STATE, mask=mask, **arguments)
    expected = [float(STATE[row, : 3 - row].square().mean()) for row in range(3)]
    assert heard[0][1].tolist() == pytest.approx(expected) and len(heard[0][0]) == 3
    velocity_matching(lambda s, t, **_: 0 * s, STATE, observe=False, **arguments)
    assert len(heard) == 1


def test_rows_without_feedback_are_given_zeros() -> None:
    given = []

    def field(state, t, *, cond, self_cond):
        given.append(self_cond)
        return state + 1

    velocity_matching(field, torch.zeros(200, 1, 2), **settings(self_cond_probability=0.5, self_cond_noise=0.0))
    rows = given[1].flatten(1).abs().sum(1) > 0
    assert 60 < int(rows.sum()) < 140 and not given[1][~rows].any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight_cap": 0.9},
        {"start_share": -0.1},
        {"end_share": -0.1},
        {"start_share": 0.5, "end_share": 0.5},
        {"self_cond_probability": 1.1},
        {"self_cond_probability": -0.1},
        {"self_cond_noise": -0.1},
    ],
)
def test_shares_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        FlowObjectiveConfig(**wrong)
    assert FlowObjectiveConfig(weight_cap=1.0, self_cond_probability=1.0, self_cond_noise=0.0).weight_cap == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"uniform_share": 1.1}, {"num_bins": 3}, {"horizon": 0}, {"warmup": 0}, {"gamma_limit": 0.0}, {"logit_std": 0.0}
    ],
)  # fmt: skip
def test_densities_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        TimeDensityConfig(**wrong)
    TimeDensityConfig(uniform_share=1.0, num_bins=4, horizon=1, warmup=1)


def test_information_up_to_a_ratio_between_two_measurements() -> None:
    """Errors 4, 2 and 0 at ratios 1, 4 and 9: trapezoids, the first measurement extended to 0."""
    t, error = torch.tensor([0.5, 2 / 3, 0.75]), torch.tensor([4.0, 2.0, 0.0])
    assert implied_likelihood(t, error) == pytest.approx((4 + 9 + 5) / 2, rel=1e-5)
    assert implied_likelihood(t, error, snr_max=6.5) == pytest.approx((4 + 9 + 2.5 * 1.5) / 2, rel=1e-5)
    assert implied_likelihood(t, error, snr_max=2.5) == pytest.approx((4 + 1.5 * 3.5) / 2, rel=1e-5)
    assert implied_likelihood(t, error, snr_max=20.0) == pytest.approx((4 + 9 + 5) / 2, rel=1e-5)
    assert implied_likelihood(t, error, snr_max=0.5) == pytest.approx(4 * 0.5 / 2, rel=1e-5)
    with pytest.raises(UsageError, match="above 0"):
        implied_likelihood(t, error, snr_max=0.0)


def test_two_bins_are_enough_to_calibrate_and_one_is_not() -> None:
    density = TimeDensityConfig(warmup=2, num_bins=4).build()
    density.observe(torch.tensor([0.1, 0.1]), torch.tensor([1.0, 1.0]))
    assert not density.calibrated
    density.observe(torch.tensor([0.95]), torch.tensor([0.0]))
    assert density.calibrated
    density.load_state_dict({**density.state_dict(), "num_observed": torch.tensor(1)})
    assert not density.calibrated


def test_older_observations_fade_by_the_horizon() -> None:
    density = TimeDensityConfig(horizon=4, num_bins=4).build()
    density.observe(torch.tensor([0.5]), torch.tensor([1.0]))
    density.observe(torch.tensor([0.5, 0.5]), torch.tensor([3.0, 3.0]))
    _, (loss,), (weight,) = density.measured_loss()
    kept = (1 - 1 / 4) ** 2
    assert float(weight) == pytest.approx(kept + 2) and float(loss) == pytest.approx((kept + 6) / (kept + 2))


def test_times_of_a_solver_keep_double_precision() -> None:
    seen = []

    def step(field, t, t_next, state, *, noise):
        seen.append((t, t_next))
        return field(state, t)

    list(solve(half, STATE, [0.1, 0.7], step=step))
    assert seen[0][0].dtype == torch.float64 and seen[0][0].tolist() == [0.1] * 4 and seen[0][1].tolist() == [0.7] * 4
    known = torch.tensor([[True, False, False]]).expand(4, 3)
    list(solve(half, STATE, [0.1, 0.7], step=step, known=known))
    assert seen[1][0].dtype == torch.float64 and seen[1][0][0].tolist() == [1.0, 0.1, 0.1]
    with pytest.raises(UsageError, match="rises strictly"):
        checked_grid([0.0, 0.5, 1.1])


def test_a_mixture_of_states_with_places_conditions_whole_states() -> None:
    means = torch.stack([torch.ones(3, 2), -torch.ones(3, 2)])
    field = mixture_field(means, torch.tensor([0.5, 0.5]), torch.tensor([3.0, 1.0]))
    t = torch.full((4,), 0.5, dtype=torch.float64)
    near = [(-(STATE - sign * 0.5).square().sum((1, 2)) / (2 * (0.25 + 0.0625))).exp() for sign in (1, -1)]
    weight = (3 * near[0] / (3 * near[0] + near[1]))[:, None, None]
    pull = 0.5 * 0.25 / (0.25 + 0.0625)
    expected = weight * (1 + pull * (STATE - 0.5)) + (1 - weight) * (-1 + pull * (STATE + 0.5))
    torch.testing.assert_close(field(STATE, t), expected)
    clean = field.sample(4000, torch.Generator().manual_seed(0))
    assert clean.shape == (4000, 3, 2)
    assert clean.mean().item() == pytest.approx(0.5, abs=0.05)
    norm = 0.5 * 6 * math.log(2 * math.pi * 0.3125)
    density = (0.75 * near[0] + 0.25 * near[1]).log() - norm
    torch.testing.assert_close(field.log_density(STATE, t), density)
    for stds, weights in (([0.5, 0.0], [1.0, 1.0]), ([0.5, 0.5], [1.0, -1.0]), ([0.5, 0.5], [0.0, 0.0])):
        with pytest.raises(UsageError, match="above 0"):
            mixture_field(means, torch.tensor(stds), torch.tensor(weights))
