"""The escape changes what is fed back by its equation and nothing else, and finds a planted direction."""

import pytest
import torch

from manta.errors import DataError
from manta.flow import escaping, guided, repetition_direction, solve

AXIS = torch.tensor([0.6, 0.8, 0.0])


def attracted(state, t, *, cond=None, self_cond=None):
    """A feedback loop with a contractive attractor: along the axis three quarters of what is fed back come back."""
    clean = torch.ones_like(state)
    return clean if self_cond is None else clean + 0.75 * (self_cond @ AXIS)[..., None] * AXIS


def test_only_what_is_fed_back_is_moved():
    heard = []

    def field(state, t, *, cond=None, self_cond=None):
        heard.append((state, t, cond, self_cond))
        return state

    state, t, fed = torch.randn(2, 4, 3), torch.zeros(2), torch.randn(2, 4, 3)
    moved = escaping(field, AXIS, 1.5)
    assert moved(state, t, cond="c", self_cond=fed) is state
    moved(state, t, self_cond=None)
    assert heard[0][0] is state and heard[0][1] is t and heard[0][2] == "c"
    torch.testing.assert_close(heard[0][3], fed - 1.5 * AXIS)
    assert heard[1][3] is None
    assert escaping(field, AXIS, 0.0) is field


def test_the_fixed_point_of_the_loop_moves_by_the_geometric_series():
    """clean = 1 + 0.75 <clean - s u, u> u  has  <clean, u> = (<1, u> - 0.75 s) / 0.25; across u nothing changes."""
    for scale in (0.0, 0.5, 2.0):
        field, state = escaping(attracted, AXIS, scale), torch.zeros(1, 2, 3)
        last = list(solve(field, state, torch.linspace(0, 1, 200)))[-1].clean
        along = last @ AXIS
        torch.testing.assert_close(along, ((1.4 - 0.75 * scale) / 0.25) * torch.ones_like(along), rtol=1e-4, atol=1e-4)
        across = torch.tensor([-0.8, 0.6, 0.0])
        torch.testing.assert_close(last @ across, torch.full_like(along, -0.2), rtol=1e-4, atol=1e-4)


def test_calls_are_counted_through_it():
    field = escaping(guided(attracted, attracted, 2.0), AXIS, 1.0)
    reached = list(solve(field, torch.zeros(1, 2, 3), [0.0, 0.5, 1.0]))[-1]
    assert reached.nfe == 4


def test_a_planted_direction_is_found():
    generator = torch.Generator().manual_seed(0)
    repetition = torch.rand(600, generator=generator)
    noise = torch.randn(600, 3, generator=generator)
    direction, gap = repetition_direction(0.5 * noise + 3 * repetition[:, None] * AXIS, repetition)
    assert direction.norm().item() == pytest.approx(1)
    assert (direction @ AXIS).item() > 0.99
    assert gap == pytest.approx(5 / 6 - 1 / 6, abs=0.03), "means of the thirds of a uniform distribution"


def test_only_the_outer_thirds_count():
    feedback = torch.tensor([[0.0], [0.0], [99.0], [-99.0], [1.0], [3.0]])
    direction, gap = repetition_direction(feedback, torch.tensor([0.1, 0.0, 0.5, 0.5, 0.8, 1.0]))
    assert direction.tolist() == [1.0] and gap == pytest.approx(0.85)
    assert repetition_direction(-feedback, torch.tensor([0.1, 0.0, 0.5, 0.5, 0.8, 1.0]))[0].tolist() == [-1.0]


def test_without_a_difference_there_is_no_direction():
    feedback = torch.randn(6, 2)
    with pytest.raises(DataError, match="do not differ in repetition"):
        repetition_direction(feedback, torch.zeros(6))
    with pytest.raises(DataError, match="three texts"):
        repetition_direction(feedback[:2], torch.arange(2.0))
