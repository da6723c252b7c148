"""Closed loop against open loop: identities of holding and replaying, disturbances."""

import pytest
import torch

from manta.errors import UsageError
from manta.flow.closed_form import mixture_field
from manta.flow.closed_loop import Disturbance, disturbance_errors, feedback, hold, record, replay
from manta.flow.solvers import SOLVERS, solve

MEANS = torch.tensor([[1.0, 0.5, -1.0], [-1.0, 0.0, 1.0], [0.0, -1.5, 0.2], [0.4, 1.6, 0.8]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
FIELD = mixture_field(MEANS, torch.full((4,), 0.15), WEIGHTS)


def noise(num: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def grid(num_steps: int) -> torch.Tensor:
    return torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)


def last(run):
    *_, reached = run
    return reached


def test_one_estimate_held_over_the_whole_path_lands_on_the_mean_of_the_data() -> None:
    reached = last(solve(hold(FIELD, 20), noise(), grid(20)))
    assert float((reached.state - WEIGHTS @ MEANS).abs().max()) < 1e-6
    assert reached.nfe == 1


@pytest.mark.parametrize("num_held", [1, 2, 3, 6])
def test_holding_an_estimate_is_euler_with_fewer_steps(num_held: int) -> None:
    held = last(solve(hold(FIELD, num_held), noise(), grid(12)))
    fewer = last(solve(FIELD, noise(), grid(12 // num_held)))
    torch.testing.assert_close(held.state, fewer.state, rtol=0, atol=1e-12)
    assert held.nfe == fewer.nfe == 12 // num_held
    if num_held > 1:
        assert float((held.state - last(solve(FIELD, noise(), grid(12))).state).abs().max()) > 1e-3


def test_holding_less_than_once_is_refused() -> None:
    with pytest.raises(UsageError, match="got 0"):
        hold(FIELD, 0)


@pytest.mark.parametrize("kind", ["euler", "heun"])
def test_undisturbed_replay_repeats_the_run_without_calls(kind: str) -> None:
    controls = record(FIELD, noise(), grid(10), step=SOLVERS[kind])
    closed = list(solve(FIELD, noise(), grid(10), step=SOLVERS[kind]))
    opened = list(replay(controls, noise()))
    for reached, repeated in zip(closed, opened, strict=True):
        torch.testing.assert_close(repeated.state, reached.state, rtol=0, atol=1e-12)
    assert controls.nfe == closed[-1].nfe and opened[-1].nfe == 0


def test_replay_carries_a_disturbance_to_the_end_unchanged() -> None:
    controls, delta = record(FIELD, noise(), grid(10)), torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    for t in (0.0, 0.34, 0.95):
        shifted = last(replay(controls, noise(), Disturbance(t=t, delta=delta)))
        torch.testing.assert_close(shifted.state - last(replay(controls, noise())).state, delta.expand(32, 3))


def test_feedback_without_disturbance_is_solve_and_counts_its_calls_across_one() -> None:
    plain, quiet = list(solve(FIELD, noise(), grid(7))), list(feedback(FIELD, noise(), grid(7)))
    nudged = list(feedback(FIELD, noise(), grid(7), Disturbance(t=0.5, delta=torch.zeros(3))))
    for reached in (quiet, nudged):
        assert [(s.t, s.nfe) for s in reached] == [(s.t, s.nfe) for s in plain]
        assert torch.equal(reached[-1].state, plain[-1].state)


def test_feedback_repairs_more_of_a_disturbance_than_replay() -> None:
    """At t = 0.3 some requests change their mode, so there the mean over all of them is not below replay's."""
    delta = 0.2 * noise(512, seed=3)
    disturbances = [Disturbance(t=t, delta=delta) for t in (0.3, 0.6, 0.8)]
    undisturbed = last(solve(FIELD, noise(512), grid(20))).state
    for error in disturbance_errors(FIELD, noise(512), grid(20), disturbances):
        torch.testing.assert_close(error.replay, delta.norm(dim=1))
        torch.testing.assert_close(error.feedback, (error.feedback_state - undisturbed).norm(dim=1))
        assert float(error.feedback.median()) < 0.65 * float(error.replay.median())
        if error.t > 0.5:
            assert float(error.feedback.mean()) < 0.95 * float(error.replay.mean())
        off_modes = [
            float(torch.cdist(end, MEANS).amin(1).mean()) for end in (error.feedback_state, error.replay_state)
        ]
        assert off_modes[0] < 0.9 * off_modes[1]
