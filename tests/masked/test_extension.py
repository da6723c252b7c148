"""Blocks that reach on into the next one: what a block's end forces to be wrong is mended, within any budget."""

from typing import Any

import pytest
import torch
from torch import Tensor

from manta.errors import ConfigError
from manta.masked import Canvas, DeferredConfig, Extension, ExtensionConfig, WordSampler, decode

MASK, END, VOCAB, LENGTH = 1, 0, 12, 8


class Oracle:
    """Rows of words, some hard: told wrong, and unsure, until the next m words beside them are seen to stand."""

    def __init__(self, n: int, seeds: list[int], m: int = 1, hard: float = 0.3) -> None:
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.truth = torch.stack([torch.randint(2, VOCAB, (n,), generator=draw) for draw in draws])
        self.hard = torch.stack([torch.rand(n, generator=draw) < hard for draw in draws])
        self.m, self.begin, self.widths = m, 0, []

    def __call__(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        width, n = tokens.shape[1], self.truth.shape[1]
        self.widths.append(width)
        at = (self.begin + torch.arange(width)).clamp_max(n - 1)
        word, hard = self.truth[:, at], self.hard[:, at]
        # What no canvas holds does not stand; behind the text's end nothing is missing.
        stands = torch.nn.functional.pad((tokens != MASK) & (tokens != END), (0, self.m), value=False)
        stands[:, max(0, n - self.begin) :] = True
        sure = ~hard | torch.stack([stands[:, k : k + width] for k in range(1, self.m + 1)]).all(0)
        wrong = 2 + (word - 1) % (VOCAB - 2)
        chance = torch.where(sure, 1e-4, 0.08)[..., None].expand(*word.shape, VOCAB).clone()
        chance[..., [MASK, END]] = 1e-4
        chance.scatter_(-1, torch.where(sure, word, wrong)[..., None], torch.where(sure, 0.99, 0.2)[..., None])
        chance.scatter_(-1, torch.where(sure, wrong, word)[..., None], torch.where(sure, 1e-4, 0.08)[..., None])
        return chance.log()[:, start:stop]


def texts(oracle: Oracle, most: int, *, budget: int | None = None, temperature: float = 0.0, **window: Any):
    """Words, calls of each row and computed places of each row, block after block."""
    rows, n = oracle.truth.shape
    config = DeferredConfig(**{"window_masked": 16, "window_width": 32, **window})
    ahead = Extension(ExtensionConfig(most=most), config, rows, LENGTH, mask_id=MASK, end_id=END)
    words, calls, computed, ended = [], torch.zeros(rows).long(), torch.zeros(rows).long(), torch.zeros(rows).bool()
    for begin in range(0, n, LENGTH):
        oracle.begin = begin
        canvas = begun = ahead.begin(~ended, n - begin)
        sampler = WordSampler(temperature, [torch.Generator().manual_seed(begin) for _ in range(rows)], LENGTH + most)
        for canvas in decode(
            oracle,
            begun.tokens,
            config.build(),
            mask_id=MASK,
            sampler=sampler,
            end_id=END,
            max_calls=budget or ahead.calls,
            elastic=ahead,
        ):
            assert budget is None or canvas.calls <= budget
        ahead.settle(canvas)
        calls, computed = calls + canvas.calls_of, computed + ahead.computed
        assert not (canvas.tokens[:, :LENGTH] == MASK).any()
        words.append(canvas.tokens[:, :LENGTH])
        ended |= (words[-1] == END).any(1)
    return torch.cat(words, 1), calls, computed


def test_reaching_on_mends_what_a_blocks_end_forces_to_be_wrong():
    oracle = Oracle(40, list(range(20)))
    cut, _, _ = texts(oracle, 0)
    words, calls, _ = texts(oracle, 8)
    wrong, hard = (part.view(20, -1, LENGTH) for part in (cut != oracle.truth, oracle.hard))
    to_the_end = hard.flip(-1).cumprod(-1).flip(-1).bool()
    assert torch.equal(wrong[:, :-1, -1], hard[:, :-1, -1]) and not (wrong & ~to_the_end).any() and wrong.any()
    assert torch.equal(words, oracle.truth)
    assert int(calls.max()) <= 40 + 5 * 2


def test_without_an_extension_it_is_the_decoder_as_it_was():
    oracle = Oracle(32, [3, 4], m=2)
    words, calls, computed = texts(oracle, 0)
    assert set(oracle.widths) == {LENGTH}
    for row in range(2):
        for begin in range(0, 32, LENGTH):
            oracle.begin = begin
            alone = Oracle(32, [3 + row], m=2)
            alone.begin = begin
            blank = torch.full((1, LENGTH), MASK)
            steps = list(decode(alone, blank, DeferredConfig().build(), mask_id=MASK, sampler=WordSampler()))
            assert torch.equal(steps[-1].tokens[0], words[row, begin : begin + LENGTH])
            calls[row] -= steps[-1].calls
            computed[row] -= steps[-1].calls * LENGTH
    assert calls.tolist() == computed.tolist() == [0, 0]


@pytest.mark.parametrize("budget", [None, 2, 4])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_row_reaches_for_itself(budget, temperature):
    """Rows of few hard words beside rows of many: words, calls and places are those of each row alone."""
    seeds, settings = [0, 1, 2, 3], {"budget": budget, "temperature": temperature}
    together = texts(Oracle(40, seeds, m=2), 12, **settings)
    for row, seed in enumerate(seeds):
        alone = texts(Oracle(40, [seed], m=2), 12, **settings)
        assert [part[row].tolist() for part in together] == [part[0].tolist() for part in alone]


@pytest.mark.parametrize("budget", [1, 2, 3, 5])
@pytest.mark.parametrize("most", [0, 4, 16])
def test_a_budget_is_kept_and_nothing_beyond_the_block_is_forced(budget, most):
    oracle = Oracle(40, [5, 6, 7], hard=1.0, m=30)  # never sure, so that only a budget commits more than a word
    words, calls, _ = texts(oracle, most, budget=budget)
    assert not (words == MASK).any()
    assert (calls == budget * 5).all() if most == 0 else (calls <= budget * 5).all()


def laid(masked: list[int], least: float, *, extra: int = 0, most: int = 8, left: int = 5, **window: Any) -> int:
    """By how much a block of eight grows after a call before which these places were masked; one was written."""
    ahead = Extension(ExtensionConfig(most=most), DeferredConfig(**window), 1, LENGTH, mask_id=MASK, end_id=END)
    ahead.begin(torch.tensor([True]), 32)
    ahead.extra = torch.tensor([extra])
    place = torch.arange(LENGTH + extra)[None]
    open_ = torch.isin(place, torch.tensor(masked))
    tokens = torch.where(open_, MASK, 5)
    canvas = Canvas(tokens, open_, open_, torch.full(place.shape, torch.inf).double(), 9, calls=10 - left)
    ahead.bound(torch.zeros(1, 1, 1), canvas)
    wrote = open_ & (place == masked[0])
    canvas.tokens, canvas.masked = torch.where(wrote, 6, tokens), open_ & ~wrote
    canvas.confidence = torch.where(wrote, torch.tensor(least).double(), canvas.confidence)
    ahead.lay_out(canvas)
    grown = int(ahead.extra) - extra
    assert canvas.tokens.shape[1] == LENGTH + extra + grown
    assert canvas.tokens[0, masked[0]] == (MASK if grown else 6), "what led to it is taken back"
    assert canvas.tokens[0, LENGTH + extra :].tolist() == [MASK] * grown
    return grown


def test_when_a_block_grows():
    assert laid([6, 7], 0.29) == 4
    assert laid([6, 7], 0.3) == 0, "sure enough"
    assert laid([6, 7], 0.1, extra=4) == 4 and laid([6, 7], 0.1, extra=8) == 0, "no further than the most"
    assert laid([6, 7], 0.1, extra=4, most=6) == 2
    assert laid([4, 6, 7], 0.1, window_masked=3) == 0 and laid([6, 7], 0.1, window_masked=3) == 4, "s_init is the limit"
    assert laid([3, 7], 0.1, window_width=5) == 0 and laid([4, 7], 0.1, window_width=5) == 4, "s_max is the limit"
    assert laid([6, 7], 0.1, left=1) == 0, "no call is left in which to use it"


def test_what_was_reached_is_given_to_the_next_block_with_its_confidence():
    ahead = Extension(ExtensionConfig(most=4), DeferredConfig(), 2, 4, mask_id=MASK, end_id=END)
    ahead.begin(torch.tensor([True, True]), 12)
    ahead.extra = torch.tensor([4, 0])
    tokens = torch.tensor([[5, 6, 7, 8, MASK, 9, END, END], [5, 6, 7, 8, END, END, END, END]])
    sure = torch.arange(16).view(2, 8).double() / 16
    canvas = Canvas(tokens, tokens > 0, torch.zeros(2, 8).bool(), sure)
    ahead.settle(canvas)
    following = ahead.begin(torch.tensor([True, True]), 8)
    assert following.tokens.tolist() == [[MASK, 9, END, END], [MASK] * 4], "filling is no word"
    assert following.masked.tolist() == [[True, False, False, False], [True] * 4]
    following.confidence = torch.full((2, 4), 0.9, dtype=torch.float64)
    ahead.settle(following)
    assert following.confidence[0].tolist() == [0.9, *sure[0, 5:].tolist()]
    assert following.confidence[1].tolist() == [0.9] * 4
    assert ahead.begin(torch.tensor([True, False]), 4).tokens.tolist() == [[END] * 4, [END] * 4], "behind an end"


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"most": -1}, {"step": 0}):
        with pytest.raises(ConfigError, match="received"):
            ExtensionConfig(**wrong)
