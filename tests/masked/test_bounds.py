"""Both ends of every number that a decoder may be told."""

from typing import Any

import pytest

from manta.errors import ConfigError, UsageError
from manta.masked import (
    BlockConfig,
    CacheConfig,
    DeferredConfig,
    DoubtConfig,
    MaskedObjectiveConfig,
    ThresholdConfig,
    WordSampler,
)
from manta.masked.policies import RemaskConfig
from manta.runtime import make_generator

ENDS: tuple[tuple[Any, str, tuple[Any, ...], tuple[Any, ...]], ...] = (
    (CacheConfig, "refresh", (0, 1), (-1,)),
    (CacheConfig, "delay", (0, 1), (-1,)),
    (DoubtConfig, "least_right", (1e-9, 0.999), (0.0, 1.0)),
    (DoubtConfig, "rounds", (0, 1), (-1,)),
    (DeferredConfig, "rounds", (0, 1), (-1,)),
    (DeferredConfig, "share", (1e-9, 1.0), (0.0, 1.001)),
    (DeferredConfig, "window_masked", (1,), (0,)),
    (DeferredConfig, "window_width", (1,), (0,)),
    (ThresholdConfig, "factor", (None, 1e-9), (0.0,)),
    (ThresholdConfig, "block_length", (None, 1), (0,)),
    (BlockConfig, "block_length", (1,), (0,)),
    (RemaskConfig, "num_steps", (1,), (0,)),
    (RemaskConfig, "eta", (0.0, 1.0), (-1e-9, 1.001)),
    (RemaskConfig, "t_on", (0.051, 1.0), (0.05, 1.001)),
    (RemaskConfig, "t_off", (0.0, 0.549), (-1e-9, 0.55)),
    (RemaskConfig, "alpha_on", (1e-9, 0.999), (0.0, 1.0)),
    (MaskedObjectiveConfig, "least_share", (1e-9, 0.999), (0.0, 1.0)),
    (MaskedObjectiveConfig, "copies", (1, 2), (0,)),
)


@pytest.mark.parametrize(("made", "name", "right", "wrong"), ENDS, ids=lambda value: getattr(value, "__name__", ""))
def test_both_ends_of_what_may_be_said(made, name, right, wrong):
    for value in right:
        assert getattr(made(**{name: value}), name) == value
    for value in wrong:
        with pytest.raises(ConfigError, match=name):
            made(**{name: value})


def test_copies_are_one_with_complementary_masks_which_are_two():
    assert MaskedObjectiveConfig(complementary=True).times == 2 and MaskedObjectiveConfig(copies=3).times == 3
    with pytest.raises(ConfigError, match="copies"):
        MaskedObjectiveConfig(complementary=True, copies=2)


def test_a_temperature_is_finite_and_above_zero_has_generators():
    assert WordSampler(0.0).temperature == 0 and WordSampler(1e-9, [make_generator(0)]).temperature == 1e-9
    for temperature, generators in ((-1e-9, 1), (float("inf"), 1), (1e-9, 0)):
        with pytest.raises(UsageError, match="temperature"):
            WordSampler(temperature, [make_generator(0)] * generators)
