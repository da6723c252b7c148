"""The learned schedule: what it begins as, what it sees of a place, and what it stores."""

import math

import pytest
import torch

from manta.errors import ConfigError
from manta.masked import Canvas, LearnedConfig
from manta.masked.learned import NUM_WEIGHTS, Schedule, signs_of


def canvas_of(tokens: list[int]) -> Canvas:
    given = torch.tensor([tokens])
    writable = given != 9
    return Canvas(given, writable, given == 1, torch.ones(1, len(tokens), dtype=torch.float64))


def test_signs_of_a_place_by_hand():
    """Given, masked, written, masked, masked; the last is not open. A given word is a word."""
    canvas = canvas_of([9, 1, 5, 1, 1])
    open_ = torch.tensor([[False, True, False, True, False]])
    sure = torch.tensor([[-math.inf, 0.9, -math.inf, 0.6, -math.inf]])
    signs = signs_of(canvas, open_, sure)[0]
    assert signs[1].tolist() == pytest.approx([math.log(9), 1, 1, 0, 0, 2 / 4, math.log(9), 0], abs=1e-5)
    assert signs[3].tolist() == pytest.approx([math.log(1.5), 1, 0, 0, 0, 2 / 4, math.log(9), 1 / 2], abs=1e-5)
    beside = signs_of(canvas_of([1, 1, 1]), torch.ones(1, 3).bool(), torch.tensor([[0.2, 0.5, 0.7]]))[0]
    assert beside[1, 3:5].tolist() == pytest.approx([0.2, 0.7])
    assert beside[0, 3:5].tolist() == pytest.approx([0.0, 0.5])


def test_a_schedule_is_stored_weight_for_weight():
    torch.manual_seed(0)
    schedule = Schedule()
    for parameter in schedule.parameters():
        torch.nn.init.normal_(parameter)
    weights = schedule.weights()
    assert len(weights) == NUM_WEIGHTS
    signs = torch.randn(3, 7, 8)
    again = LearnedConfig(weights=weights).build().schedule
    assert torch.equal(again(signs), schedule(signs))
    assert torch.equal((Schedule()(signs) > 0), signs[..., 0] > math.log(9))
    for wrong in (weights[:-1], (*weights[:-1], math.nan), (*weights[:-1], math.inf)):
        with pytest.raises(ConfigError, match=f"has {NUM_WEIGHTS} weights"):
            LearnedConfig(weights=wrong)
