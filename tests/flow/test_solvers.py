"""Solvers: measured order, exact ends, exact counts, noise per request, known positions."""

import functools
import math

import pytest
import torch

from manta.errors import UsageError
from manta.flow.closed_form import mixture_field
from manta.flow.guidance import guided
from manta.flow.solvers import SOLVERS, per_request_noise, solve, steps_within
from manta.types import Estimate

FIELD = mixture_field(
    torch.tensor([[1.0, 0.2], [-1.0, 0.0], [0.3, -1.2]]), torch.tensor([0.5, 0.4, 0.45]), torch.tensor([0.5, 0.3, 0.2])
)


def noise(num: int = 64, *event: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, *(event or (2,)), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def end(field, state, num_steps: int, **options) -> torch.Tensor:
    *_, last = solve(field, state, torch.linspace(0, 1, num_steps + 1, dtype=torch.float64), **options)
    return last.state


def slope(x: list[float], y: list[float]) -> float:
    centred = torch.tensor(x) - torch.tensor(x).mean()
    return float((centred @ torch.tensor(y)) / centred.square().sum())


@pytest.mark.parametrize(("kind", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(kind: str, order: int) -> None:
    start = noise(16)
    exact = end(FIELD, start, 1024, step=SOLVERS["heun"])
    counts = (32, 64, 128)
    errors = [float((end(FIELD, start, n, step=SOLVERS[kind]) - exact).norm(dim=1).mean()) for n in counts]
    assert slope([math.log(1 / n) for n in counts], [math.log(e) for e in errors]) == pytest.approx(order, abs=0.12)


@pytest.mark.parametrize("kind", list(SOLVERS))
def test_the_last_step_lands_on_its_clean_estimate_exactly(kind: str) -> None:
    state = noise().float()
    source = per_request_noise([torch.Generator().manual_seed(i) for i in range(len(state))])
    *_, last = solve(FIELD, state, torch.linspace(0, 1, 6), step=SOLVERS[kind], noise=source)
    assert last.t == 1.0
    assert torch.equal(last.state, last.clean)


@pytest.mark.parametrize(("kind", "per_step"), [("euler", [1, 2, 3]), ("heun", [2, 4, 5]), ("renoise", [1, 2, 3])])
def test_network_calls_are_counted_exactly(kind: str, per_step: list[int]) -> None:
    calls = []

    def field(state, t, *, cond, self_cond):
        calls.append(float(t[0]))
        return FIELD(state, t)

    source = per_request_noise([torch.Generator()] * 4)
    run = list(solve(field, noise(4), [0.0, 0.4, 0.7, 1.0], step=SOLVERS[kind], noise=source))
    assert [reached.nfe for reached in run] == per_step
    assert len(calls) == per_step[-1] and max(calls) < 1
    run = list(solve(guided(field, field, 2.0), noise(4), [0.0, 0.4, 0.7, 1.0], step=SOLVERS[kind], noise=source))
    assert [reached.nfe for reached in run] == [2 * n for n in per_step]
    assert len(calls) == 3 * per_step[-1]


@pytest.mark.parametrize("kind", list(SOLVERS))
@pytest.mark.parametrize(("budget", "per_estimate"), [(1, 1), (2, 1), (7, 1), (8, 1), (8, 2), (9, 2)])
def test_a_budget_is_used_and_not_exceeded(kind: str, budget: int, per_estimate: int) -> None:
    field = FIELD if per_estimate == 1 else guided(FIELD, FIELD, 2.0)
    source = per_request_noise([torch.Generator()] * 4)

    def calls(num_steps: int) -> int:
        *_, last = solve(field, noise(4), torch.linspace(0, 1, num_steps + 1), step=SOLVERS[kind], noise=source)
        return last.nfe

    num_steps = steps_within(kind, budget, per_estimate)
    assert calls(num_steps) <= budget < calls(num_steps + 1)


def test_a_budget_too_small_is_refused() -> None:
    with pytest.raises(UsageError, match="takes 2 network calls, the budget is 1"):
        steps_within("euler", 1, 2)
    with pytest.raises(UsageError, match="euler, heun, renoise"):
        steps_within("rk4", 8)


@pytest.mark.parametrize("kind", ["euler", "heun"])
def test_self_conditioning_is_the_previous_estimate_and_costs_nothing(kind: str) -> None:
    received, made = [], []

    def field(state, t, *, cond, self_cond):
        received.append(self_cond)
        made.append(FIELD(state, t))
        return made[-1]

    first = torch.zeros(4, 2)
    *_, last = solve(field, noise(4), [0.0, 0.5, 1.0], step=SOLVERS[kind], self_cond=first)
    assert received[0] is first
    assert all(given is before for given, before in zip(received[1:], made[:-1], strict=True))
    assert last.nfe == len(made) and last.clean is made[-1]


def test_renoise_keeps_the_noise_that_the_forward_process_shares() -> None:
    """Of a known clean state the forward process is Markov, so E[state(s) | state(t)] is linear in state(t).

    Its covariance (t / s)(1 - s)^2 over the variance (1 - t)^2 is the gain, and the rest of (1 - s)^2 is fresh noise.
    """
    state, clean, fresh = noise(3), torch.ones(3, 2, dtype=torch.float64), noise(3, seed=1)
    t, s = (torch.full((3,), value, dtype=torch.float64) for value in (0.4, 0.7))
    gain = 0.4 / 0.7 * 0.3**2 / 0.6**2
    spread = math.sqrt(0.3**2 - gain**2 * 0.6**2)
    moved = SOLVERS["renoise"](lambda state, t: clean, t, s, state, noise=lambda like: fresh)
    torch.testing.assert_close(moved, 0.7 * clean + gain * (state - 0.4 * clean) + spread * fresh)


def test_renoise_without_noise_is_euler_and_with_it_keeps_the_distribution() -> None:
    start = noise(2000)
    source = per_request_noise([torch.Generator().manual_seed(i) for i in range(2000)])
    still = end(FIELD, start, 8, step=functools.partial(SOLVERS["renoise"], eta=0.0), noise=source)
    torch.testing.assert_close(still, end(FIELD, start, 8))
    moved = end(FIELD, start, 60, step=SOLVERS["renoise"], noise=source)
    assert float((moved - still).norm(dim=1).mean()) > 0.5
    data = FIELD.sample(100_000, torch.Generator().manual_seed(7))
    torch.testing.assert_close(moved.mean(0), data.mean(0), rtol=0, atol=0.08)
    torch.testing.assert_close(torch.cov(moved.T), torch.cov(data.T), rtol=0, atol=0.1)


@pytest.mark.parametrize("kind", list(SOLVERS))
def test_a_request_is_the_same_alone_and_in_any_batch(kind: str) -> None:
    seeds = [11, 5, 7, 2]

    def generate(chosen: list[int]) -> torch.Tensor:
        source = per_request_noise([torch.Generator().manual_seed(seed) for seed in chosen])
        start = source(torch.empty(len(chosen), 3, 2))
        field = mixture_field(torch.stack([torch.ones(3, 2), -torch.ones(3, 2)]), torch.tensor([0.3, 0.3]))
        return end(field, start, 6, step=SOLVERS[kind], noise=source)

    together = generate(seeds)
    for row, seed in enumerate(seeds):
        torch.testing.assert_close(generate([seed])[0], together[row], rtol=0, atol=1e-6)
    torch.testing.assert_close(generate(seeds[::-1]).flip(0), together, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", list(SOLVERS))
def test_known_positions_stay_and_steer_the_others(kind: str) -> None:
    field = mixture_field(torch.stack([torch.ones(3, 1), -torch.ones(3, 1)]), torch.tensor([0.1, 0.1]))
    state = noise(16, 3, 1)
    known = torch.zeros(16, 3, dtype=torch.bool)
    known[:, 1] = True
    state[:, 1] = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(8)[:, None]
    source = per_request_noise([torch.Generator().manual_seed(i) for i in range(16)])
    result = end(field, state, 12, step=SOLVERS[kind], known=known, noise=source)
    assert torch.equal(result[:, 1], state[:, 1])
    assert torch.equal(result.sign(), state[:, 1:2].sign().expand(-1, 3, -1))


@pytest.mark.parametrize("grid", [[0.0], [0.0, 0.5, 0.5, 1.0], [0.0, 1.2], [-0.1, 1.0], [1.0, 0.0]])
def test_grids_that_do_not_rise_within_the_unit_interval_are_refused(grid: list[float]) -> None:
    with pytest.raises(UsageError, match="rises strictly"):
        list(solve(FIELD, noise(2), grid))


def test_renoise_says_what_it_lacks() -> None:
    with pytest.raises(UsageError, match="per_request_noise"):
        end(FIELD, noise(2), 2, step=SOLVERS["renoise"])
    with pytest.raises(UsageError, match="one per request"):
        end(FIELD, noise(2), 2, step=SOLVERS["renoise"], noise=per_request_noise([torch.Generator()]))


def test_guidance_extrapolates_and_is_off_at_one() -> None:
    def conditional(state, t, *, cond, self_cond):
        return state + cond

    def null(state, t, *, cond, self_cond):
        return state

    state, t = torch.zeros(2, 2), torch.zeros(2)
    assert guided(conditional, null, 1.0) is conditional
    for scale in (0.0, 0.5, 3.0):
        estimate = Estimate.of(guided(conditional, null, scale)(state, t, cond=2.0, self_cond=None))
        torch.testing.assert_close(estimate.clean, torch.full((2, 2), 2 * scale))


def test_fresh_noise_is_of_the_requests_generators_alone(no_global_draws) -> None:
    with no_global_draws():
        made = per_request_noise([torch.Generator().manual_seed(i) for i in (3, 4)])(torch.zeros(2, 5, 3))
    for row, seed in enumerate((3, 4)):
        assert torch.equal(made[row], torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(("kind", "share"), [("euler", 0.75), ("heun", 0.6875)])
def test_a_step_by_hand(kind: str, share: float) -> None:
    """Towards half of the state, from 0.2 to 0.6: velocities −0.625 at its start, −0.9375 at the 0.75 it predicts."""
    t, t_next = (torch.full((2,), value, dtype=torch.float64) for value in (0.2, 0.6))
    state = noise(2)
    torch.testing.assert_close(SOLVERS[kind](lambda state, t: 0.5 * state, t, t_next, state), share * state)


def test_renoise_leaves_rows_that_are_at_the_end_alone() -> None:
    state, clean, fresh = noise(3), torch.ones(3, 2, dtype=torch.float64), noise(3, seed=1)
    t = torch.tensor([0.4, 1.0, 0.4], dtype=torch.float64)
    s = torch.tensor([0.7, 1.0, 1.0], dtype=torch.float64)
    moved = SOLVERS["renoise"](lambda state, t: clean, t, s, state, noise=lambda like: fresh)
    assert torch.equal(moved[1], state[1])
    torch.testing.assert_close(moved[2], clean[2])
    assert not torch.allclose(moved[0], state[0])
