"""What a family cannot follow is refused by name, and logits that no word can be chosen from are an error."""

from dataclasses import fields
from typing import Any

import pytest
import torch

from manta.errors import ModelError, UsageError
from manta.families import FAMILIES, Family
from manta.families.aligned import AlignedLM
from manta.families.aligned_model import AlignedConfig, AlignedModel
from manta.families.asked import applicable, bounds, check_options, follows, listed
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel, log_likelihood
from manta.families.block import BlockCausalLM
from manta.families.block_model import BlockCausalConfig, BlockCausalModel
from manta.families.events import GenerateOptions
from manta.families.masked import MaskedLM
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.families.masked_objective import bound
from manta.families.options import MOST, Options, read_options
from manta.hub.foreign import KINDS
from manta.text import HUMAN, Batch

from .conftest import make_lm, random_weights

OTHER: dict[str, Any] = {
    "num_steps": 9,
    "style": "consensus",
    "solver": "heun",
    "guidance_scale": 2.0,
    "noise_scale": 0.3,
    "temperature": 0.7,
    "escape_scale": 1.0,
    "decoder": "block",
    "confidence": "margin",
    "threshold": 0.5,
    "block_length": 4,
    "block_steps": 3,
    "block_extension": 4,
    "extension_step": 2,
    "extension_below": 0.5,
    "ends_last": True,
    "window_masked": 3,
    "window_width": 5,
    "cache": "dual",
    "refresh": 4,
    "top_k": 3,
    "top_p": 0.5,
    "flow_steps": 1,
    "rounds": 1,
    "max_tokens": 5,
    "num_drafts": 3,
    "choose": 2,
    "choose_by": "likelihood",
    "strength": 0.3,
    "think": 2,
    "pattern": "a+",
    "schema": "{}",
    "fluency": 0.5,
}
"""A value of every option that is not its default."""


def make(family: str) -> Any:
    lm = make_lm()
    if family == "manta":
        return lm
    shape: dict[str, Any] = {"vocab_size": lm.tokenizer.vocab_size, "dim": 32, "heads": 2, "depth": 1, "max_text": 16}
    if family == "ar":
        model = AutoregressiveModel(AutoregressiveConfig(**shape))
        return AutoregressiveLM(random_weights(model) or model, lm.tokenizer)
    if family == "block":
        block = BlockCausalModel(BlockCausalConfig(**shape))
        return BlockCausalLM(random_weights(block) or block, lm.tokenizer)
    if family == "aligned":
        net = AlignedModel(AlignedConfig(**shape))
        return AlignedLM(random_weights(net) or net, lm.tokenizer)
    model = MaskedModel(MaskedConfig(**shape))
    return MaskedLM(random_weights(model) or model, lm.tokenizer)


@pytest.fixture(scope="module", params=["manta", "aligned", "masked", "block", "ar"])
def lm(request):
    return make(request.param)


def test_every_option_says_who_follows_it():
    known = {field.name for row in FAMILIES.values() for field in fields(row.options)}
    assert known == {field.name for field in fields(GenerateOptions)} == set(OTHER)
    assert tuple(name for name, row in FAMILIES.items() if row.writer is None) == KINDS


@pytest.mark.parametrize("option", OTHER)
def test_an_option_of_another_family_is_refused_by_name(lm, option):
    if follows(lm.family, option):
        return
    with pytest.raises(UsageError, match=rf"`{option}` means nothing to {FAMILIES[lm.family].words}"):
        lm.write(["the cat"], **{option: OTHER[option]})


def test_a_default_that_is_written_out_is_no_wish(lm):
    assert lm.write(["the cat"]) == lm.write(["the cat"], num_steps=8, style="diverse", top_p=1.0, decoder="")


