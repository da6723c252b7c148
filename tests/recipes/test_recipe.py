"""A recipe's derived settings: what is set by hand stays, whatever its value; what is left alone fits together."""

import json
from dataclasses import replace
from typing import Any

import pytest

from manta.config import Unset, apply_overrides, from_dict, to_dict
from manta.errors import ConfigError
from manta.families.autoregressive import AutoregressiveConfig
from manta.families.masked import MaskedConfig
from manta.families.model import MantaConfig
from manta.operators import AttentionConfig, AttentionFourierConfig, WindowedConfig
from manta.recipes.recipe import SIZES, Recipe, resolve
from manta.spaces import LatentSpaceConfig


@pytest.mark.parametrize(
    ("setting", "value"), [("model.max_text", 128), ("model.max_prompt", 128), ("teacher.prompt_depth", 2)]
)
def test_a_value_set_by_hand_stays_though_it_is_the_default(setting, value):
    """By a file, by Python and by an override."""
    net, name = setting.split(".")
    base: dict[str, Any] = {"size": "nano", "model": {"prompt_depth": 3}}
    plain = from_dict(Recipe, base)
    found = [
        from_dict(Recipe, {**base, net: {**base.get(net, {}), name: value}}),
        replace(plain, **{net: replace(getattr(plain, net), **{name: value})}),
        apply_overrides(plain, [f"{setting}={value}"]),
    ]
    for recipe in found:
        assert getattr(getattr(resolve(recipe), net), name) == value
    assert getattr(getattr(resolve(plain), net), name) != value, "left alone, it is derived"


def test_places_and_lengths_set_by_hand_stay_on_a_structured_task():
    recipe = Recipe(data="builtin:sudoku4", absolute_places=False, max_prompt=64, max_text=96)
    found = resolve(recipe)
    assert (found.absolute_places, found.max_prompt, found.max_text) == (False, 64, 96)
    derived = resolve(Recipe(data="builtin:sudoku4"))
    assert derived.absolute_places and derived.model.absolute_places and derived.max_text < 96


@pytest.mark.parametrize("seed", [-1, 2**63 - 1, 2**70])
def test_a_seed_out_of_range_is_refused_at_once(seed):
    with pytest.raises(ConfigError, match="seed should lie between"):
        Recipe(seed=seed)


def test_masked_models_are_told_places_and_so_is_the_teacher_they_start_from():
    found = resolve(Recipe(family="masked", warm_start=True))
    assert found.masked.absolute_places and found.teacher.absolute_places
    assert not resolve(Recipe(family="masked", absolute_places=False)).masked.absolute_places
    assert not resolve(Recipe(family="manta")).model.absolute_places


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("operator", [AttentionConfig, AttentionFourierConfig, WindowedConfig])
def test_all_nets_of_a_size_have_its_heads(size, operator):
    recipe = Recipe(size=size, model=MantaConfig(operator=operator()), masked=MaskedConfig(operator=operator()))
    found, heads = resolve(recipe), SIZES[size][1]
    assert isinstance(found.model.space, LatentSpaceConfig)
    nets = [found.model.operator, found.masked.operator, found.model.space.operator, found.teacher, found.model]
    assert {net.heads for net in nets} == {heads}  # pyright: ignore[reportAttributeAccessIssue]
    taught = resolve(replace(recipe, family="ar", teacher=AutoregressiveConfig(operator=operator()))).teacher
    assert taught.operator == operator(heads=heads)
    by_hand = resolve(replace(recipe, model=MantaConfig(operator=operator(heads=4))))
    assert by_hand.model.operator.heads == 4  # pyright: ignore[reportAttributeAccessIssue]


def test_a_resolved_recipe_is_its_own_resolution_after_a_file():
    found = resolve(Recipe(size="large", num_steps=10))
    again = from_dict(Recipe, json.loads(json.dumps(to_dict(found))))
    assert resolve(again) == again == found
    assert not isinstance(again.model.max_text, Unset)
