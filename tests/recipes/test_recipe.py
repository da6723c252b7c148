"""A recipe's derived settings: what is set by hand stays, whatever its value; what is left alone fits together."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from manta.config import apply_overrides, from_dict, to_dict
from manta.errors import ConfigError
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveModel
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.families.model import MantaConfig, MantaModel
from manta.families.prompted import DEFAULTS
from manta.operators import AttentionConfig, AttentionFourierConfig, WindowedConfig
from manta.recipes.recipe import SIZES, Recipe, resolve


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
    assert derived.absolute_places and derived.model.absolute_places and derived.lengths[1] < 96


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
    found, heads = resolve(replace(recipe, teacher=AutoregressiveConfig(operator=operator()))), SIZES[size][1]
    assert found.model.operator == operator(), "said once, in the model's shape"
    with torch.device("meta"):
        nets = [MantaModel(found.model), MaskedModel(found.masked), AutoregressiveModel(found.teacher)]
        by_hand = MantaModel(replace(found.model, operator=operator(heads=2)))
    assert {heads_of(net) for net in nets} == {frozenset({heads})}
    assert heads_of(by_hand.field) == {2, heads}, "its operators' own, and those that read the prompt"


def heads_of(net):
    """The numbers of heads of all its operators."""
    return frozenset(module.heads for module in net.modules() if hasattr(module, "heads"))


def test_a_net_takes_what_nothing_has_set_from_the_defaults():
    with torch.device("meta"):
        nets = [MantaModel(MantaConfig(heads=2)), MaskedModel(MaskedConfig(heads=2))]
    for net in nets:
        found = to_dict(net.config)
        assert {name: found[name] for name in DEFAULTS} == {**DEFAULTS, "heads": 2}
        assert all(weight.shape[-1] == 128 for name, weight in net.named_parameters() if "embedding" in name)
    with pytest.raises(ConfigError, match="dim should be a multiple of 2·heads = 8, received 36"):
        MaskedModel(MaskedConfig(dim=36))


def test_a_resolved_recipe_is_its_own_resolution_after_a_file():
    found = resolve(Recipe(size="large", num_steps=10))
    again = from_dict(Recipe, json.loads(json.dumps(to_dict(found))))
    assert resolve(again) == again == found


@pytest.mark.parametrize(
    "entry", ["dim=192", "heads=12", "depth=9", "vocab_size=2048", "prompt_depth=3", "max_prompt=200", "max_text=200"]
)
def test_none_on_the_command_line_leaves_a_number_to_be_derived(entry):
    plain = Recipe(size="nano")
    by_hand = apply_overrides(plain, [f"model.{entry}"])
    again = apply_overrides(by_hand, [f"model.{entry.split('=')[0]}=none"])
    assert again == plain and resolve(again) == resolve(plain) != resolve(by_hand)


@pytest.mark.parametrize("net", ["model", "masked", "teacher"])
def test_a_width_that_does_not_fit_the_derived_heads_is_refused_by_name(net):
    with pytest.raises(ConfigError, match=f"{net}: dim should be a multiple of 2·heads = 8, received 97"):
        resolve(apply_overrides(Recipe(size="nano"), [f"{net}.dim=97"]))


@pytest.mark.parametrize("word", ["x", "1.5", ""])
def test_what_is_no_number_is_refused_by_name(word):
    with pytest.raises(ConfigError, match=r"model\.depth should be an integer or none, received"):
        apply_overrides(Recipe(), [f"model.depth={word}"])


@pytest.mark.parametrize("name", ["dim", "heads", "depth"])
@pytest.mark.parametrize("value", [0, -1])
def test_no_net_has_nothing_of_a_kind(name, value):
    for net in ("model", "masked", "teacher"):
        with pytest.raises(ConfigError, match=f"{net}: {name} should be at least ., received {value}"):
            apply_overrides(Recipe(), [f"{net}.{name}={value}"])
    with pytest.raises(ConfigError, match="heads must be at least 1, received 0"):
        AttentionConfig(heads=0)
