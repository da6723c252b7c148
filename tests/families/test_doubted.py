"""The calls of a training step of a masked model that thinks or doubts, followed one by one on a scripted net."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manta.families.masked_model import MaskedModel
from manta.families.masked_objective import _Calls
from manta.families.thinking import ThinkingConfig, Thought, Told
from manta.runtime import make_generator
from manta.text import MASK

from ..bounds import binomial_bounds

ROWS, WIDTH, LENGTH = 600, 32, 28
OTHER, LIKELY, RARE, VOCAB = 5, 7, 8, 9
HIDDEN = (torch.rand(ROWS, WIDTH, generator=make_generator(1)) < 0.8) & (torch.arange(WIDTH) < LENGTH)
REAL = (torch.arange(WIDTH) < LENGTH).expand(ROWS, -1)
RIGHT = torch.linspace(-2, 3, WIDTH)


class Scripted(MaskedModel):
    """Tells 7 with a probability of 0.6 and 8 with one of 0.4 everywhere; how right a word is, by its place alone."""

    def __init__(self, **thinking: Any) -> None:
        nn.Module.__init__(self)
        self.config: Any = SimpleNamespace(elastic=False)
        self.thinking: Any = SimpleNamespace(config=ThinkingConfig(doubts=True, **thinking))
        self.logits = torch.full((VOCAB,), -torch.inf)
        self.logits[[LIKELY, RARE]] = torch.tensor([0.6, 0.4]).log()
        self.calls: list[tuple[Tensor, Thought | None, bool]] = []
        self.right = nn.Parameter(RIGHT.clone())

    def think(self, shown, mask, memory, thought=None) -> Told:
        self.calls.append((shown, thought, torch.is_grad_enabled()))
        slots = torch.full((len(shown), 2, 4), float(len(self.calls)), requires_grad=torch.is_grad_enabled())
        return Told(self.logits.expand(*shown.shape, -1), slots, self.right.expand(*shown.shape), None)


def doubted(word: int, net: Scripted, seed: int = 3, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """The loss where every word is right that is `word`, and what the first call was shown."""
    tokens = torch.full((rows, WIDTH), word)
    shown = tokens.masked_fill(HIDDEN[:rows], MASK)
    calls: Any = _Calls(net, REAL[:rows], REAL[:rows], (), make_generator(seed))
    calls.shown, calls.told = shown, net.think(shown, REAL[:rows], ())
    return calls.doubt(tokens), shown


@pytest.fixture(scope="module")
def followed() -> tuple[Tensor, Tensor, Tensor, Tensor, Scripted]:
    net = Scripted()
    loss, shown = doubted(OTHER, net)
    (_, (first, _, _), (second, _, _)) = net.calls
    return loss, shown, first, second, net


def test_words_are_written_where_some_were_hidden_and_nowhere_else(followed):
    _, shown, first, second, _ = followed
    assert torch.equal(first[~HIDDEN], shown[~HIDDEN]) and torch.equal(second[~HIDDEN], shown[~HIDDEN])
    assert set(first[HIDDEN].unique().tolist()) == {MASK, LIKELY, RARE}
    kept = first != MASK
    assert torch.equal(second[kept], first[kept]), "what is written stays"
    share = (kept & HIDDEN).sum(1) / HIDDEN.sum(1)
    assert 0.45 < float(share.mean()) < 0.55 and 0.26 < float(share.std()) < 0.33, "each row by a share of its own"
    outside = Scripted()
    tokens = torch.full((4, WIDTH), MASK)
    calls: Any = _Calls(outside, REAL[:4], REAL[:4], (), make_generator(0))
    calls.shown, calls.told = tokens, outside.think(tokens, REAL[:4], ())
    calls.doubt(torch.full((4, WIDTH), OTHER))
    assert (outside.calls[-1][0][:, LENGTH:] == MASK).all(), "off the canvas nothing is written"


def test_half_of_the_rows_are_written_greedily_and_the_others_are_drawn(followed):
    _, _, first, second, _ = followed
    words = ((second == LIKELY).sum(1), (second == RARE).sum(1))
    many = words[0] + words[1] >= 16
    drawn = words[1][many] > 0
    low, high = binomial_bounds(int(many.sum()), 0.5)
    assert low <= int(drawn.sum()) <= high
    rare = (words[1][many][drawn] / (words[0] + words[1])[many][drawn]).mean()
    assert 0.37 < float(rare) < 0.43
    assert ((first == RARE).any(1) <= (second == RARE).any(1)).all()


def test_a_third_of_the_rows_is_shown_right_words_and_half_of_them_all(followed):
    _, _, first, second, _ = followed
    open_ = first == MASK
    open_[:, LENGTH:] = False
    many = open_.sum(1) >= 12
    filled = open_ & (second != MASK)
    some = filled.any(1) & many
    revealed = ((second == OTHER) & open_).any(1)
    low, high = binomial_bounds(int(some.sum()), 1 / 3)
    assert low <= int((revealed & some).sum()) <= high
    assert torch.equal((second == OTHER)[revealed] & filled[revealed], filled[revealed]), "of a row all or none"
    whole = (filled == open_).all(1)
    low, high = binomial_bounds(int(many.sum()), 0.5 + 0.5 / 24)
    assert low - 10 <= int((whole & many).sum()) <= high + 10
    share = (filled.sum(1) / open_.sum(1).clamp_min(1))[many & ~whole]
    assert 0.4 < float(share.mean()) < 0.55


@pytest.mark.parametrize("word", [OTHER, LIKELY])
def test_the_loss_is_the_mean_over_the_models_own_words(followed, word):
    """Which of them are its own does not depend on which is right: the draws are the same."""
    loss, _, first, second, _ = followed
    revealed = ((second == OTHER) & (first == MASK)).any(1, keepdim=True)
    own = HIDDEN & ((first != MASK) | ((second != MASK) & ~revealed))
    found = loss if word == OTHER else None
    if found is None:
        found, _ = doubted(LIKELY, Scripted())
    right = ((second == word) & own)[own].float()
    expected = F.binary_cross_entropy_with_logits(RIGHT.expand(ROWS, -1)[own], right)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-5)


def test_nothing_written_costs_nothing():
    net, tokens = Scripted(), torch.full((3, WIDTH), OTHER)
    calls: Any = _Calls(net, REAL[:3], REAL[:3], (), make_generator(0))
    calls.shown, calls.told = tokens, net.think(tokens, REAL[:3], ())
    assert float(calls.doubt(tokens).detach()) == 0


@pytest.mark.parametrize("thinking", [{}, {"carry": True}, {"slots": 2}])
def test_what_a_model_hands_on_is_handed_on_and_only_the_last_call_learns(thinking):
    net = Scripted(**thinking)
    doubted(OTHER, net, rows=4)
    (_, before, _), (_, middle, learns), (_, last, at_last) = net.calls
    assert before is None and not learns and at_last
    if not thinking:
        assert middle is None and last is None
        return
    assert middle is not None and last is not None
    assert (middle.slots == 1).all() and (last.slots == 2).all()
    assert not middle.slots.requires_grad and not last.slots.requires_grad


def earlier(net: Scripted, steps: int) -> list[tuple[Tensor, Tensor | None]]:
    """What the calls of some steps are shown, and what the earlier ones before them."""
    found: list[tuple[Tensor, Tensor | None]] = []
    free = REAL & (torch.arange(WIDTH) >= 3)
    generator = make_generator(5)
    shown = torch.full((ROWS, WIDTH), OTHER).masked_fill(HIDDEN & free, MASK)
    for _ in range(steps):
        net.calls.clear()
        calls: Any = _Calls(net, free[:9], REAL[:9], (), generator)
        assert torch.equal(calls(shown[:9]), net.logits.expand(9, WIDTH, -1))
        assert calls.shown is net.calls[-1][0] and torch.equal(calls.shown, shown[:9])
        found.append((shown[:9], net.calls[0][0] if len(net.calls) == 2 else None))
        assert (net.calls[-1][1] is None) == (len(net.calls) == 1)
    return found


@pytest.mark.parametrize("thinking", [{"carry": True}, {"slots": 2}])
def test_in_half_of_the_steps_a_call_with_as_many_words_hidden_or_more_comes_before(thinking):
    net = Scripted(**thinking)
    found = earlier(net, 120)
    before = [(shown, first) for shown, first in found if first is not None]
    low, high = binomial_bounds(120, 0.5)
    assert low <= len(before) <= high
    more = torch.cat([((first == MASK) & (shown != MASK)) for shown, first in before])
    free = torch.cat([(shown != MASK) for shown, _ in before])
    free[:, :3] = free[:, LENGTH:] = False
    assert not more[~free].any() and all(bool((first[shown == MASK] == MASK).all()) for shown, first in before)
    rows = free.sum(1) >= 3
    share = (more.sum(1) / free.sum(1).clamp_min(1))[rows]
    hiding = share > 0
    assert 0.37 < float(hiding.float().mean()) < 0.5, "half of the rows, less those whose share hid nothing"
    assert 0.5 < float(share[hiding].mean()) < 0.65


def test_an_earlier_call_learns_by_its_slots_alone():
    for thinking, learns in (({"carry": True}, False), ({"slots": 2}, True)):
        net = Scripted(**thinking)
        calls: Any = _Calls(net, REAL[:9], REAL[:9], (), make_generator(0))
        calls._earlier(torch.full((9, WIDTH), MASK))
        with torch.no_grad():
            calls._earlier(torch.full((9, WIDTH), MASK))
        assert [call[2] for call in net.calls] == [learns, False]
    plain = Scripted()
    assert all(first is None for _, first in earlier(plain, 8)), "who hands nothing on has no earlier call"
