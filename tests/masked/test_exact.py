"""Decoding against denoisers that are exact: the samplers that say so write the joint they were told, at any budget."""

from itertools import product

import pytest
import torch
from torch import Tensor

from manta.families.decoding import write_canvas
from manta.families.events import GenerateOptions
from manta.masked import (
    ConfidenceConfig,
    DecoderConfig,
    DeferredConfig,
    FirstHittingConfig,
    RemaskConfig,
    WordSampler,
    decode,
)

END, MASK, VOCAB = 0, 1, 4

CRITICAL = {3: 21.1, 7: 29.9, 11: 37.4}
"""Chi-square of which 1 in 10,000 is larger, by degrees of freedom."""


def generators(rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(rows)]


class Joint:
    """The exact denoiser of a joint distribution over short texts: each word's law given the words that stand."""

    def __init__(self, chance: dict[tuple[int, ...], float]) -> None:
        self.texts = torch.tensor(list(chance))
        self.chance = torch.tensor(list(chance.values()), dtype=torch.float64)

    def __call__(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        fits = ((tokens[:, None] == self.texts) | (tokens[:, None] == MASK)).all(2)
        weight = fits * self.chance
        words = torch.nn.functional.one_hot(self.texts, VOCAB).double()
        found = torch.einsum("bs,snv->bnv", weight, words) / weight.sum(1)[:, None, None]
        return found.log().float()[:, start:stop]

    def misfit(self, tokens: Tensor) -> float:
        """Chi-square of written texts."""
        counts = (tokens[:, None] == self.texts).all(2).sum(0)
        assert counts.sum() == len(tokens), "every text is one of the joint's"
        expected = self.chance / self.chance.sum() * len(tokens)
        return float(((counts - expected) ** 2 / expected).sum())


def three_words() -> Joint:
    """Three words that hang together in no simple way."""
    shares = [0.20, 0.02, 0.03, 0.25, 0.05, 0.18, 0.17, 0.10]
    return Joint(dict(zip(product((2, 3), repeat=3), shares, strict=True)))


def chain() -> Joint:
    """A Markov chain of three words that likes to stay."""
    stay = {True: 0.8, False: 0.2}
    return Joint(
        {(a, b, c): (0.7 if a == 2 else 0.3) * stay[a == b] * stay[b == c] for a, b, c in product((2, 3), repeat=3)}
    )


ANCESTRAL: dict[str, DecoderConfig] = {
    "first hitting": FirstHittingConfig(),
    "random order, a call a word": ConfidenceConfig(order="random", num_steps=3),
    "remask, many steps": RemaskConfig(eta=0.0, num_steps=40),
}


@pytest.mark.parametrize("joint", [three_words, chain])
@pytest.mark.parametrize("name", ANCESTRAL)
def test_ancestral_samplers_write_the_joint(name, joint):
    rows, exact = 2000, joint()
    sampler = WordSampler(1.0, generators(rows), 3)
    policy = ANCESTRAL[name].build()
    *_, canvas = decode(exact, torch.full((rows, 3), MASK), policy, mask_id=MASK, sampler=sampler)
    assert exact.misfit(canvas.tokens) < CRITICAL[7]


def test_the_surest_first_does_not_write_the_joint_so_the_test_above_can_see():
    rows, exact = 2000, three_words()
    sampler = WordSampler(1.0, generators(rows), 3)
    policy = ConfidenceConfig(num_steps=3).build()
    *_, canvas = decode(exact, torch.full((rows, 3), MASK), policy, mask_id=MASK, sampler=sampler)
    assert exact.misfit(canvas.tokens) > 2 * CRITICAL[7]


INDEPENDENT: dict[str, DecoderConfig] = {
    "first hitting": FirstHittingConfig(),
    "random order": ConfidenceConfig(order="random", num_steps=6),
    "random order in blocks": ConfidenceConfig(order="random", num_steps=6, block_length=4),
    "remask, none taken back": RemaskConfig(eta=0.0, num_steps=10),
    "remask": RemaskConfig(eta=0.3, num_steps=10),
    "remask, loop": RemaskConfig(schedule="loop", eta=0.1, num_steps=10),
}


@pytest.mark.parametrize("name", INDEPENDENT)
@pytest.mark.parametrize("budget", [1, 2, 4, 7, None])
def test_independent_words_have_their_own_law_at_every_budget(name, budget):
    rows = 500
    chance = torch.tensor([0.0, 0.0, 0.7, 0.3])
    sampler = WordSampler(1.0, generators(rows), 12)
    *_, canvas = decode(
        lambda tokens, start, stop: chance.log().expand(len(tokens), stop - start, VOCAB).clone(),
        torch.full((rows, 12), MASK),
        INDEPENDENT[name].build(),
        mask_id=MASK,
        sampler=sampler,
        max_calls=budget,
    )
    assert float((canvas.tokens == 2).float().mean()) == pytest.approx(0.7, abs=0.024)  # four standard deviations


@pytest.mark.parametrize("config", [FirstHittingConfig(), ConfidenceConfig(order="random", num_steps=4)])
def test_places_are_drawn_alike_whatever_is_proposed_there(config):
    """Twelve places, of which some are sure and some are not: three of them a call, each as often as any other."""
    rows = 1200
    sure = torch.linspace(0.5, 0.99, 12)
    chance = torch.stack([torch.zeros(12), torch.zeros(12), sure, 1 - sure], 1)
    steps = [
        canvas.masked.clone()
        for canvas in decode(
            lambda tokens, start, stop: chance.log().expand(len(tokens), 12, VOCAB)[:, start:stop].clone(),
            torch.full((rows, 12), MASK),
            config.build(),
            mask_id=MASK,
            sampler=WordSampler(1.0, generators(rows), 12),
            max_calls=4,
        )
    ]
    assert [sorted(set(masked.sum(1).tolist())) for masked in steps] == [[9], [6], [3], [0]]
    counts = (~steps[0]).sum(0)
    # Three of twelve without repetition: the counts' variance is (1 − 3/12)·12/11 of that of independent draws.
    misfit = float(((counts - rows / 4) ** 2 / (rows / 4)).sum()) / (0.75 * 12 / 11)
    assert misfit < CRITICAL[11]


@pytest.mark.parametrize("config", [FirstHittingConfig(), RemaskConfig(eta=0.0)])
def test_a_text_of_a_drawing_sampler_ends_as_often_as_the_model_says(config):
    lengths = Joint({(END, END, END): 0.4, (2, END, END): 0.3, (2, 2, END): 0.2, (2, 2, 2): 0.1})
    rows = 1500
    settings = {"mask_id": MASK, "generators": generators(rows), "width": 3, "end_id": END, "ends_last": True}
    tokens, options = torch.full((rows, 3), MASK), GenerateOptions(temperature=1.0)
    *_, canvas = write_canvas(lengths, tokens, config, options, max_calls=30, **settings)
    assert lengths.misfit(canvas.tokens) < CRITICAL[3]


@pytest.mark.parametrize(
    ("config", "temperature", "waits"),
    [(FirstHittingConfig(), 1.0, False), (FirstHittingConfig(), 0.0, True), (DeferredConfig(), 1.0, True)],
)
def test_ends_wait_unless_words_and_places_are_drawn(monkeypatch, config, temperature, waits):
    asked = []

    def spy(*args, **settings):
        asked.append(settings["ends_last"])
        return iter(())

    monkeypatch.setattr("manta.families.decoding.decode", spy)
    settings = {"mask_id": MASK, "generators": generators(1), "width": 3, "end_id": END, "max_calls": 3}
    for ends_last in (True, False):
        options = GenerateOptions(temperature=temperature)
        write_canvas(chain(), torch.full((1, 3), MASK), config, options, ends_last=ends_last, **settings)
    assert asked == [waits, False]
