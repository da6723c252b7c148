"""What a training may be told at most and at least, and what its schedule comes to."""

import math
from typing import Any

import pytest
from torch import nn

from manta.errors import ConfigError
from manta.runtime import make_generator
from manta.training import Stage, TrainConfig

from .test_loop import Ones, pulling

ENDS: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...] = (
    ("learning_rate", (None, 1e-12, 100.0), (0.0, -1e-9, 100.1, math.nan)),
    ("warmup_share", (0.0, 0.999), (-1e-9, 1.0)),
    ("decay", ("linear", "cosine"), ("none",)),
    ("clip_norm", (1e-9, 1e9), (0.0, math.inf, math.nan)),
    ("weight_decay", (0.0, 5.0), (-1e-9, math.inf, math.nan)),
    ("betas", ((0.0, 0.0), (0.999, 0.9999)), ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, -0.1))),
    ("rounds", (1, 16), (0, 17)),
    ("round_share", (1e-9, 1.0), (0.0, 1.001)),
    ("round_choice", ("loss", "uniform"), ("best",)),
    ("round_temperature", (1e-9, 1e9), (0.0, math.inf)),
    ("round_elements", (None, 1), (0,)),
    ("accumulate", (1, 2), (0,)),
    ("average_share", (1e-9, 1.0), (0.0, 1.001)),
)


@pytest.mark.parametrize(("name", "right", "wrong"), ENDS)
def test_both_ends_of_what_may_be_said(name, right, wrong):
    for value in right:
        assert getattr(TrainConfig(**{name: value}), name) == value
    for value in wrong:
        with pytest.raises(ConfigError, match=name.split("_")[0]):
            TrainConfig(**{name: value})


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("num_steps", [2, 3, 50])
def test_a_schedule_comes_to_nothing_behind_its_last_step(decay, num_steps):
    config = TrainConfig(learning_rate=0.5, precision="float32", warmup_share=0.0, decay=decay)
    stage = Stage("s", nn.Linear(2, 1), pulling(1.0, 1.0), Ones(), num_steps, config, make_generator(0))
    assert stage.learning_rate(0) == stage.learning_rate(1) == 0.5
    assert stage.learning_rate(num_steps) == pytest.approx(0, abs=1e-12)
    if num_steps > 2:
        assert 0 < stage.learning_rate(num_steps - 1) < 0.5