def test_options_for_several_families_are_sorted():
    given = GenerateOptions(style="consensus", top_k=3, decoder="block", temperature=0.5)
    for family, mine in {
        "manta": ["style"],
        "aligned": ["top_k"],
        "masked": ["style", "decoder"],
        "ar": ["top_k"],
        "mdlm": ["decoder"],
    }.items():
        left, out = applicable(given, family)
        asked: dict[str, Any] = {name: OTHER[name] for name in mine} | {"temperature": 0.5}
        assert left == GenerateOptions(**asked) and set(out) == {"style", "top_k", "decoder"} - set(mine)
    assert applicable(given, "something else") == (given, ())


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("aligned", {"top_p": 0.5}, "top_p"),
        ("ar", {"top_p": 0.5}, "top_p` .* temperature 0"),
        ("ar", {"top_k": 2}, "top_k` .* temperature 0"),
        ("masked", {"refresh": 3}, "refresh` .* for a cache"),
        ("masked", {"decoder": "remask", "confidence": "margin"}, "remask decoder draws .* deferred, confidence"),
        ("masked", {"decoder": "first_hitting", "threshold": 0.3}, "no setting threshold; it is for deferred"),
        ("masked", {"decoder": "threshold", "cache": "dual"}, "cache saves nothing"),
        ("masked", {"decoder": "confidence", "rounds": 2}, "no setting rounds; it is for deferred"),
        ("manta", {"solver": "heun", "flow_steps": 0}, "solver` .* for the flow"),
    ],
)
def test_an_option_that_another_makes_void_is_refused(family, options, words):
    with pytest.raises(UsageError, match=words):
        make(family).write(["the cat"], **options)


@pytest.mark.parametrize(
    "wrong",
    [
        {name: value}
        for name in ("temperature", "noise_scale", "guidance_scale", "escape_scale", "threshold", "top_p")
        for value in (float("nan"), float("inf"), "warm", True)
    ]
    + [{"num_steps": 10**9}, {"num_steps": 2.5}, {"num_steps": True}, {"style": "odd"}, {"style": ["diverse"]}]
    + [{"max_tokens": 10**9}, {"window_width": 0}, {"rounds": -1}, {"refresh": -1}, {"cache": None}],
)
def test_a_value_out_of_range_or_of_another_type_is_refused_by_name(wrong):
    [name] = wrong
    with pytest.raises(UsageError, match=rf"^`{name}` should be"):
        unchecked(wrong).__post_init__()


def test_an_integer_is_a_number():
    options = unchecked({"temperature": 1})
    options.__post_init__()
    assert isinstance(options.temperature, float) and options.temperature == 1


def unchecked(values: dict) -> GenerateOptions:
    """Options past the types that the tests check on their own."""
    options = GenerateOptions()
    for name, value in values.items():
        object.__setattr__(options, name, value)
    return options


@pytest.mark.parametrize("temperature", [1e-4, 1e-20, 1e-40, 5e-324])
def test_a_temperature_near_zero_takes_the_likeliest_words(lm, temperature):
    greedy = lm.write(["the cat", None], seed=3)
    assert lm.write(["the cat", None], seed=3, temperature=temperature) == greedy


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["trunk", "length"])
def test_logits_that_are_not_finite_are_an_error_that_names_the_call(lm, value, part):
    damaged = make(lm.family)
    if part == "length" and damaged.family in ("ar", "block"):
        return
    net = damaged.model
    trunk = net.field.trunk if damaged.family == "manta" else net.trunk
    weight = trunk.norm.weight if part == "trunk" and hasattr(trunk.norm, "weight") else None
    if weight is None:
        weight = net.length[2].weight if part == "length" else next(iter(trunk.parameters()))
    with torch.no_grad():
        weight.fill_(value)
    trials: tuple[dict[str, Any], ...] = (
        ({}, {"temperature": 1.0}) if damaged.family in ("ar", "aligned", "block") else ({}, {"style": "consensus"})
    )
    for options in trials:
        with pytest.raises(ModelError, match=r"logits of network call [12] are not finite"):
            damaged.write(["the cat"], **options)


def test_likelihoods_that_are_not_finite_are_an_error():
    rows = torch.tensor([[5, 6, 7]])
    zero, three = torch.zeros(1, dtype=torch.long), torch.tensor([3])
    batch = Batch(prompt=rows[:, :0], text=rows, tag=zero + HUMAN, index=zero, prompt_lengths=zero, text_lengths=three)
    for family, measure in {
        "ar": lambda model: log_likelihood(model, batch),
        "masked": lambda model: bound(model, batch, [torch.Generator().manual_seed(0)], num_samples=2),
    }.items():
        model = make(family).model
        measure(model)
        with torch.no_grad():
            next(iter(model.trunk.parameters())).fill_(torch.nan)
            with pytest.raises(ModelError, match="likelihood of text 0 is not finite"):
                measure(model)


