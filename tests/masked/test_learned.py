"""The learned schedule: what it begins as, what it sees of a place, and what it stores."""

import math

import pytest
import torch

from manta.errors import ConfigError
from manta.masked import Canvas, LearnedConfig, WordSampler
from manta.masked.learned import NUM_WEIGHTS, Learned, Schedule, signs_of


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


def decided(bias: float, drawn: bool = False, seed: int = 0) -> tuple[Learned, torch.Tensor]:
    """What a policy that says the same everywhere commits of a row whose third place is the surest; one is not open."""
    schedule = Schedule()
    with torch.no_grad():
        schedule.last.bias.fill_(bias)
    policy = Learned(schedule, drawn=drawn)
    canvas = canvas_of([1, 1, 1, 1, 9])
    canvas.masked[0, 4] = canvas.writable[0, 4] = False
    open_ = torch.tensor([[True, True, True, False, False]])
    sure = torch.tensor([[0.5, 0.5, 0.7, -math.inf, -math.inf]])
    generators = [torch.Generator().manual_seed(seed)]
    return policy, policy.choose(canvas, open_, sure, WordSampler(1.0, generators, 6))


def test_the_surest_word_is_committed_whatever_the_policy_says_and_others_where_it_does():
    assert decided(-9.0)[1].tolist() == [[False, False, True, False, False]]
    assert decided(9.0)[1].tolist() == [[True, True, True, False, False]]
    # The threshold rule alone says −4 of a confidence of a half: a bias of 4 brings it to 0, which is not above it.
    assert decided(4.0)[1].tolist() == [[False, False, True, False, False]]
    assert LearnedConfig().build().drawn is False


def test_what_is_drawn_is_noted_with_what_was_seen_and_follows_the_policys_chance():
    counts = torch.zeros(3)
    for seed in range(600):
        policy, commit = decided(3.5, drawn=True, seed=seed)  # −4 + 3.5 at the first two, by the rule, of a half
        [(signs, chosen, asked)] = policy.steps
        assert signs.shape == (1, 5, 8) and asked.tolist() == [[True, True, False, False, False]]
        assert torch.equal(commit[0, :2], chosen[0, :2]) and commit[0, 2] and not commit[0, 3:].any()
        counts += chosen[0, :3]
    chance = 1 / (1 + math.exp(0.5))
    assert counts[:2].div(600).tolist() == pytest.approx([chance] * 2, abs=0.07)


def test_the_rule_that_learning_begins_with():
    """Twice the distance of the logit from that of 0.9, between −4 and 4."""
    signs = torch.zeros(4, 8)
    signs[:, 0] = torch.tensor([0.9, 0.95, 0.999, 0.1]).logit()
    told = Schedule()(signs)
    assert told.tolist() == pytest.approx([0.0, 2 * (math.log(19) - math.log(9)), 4.0, -4.0], abs=1e-5)
    with pytest.raises(ConfigError):
        LearnedConfig(weights=(*Schedule().weights()[:-1], 1e6))
    assert LearnedConfig(weights=(*Schedule().weights()[:-1], 999_999.0)).build()
    assert not Schedule().last.weight.any() and not Schedule().last.bias.any()


def test_signs_of_two_rows_are_those_of_each_alone():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 2, (2, 7), generator=generator)
    writable = torch.rand(2, 7, generator=generator) < 0.8
    canvas = Canvas(tokens, writable, writable & (tokens == 1), torch.ones(2, 7, dtype=torch.float64))
    open_ = canvas.masked & (torch.rand(2, 7, generator=generator) < 0.8)
    sure = torch.rand(2, 7, generator=generator).masked_fill(~open_, -math.inf)
    both = signs_of(canvas, open_, sure)
    for row in range(2):
        places = open_[row].nonzero()[:, 0].tolist()
        for place in places:
            chance = {p: float(sure[row, p]) for p in places}
            held = [not bool(canvas.masked[row, p]) if 0 <= p < 7 else False for p in (place - 1, place + 1)]
            shown = [chance.get(p, 0.0) for p in (place - 1, place + 1)]
            surer = sum(chance[p] > chance[place] for p in places) / len(places)
            share, best = len(places) / int(canvas.total[row]), max(chance.values())
            logits = [math.log(c / (1 - c)) for c in (chance[place], best)]
            expected = [logits[0], *map(float, held), *shown, share, logits[1], surer]
            assert both[row, place].tolist() == pytest.approx(expected, abs=1e-4)
    nowhere = signs_of(canvas, torch.zeros_like(open_), torch.full((2, 7), -math.inf))
    assert nowhere.isfinite().all() and (nowhere[..., 6] == -10).all() and not nowhere[..., 5].any()
    certain = signs_of(canvas_of([1]), torch.tensor([[True]]), torch.tensor([[1.0]]))
    assert float(certain[0, 0, 0]) == pytest.approx(math.log(9999), rel=1e-3)
