"""A text's own noise stands at the beginning of its path, where it has any."""

import torch

from manta.autoregressive.quantile import words_of_noise
from manta.families.coupling import Coupling
from manta.families.objectives import ObjectiveConfig, OwnStates, PolicyMatching
from manta.runtime import make_generator
from manta.spaces import LatentSpaceConfig, RateController

from .conftest import make_ar, make_lm
from .test_objectives import make_batch


def test_the_noise_of_a_text_gives_it_back():
    teacher, batch = make_ar().model, make_batch([9, 14, 20, 6])
    free = torch.tensor([True, True, True, False])
    noise = Coupling(teacher)(batch, free, (4, 6, 6), make_generator(0))
    assert noise.shape == (4, 6, 6) and bool(noise[..., 4:].isnan().all())
    codes = noise[..., :4].reshape(4, 24)
    given, _, _ = teacher.shifted(batch)
    human = torch.zeros_like(batch.tag)
    with torch.no_grad():
        logits = teacher(given, teacher.memory(batch.prompt, batch.prompt_lengths, human))
    for row, length in enumerate([9, 14, 20, 6]):
        own = codes[row, :length]
        coupled = bool(free[row]) and batch.tag[row] == 0
        assert bool(own.isfinite().all()) == coupled and bool(codes[row, length:].isnan().all())
        if coupled:
            chance = logits[row, :length].softmax(-1).gather(-1, batch.text[row, :length, None])[:, 0]
            again, told = words_of_noise(logits[row, :length], own), chance > 1e-4
            assert int(told.sum()) > 3 and torch.equal(again[told], batch.text[row, :length][told])


def test_only_the_noise_changes_and_of_texts_that_have_one():
    lm, batch = make_lm(), make_batch([9, 14, 20, 6])
    teacher = make_ar().model
    config, controller = ObjectiveConfig(blank_share=0.0), RateController(LatentSpaceConfig().information)

    def loss(coupling, tag):
        batch.tag.fill_(tag)
        matching = PolicyMatching(config, lm.density, controller, coupling)
        with torch.no_grad():
            return float(matching(lm.model, batch, make_generator(0)).total)

    class Nothing(Coupling):
        def __call__(self, *given):
            return torch.full_like(super().__call__(*given), torch.nan)

    assert loss(Nothing(teacher), 0) != loss(Coupling(teacher), 0)
    assert loss(Nothing(teacher), 1) == loss(Coupling(teacher), 1), "answers are no draws of the teacher"


def test_states_of_its_own_begin_at_the_same_noise():
    lm, batch = make_lm(), make_batch([9, 14])
    batch.tag.fill_(0)
    config = ObjectiveConfig(own_share=1.0)
    plain = PolicyMatching(config, lm.density, RateController(LatentSpaceConfig().information))
    coupled = PolicyMatching(config, lm.density, plain.controller, Coupling(make_ar().model))
    with torch.no_grad():
        totals = [float(OwnStates(config, m)(lm.model, batch, make_generator(3)).total) for m in (plain, coupled)]
    assert totals[0] != totals[1]
