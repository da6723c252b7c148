"""A target entropy is met with common seeds by the least guidance that can, or refused with what can be reached."""

import math
from collections.abc import Iterator

import pytest

from manta.errors import RequestError, UsageError
from manta.families.events import Event, GenerateOptions, Writer
from manta.metrics import meet_entropy, token_entropy


class Dice(Writer):
    """A model whose texts have known entropy: 1 + 2·temperature / guidance different words, each twice, by the seed."""

    family = "dice"

    def __init__(self, least: float = 1.0) -> None:
        self.least, self.seen = least, []

    def generate(self, requests, options=None, observer=None, *, batch_size=64) -> Iterator[Event]:
        options = options or GenerateOptions()
        self.seen.append(([request.seed for request in requests], options))
        for index, request in enumerate(requests):
            words = (self.least + 40 * options.temperature) / options.guidance_scale
            words = int(words) + (request.seed * 0.618 % 1 < words % 1)
            text = " ".join(str(word) for word in range(max(1, words))) + " "
            yield Event("done", index, text * 2, (), 1.0, 1.0, 1)


PROMPTS = [f"prompt {i}" for i in range(50)]


@pytest.mark.parametrize("target", [1.0, 2.5, 3.7])
def test_the_temperature_found_gives_the_entropy(target):
    met = meet_entropy(Dice(), PROMPTS, target, seed=3)
    texts = Dice().write(PROMPTS, seed=3, temperature=met.options.temperature)
    assert token_entropy(texts) == met.entropy == pytest.approx(target, abs=0.02)
    assert met.options.temperature == pytest.approx((math.exp(target) - 1) / 40, rel=0.1)
    assert len(met.tried) <= 14 and met.entropy in [row.entropy for row in met.tried]


def test_every_temperature_writes_the_same_requests():
    model = Dice()
    meet_entropy(model, PROMPTS, 2.0, GenerateOptions(num_steps=5, temperature=0.9), seed=7)
    assert {tuple(seeds) for seeds, _ in model.seen} == {tuple(range(7, 57))}
    assert {options.num_steps for _, options in model.seen} == {5}
    assert len({options.temperature for _, options in model.seen}) == len(model.seen), "none is tried twice"


def test_an_end_that_meets_the_target_is_taken_at_once():
    model = Dice()
    assert meet_entropy(model, PROMPTS, 0.0).options.temperature == 0
    assert len(model.seen) == 1


def test_guidance_serves_where_temperature_zero_is_too_varied():
    """20 words at temperature 0: ln 10 takes twice the guidance, and more than needed is not taken."""
    met = meet_entropy(Dice(least=20), PROMPTS, math.log(10), guidance_scales=(1.0, 2.0, 3.0))
    assert (met.options.guidance_scale, met.options.temperature) == (2.0, 0.0)
    met = meet_entropy(Dice(least=20), PROMPTS, math.log(30), guidance_scales=(1.0, 2.0, 3.0))
    assert met.options.guidance_scale == 1.0
    met = meet_entropy(Dice(least=20), PROMPTS, math.log(8), guidance_scales=(1.0, 2.0, 3.0))
    assert met.options.guidance_scale == 3.0 and met.options.temperature > 0


@pytest.mark.parametrize(("target", "scales"), [(9.0, (1.0, 2.0)), (1.0, (1.0, 2.0))])
def test_out_of_reach_is_said_with_what_is_reached(target, scales):
    with pytest.raises(RequestError, match=r"\d\.\d\d \(temperature 0, guidance \d\)") as failure:
        meet_entropy(Dice(least=20), PROMPTS, target, guidance_scales=scales)
    assert f"{target:g} nats" in str(failure.value)


@pytest.mark.parametrize("wrong", [{"target": -1.0}, {"prompts": []}, {"temperatures": (1.0, 1.0)}])
def test_a_wrong_question_is_refused(wrong):
    with pytest.raises(UsageError, match="target"):
        meet_entropy(Dice(), **{"prompts": PROMPTS, "target": 1.0, **wrong})
