"""Adjoint matching against closed forms: a linear field under a linear reward, and the ancestral step itself."""

import pytest
import torch

from manta.control import AncestralStep, Start, adjoint_matching_loss, ancestral_steps, match_adjoint, roll_out
from manta.errors import UsageError
from manta.flow import mixture_field, renoise

MEAN = torch.tensor([[0.7, -1.2]], dtype=torch.float64)
STD = torch.tensor([0.5], dtype=torch.float64)
SLOPE = torch.tensor([1.5, -0.8], dtype=torch.float64)
GRID = torch.linspace(0, 1, 17, dtype=torch.float64)


def reward(state):
    return state @ SLOPE


def gaussian_field():
    return mixture_field(MEAN, STD, torch.ones(1, dtype=torch.float64))


def noise_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def process_variance(steps):
    """Variance of the base process's end, of one coordinate: each step is linear in the state."""
    variance, field = 0.0, gaussian_field()
    zero, one = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    for step in steps:
        slope = float((step.mean(field, one, None) - step.mean(field, zero, None))[0, 0])
        variance = slope**2 * variance + step.std**2
    return variance


class Shifted(torch.nn.Module):
    """The base field and a shift a step."""

    def __init__(self, num_steps):
        super().__init__()
        self.base = gaussian_field()
        self.shifts = torch.nn.Parameter(torch.zeros(num_steps, 2, dtype=torch.float64))

    def forward(self, state, t, *, cond=None, self_cond=None):
        index = int((GRID[:-1] <= float(t[0]) + 1e-9).sum()) - 1
        return self.base(state, t) + self.shifts[index]


@pytest.mark.parametrize(("t", "t_next"), [(0.0, 0.1), (0.3, 0.5), (0.8, 1.0)])
def test_a_step_is_that_of_renoise(t, t_next):
    state, field = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), gaussian_field()
    step = AncestralStep.between(t, t_next)
    ours = step.mean(field, state, None) + step.std * noise_of(1)(state)
    times = [torch.full((4,), value, dtype=torch.float64) for value in (t, t_next)]
    theirs = renoise(lambda x, at: field(x, at), times[0], times[1], state, noise=noise_of(1))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_the_first_step_forgets_the_initial_noise():
    step = AncestralStep.between(0.0, 1 / 16)
    assert step.keep == 0 and step.std == pytest.approx(15 / 16)


def test_the_lean_adjoint_of_a_linear_field_is_the_product_of_its_slopes():
    field = gaussian_field()
    rollout = roll_out(field, field, reward, torch.randn(3, 2, dtype=torch.float64), GRID, noise=noise_of(2))
    zero, one = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    factor = 1.0
    for k in reversed(range(len(rollout.steps))):
        factor *= float((rollout.steps[k].mean(field, one, None) - rollout.steps[k].mean(field, zero, None))[0, 0])
        torch.testing.assert_close(rollout.adjoints[k], -factor * SLOPE.expand(3, 2), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rollout.rewards, reward(rollout.states[-1]))


def test_a_linear_reward_moves_a_gaussian_by_its_variance_times_the_slope():
    """The tilted density of a Gaussian is the Gaussian whose mean has moved by variance times slope."""
    tuned, base = Shifted(16), gaussian_field()
    start_noise = noise_of(3)

    def start():
        return Start(start_noise(torch.zeros(64, 2, dtype=torch.float64)))

    updates = list(
        match_adjoint(
            tuned, base, reward, start, GRID, noise=noise_of(4), parameters=[tuned.shifts], num_steps=120,
            learning_rate=0.1, steps_a_loss=15, generator=torch.Generator().manual_seed(0),
        )
    )  # fmt: skip
    assert updates[-1].reward > updates[0].reward + 0.3
    assert updates[-1].loss < 1e-4 < updates[0].loss
    with torch.no_grad():
        ends = [
            roll_out(field, base, reward, torch.zeros(1, 2, dtype=torch.float64), GRID, noise=torch.zeros_like).states[
                -1
            ]
            for field in (base, tuned)
        ]
    moved = (ends[1] - ends[0])[0]
    steps = ancestral_steps(GRID)
    torch.testing.assert_close(moved, process_variance(steps) * SLOPE, rtol=0.02, atol=0.01)
    assert process_variance(ancestral_steps(torch.linspace(0, 1, 401))) == pytest.approx(0.25, rel=0.02)


def test_the_optimal_control_has_no_loss_and_its_opposite_has():
    base = gaussian_field()
    rollout = roll_out(base, base, reward, torch.randn(5, 2, dtype=torch.float64), GRID, noise=noise_of(5))
    best, worst = Shifted(16), Shifted(16)
    with torch.no_grad():
        for k, step in enumerate(rollout.steps):
            best.shifts[k] = -(step.std**2) * rollout.adjoints[k + 1][0] / step.pull
            worst.shifts[k] = -best.shifts[k]
    with torch.no_grad():
        assert float(adjoint_matching_loss(best, base, rollout, range(15))) < 1e-20
        assert float(adjoint_matching_loss(worst, base, rollout, range(15))) > 1e-3


def test_the_last_step_is_the_base_fields():
    base, tuned = gaussian_field(), Shifted(16)
    with torch.no_grad():
        tuned.shifts[-1] = 5.0
        zero = torch.zeros(1, 2, dtype=torch.float64)
        ends = [roll_out(f, base, reward, zero, GRID, noise=torch.zeros_like).states[-1] for f in (base, tuned)]
    assert torch.equal(ends[0], ends[1])


def test_padding_pays_no_price():
    def base(state, t, *, cond=None, self_cond=None):
        return 0.3 * state

    def moved(state, t, *, cond=None, self_cond=None):
        return 0.3 * state + 1.0

    def end(mask):
        return lambda state: (state * mask[..., None]).sum(dim=(1, 2))

    def loss(state, mask):
        rollout = roll_out(base, base, end(mask), state, torch.linspace(0, 1, 5), noise=torch.zeros_like)
        return float(adjoint_matching_loss(moved, base, rollout, [1, 2], mask=mask))

    state = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    parts = [loss(state[:1], mask[:1]), loss(state[1:, :1], mask[1:, :1])]
    assert loss(state, mask) == pytest.approx(sum(parts) / 2, rel=1e-5)


def test_what_cannot_be_matched_is_refused():
    field = gaussian_field()
    with pytest.raises(UsageError, match="from 0 to 1"):
        ancestral_steps([0.1, 0.5, 1.0])
    rollout = roll_out(field, field, reward, torch.zeros(1, 2, dtype=torch.float64), GRID, noise=noise_of(0))
    with pytest.raises(UsageError, match="no noise"):
        adjoint_matching_loss(field, field, rollout, [15])
    with pytest.raises(UsageError, match="at least one step"):
        adjoint_matching_loss(field, field, rollout, [])
    tuned = Shifted(16)
    settings = {"noise": torch.zeros_like, "parameters": [tuned.shifts], "num_steps": 1, "learning_rate": 0.1}
    begin = Start(torch.zeros(1, 2, dtype=torch.float64))
    for grid, steps_a_loss in ((torch.tensor([0.0, 1.0]), 4), (GRID, 0)):
        settings |= {"steps_a_loss": steps_a_loss, "generator": torch.Generator()}
        with pytest.raises(UsageError, match="two steps"):
            next(match_adjoint(tuned, field, reward, lambda: begin, grid, **settings))
