"""The loss of adjoint matching by its definition: means over rows and steps, sums over the state."""

import pytest
import torch

from manta.control import Rollout, Start, adjoint_matching_loss, ancestral_steps, match_adjoint

GRID = [0.0, 0.25, 0.5, 1.0]


def base(state, t, *, cond=None, self_cond=None):
    return 0.3 * state


def tuned(state, t, *, cond=None, self_cond=None):
    return 0.3 * state + 2.0


def rollout() -> Rollout:
    steps = ancestral_steps(GRID)
    generator = torch.Generator().manual_seed(0)
    states, adjoints = torch.randn(2, 4, 3, 5, 2, generator=generator)
    return Rollout(steps, states, adjoints, torch.zeros(3))


def cost(found: Rollout, k: int, mask: torch.Tensor) -> float:
    """Mean over three rows of half the squared distance of the control from its target."""
    step, total = found.steps[k], 0.0
    for row in range(3):
        for place in range(5):
            for channel in range(2):
                target = step.std * float(found.adjoints[k + 1, row, place, channel])
                total += float(mask[row, place]) * 0.5 * (step.pull * 2.0 / step.std + target) ** 2
    return total / 3


@pytest.mark.parametrize("chosen", [[0], [1], [0, 1], [1, 0, 1]])
def test_the_loss_is_a_mean_over_rows_and_steps(chosen):
    found, whole = rollout(), torch.ones(3, 5, dtype=torch.bool)
    expected = sum(cost(found, k, whole) for k in chosen) / len(chosen)
    assert float(adjoint_matching_loss(tuned, base, found, chosen)) == pytest.approx(expected, rel=1e-5)
    mask = torch.arange(5) < torch.tensor([5, 2, 0])[:, None]
    expected = sum(cost(found, k, mask) for k in chosen) / len(chosen)
    assert float(adjoint_matching_loss(tuned, base, found, chosen, mask=mask)) == pytest.approx(expected, rel=1e-5)


def test_an_update_is_clipped(monkeypatch):
    """Plain descent shows the step that AdamW would rescale."""
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, lr, weight_decay: torch.optim.SGD(parameters, lr))
    shift = torch.nn.Parameter(torch.zeros(2))
    updates = match_adjoint(
        lambda state, t, *, cond=None, self_cond=None: 0.3 * state + shift,
        base,
        lambda state: 1e4 * state.sum((1, 2)),
        lambda: Start(torch.zeros(3, 5, 2)),
        GRID,
        noise=torch.zeros_like,
        parameters=[shift],
        num_steps=1,
        learning_rate=0.1,
        generator=torch.Generator().manual_seed(0),
    )
    next(updates)
    assert float(shift.detach().norm()) == pytest.approx(0.1, rel=1e-3)
