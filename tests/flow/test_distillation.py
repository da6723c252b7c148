"""The target of a student is where one Euler step lands in its teacher's several."""

import pytest
import torch

from manta.errors import ConfigError
from manta.flow import DistillationConfig, euler, landing_target


@pytest.mark.parametrize(("t", "t_next"), [(0.0, 1.0), (0.0, 0.5), (0.3, 0.4), (0.6, 1.0)])
def test_one_euler_step_on_the_target_lands_where_two_did(t, t_next):
    generator = torch.Generator().manual_seed(0)
    state, first, second = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    begin, end, middle = (torch.tensor(value, dtype=torch.float64) for value in (t, t_next, (t + t_next) / 2))
    half = euler(lambda state, t: first, begin, middle, state)
    reached = euler(lambda state, t: second, middle, end, half)
    target = landing_target(state, begin, end, reached)
    torch.testing.assert_close(euler(lambda state, t: target, begin, end, state), reached)


def test_two_steps_towards_one_place_have_it_as_their_target():
    state, clean = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    half = euler(lambda state, t: clean, torch.tensor(0.0), torch.tensor(0.25), state)
    reached = euler(lambda state, t: clean, torch.tensor(0.25), torch.tensor(0.5), half)
    torch.testing.assert_close(landing_target(state, torch.tensor(0.0), torch.tensor(0.5), reached), clean)


def test_levels_halve_down_to_the_calls_that_are_left():
    assert DistillationConfig(num_steps=2).levels == (4, 2, 1)
    assert DistillationConfig(num_steps=4, halvings=2).levels == (6, 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"num_steps": 1}, "num_steps"), ({"halvings": 0}, "halvings"), ({"consensus_rows": 2.0}, "rows")],
)
def test_what_cannot_be_is_refused_by_name(given, said):
    with pytest.raises(ConfigError, match=said):
        DistillationConfig(**given)