@pytest.mark.parametrize("name", ["guidance_scale", "noise_scale", "escape_scale", "fluency"])
def test_a_factor_that_would_make_states_no_numbers_is_refused(name):
    assert getattr(read_options({name: 100.0}), name) == 100
    with pytest.raises(UsageError, match=rf"`{name}` should be at most 100, received 1e\+308"):
        read_options({name: 1e308})


def test_a_number_may_be_as_large_as_is_said_and_no_larger():
    assert GenerateOptions(num_steps=MOST).num_steps == MOST
    with pytest.raises(UsageError, match="at most 1,000,000, received 1000001"):
        GenerateOptions(num_steps=MOST + 1)
    assert (GenerateOptions(temperature=0.0).temperature, GenerateOptions(max_tokens=1).max_tokens) == (0, 1)


def test_names_are_listed_in_a_sentence():
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_who_takes_a_decoder_is_told_and_no_one_else():
    taken: tuple[tuple[str, Any, str], ...] = (
        ("ar", "block", "masked models, block-causal models and published masked models"),
        ("masked", "aligned", "aligned models"),
        ("llada", "sequential", "aligned models, autoregressive models and published causal models"),
    )
    for family, decoder, others in taken:
        with pytest.raises(UsageError, match=rf"^the {decoder} decoder means nothing to .* it is for {others}; leave"):
            check_options(GenerateOptions(decoder=decoder), family)


def test_a_bound_is_named_to_those_alone_who_follow_one(monkeypatch):
    with pytest.raises(UsageError, match=r"leave it out, and bound the text with `max_tokens`$"):
        check_options(GenerateOptions(num_steps=3), "ar")
    monkeypatch.setattr("manta.families.asked.FAMILIES", {**FAMILIES, "plain": Family(words="others", options=Options)})
    with pytest.raises(UsageError, match=r"leave it out$"):
        check_options(GenerateOptions(num_steps=3), "plain")


def test_a_text_is_bounded_by_those_who_do_not_decide_its_length():
    plain, alone = GenerateOptions(), GenerateOptions(decoder="sequential")
    assert {name for name in FAMILIES if bounds(name, plain)} == set(FAMILIES) - {"manta", "masked", "aligned"}
    for decoder in ("sequential", "verified"):
        assert bounds("aligned", GenerateOptions(decoder=decoder))
    assert not bounds("aligned", GenerateOptions(decoder="aligned")) and not bounds("masked", alone)
    assert bounds("ar", alone) and bounds("something else", plain)


def test_options_that_another_makes_void_are_told_apart_from_those_that_stand():
    cuts: tuple[dict[str, Any], ...] = ({"top_k": 3}, {"top_p": 0.5})
    for cut in cuts:
        [name] = cut
        with pytest.raises(UsageError, match=f"^`{name}` cuts"):
            check_options(GenerateOptions(**cut), "ar")
        check_options(GenerateOptions(**cut, temperature=0.7), "ar")
    with pytest.raises(UsageError, match=r"^`choose_by` is for choosing"):
        check_options(GenerateOptions(choose_by="likelihood"), "ar")
    check_options(GenerateOptions(choose_by="likelihood", choose=2), "ar")
    check_options(GenerateOptions(choose=2), "ar")
    with pytest.raises(UsageError, match=r"^`refresh` is for a cache"):
        check_options(GenerateOptions(refresh=3), "masked")
    check_options(GenerateOptions(refresh=3, cache="dual"), "masked")
    check_options(GenerateOptions(cache="dual"), "masked")


@pytest.mark.parametrize("family", ["manta", "masked", "aligned"])
def test_lengths_are_told_by_the_first_call(family):
    lm = make(family)
    with torch.no_grad():
        lm.model.length[2].weight.fill_(torch.nan)
    with pytest.raises(ModelError, match=r"logits of network call 1 are not finite"):
        lm.write("the cat")
