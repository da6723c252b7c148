"""How a text is written, call by call: what the policy is shown, what is settled when, and what a budget buys."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.errors import UsageError
from manta.families.events import Event, GenerateOptions, Request
from manta.families.manta_lm import MantaLM, Split
from manta.families.page import Page
from manta.flow.time_density import TimeDensityConfig
from manta.nets.vector_field import Condition
from manta.text import MASK, NULL
from manta.types import Estimate

from ..bounds import binomial_bounds
from .conftest import make_lm

CONSENSUS = {"style": "consensus"}
"""Without a draw of the length, the first draws of a request's generator are its noise."""


class Watch:
    """What the policy of a model was asked and what it answered, call by call."""

    def __init__(self, lm: MantaLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states: list[torch.Tensor] = []
        self.times: list[torch.Tensor] = []
        self.conditions: list[Condition] = []
        self.fed_back: list[torch.Tensor | None] = []
        self.actions: list[Estimate] = []
        self.encoded: list[torch.Tensor] = []
        self.settled: list[torch.Tensor] = []
        self.left: list[float] = []
        self.logits: list[torch.Tensor] = []
        act, encode, settle, choose = lm.model.act, lm.model.encode, Page.settle, lm._choose

        def acting(state, t, *, cond, self_cond=None):
            self.states.append(state)
            self.times.append(t)
            self.conditions.append(cond)
            self.fed_back.append(self_cond)
            self.actions.append(act(state, t, cond=cond, self_cond=self_cond))
            return self.actions[-1]

        def encoding(*args, **kwargs):
            self.encoded.append(encode(*args, **kwargs))
            return self.encoded[-1]

        def settling(page, choice, chance, left):
            settle(page, choice, chance, left)
            self.left.append(left)
            self.settled.append(page.settled)

        def choosing(logits, *args):
            self.logits.append(logits)
            return choose(logits, *args)

        monkeypatch.setattr(lm.model, "act", acting)
        monkeypatch.setattr(lm.model, "encode", encoding)
        monkeypatch.setattr(lm, "_choose", choosing)
        monkeypatch.setattr(Page, "settle", settling)


def finished(lm: MantaLM, requests: list[Request], **options: Any) -> list[Event]:
    events = [event for event in lm.generate(requests, GenerateOptions(**options)) if event.kind == "done"]
    return sorted(events, key=lambda event: event.index)


def noises(lm: MantaLM, seed: int, number: int) -> list[torch.Tensor]:
    """The first draws of a request's generator, each for the largest canvas."""
    generator = torch.Generator().manual_seed(seed)
    shape = (lm.model.max_cells, lm.model.space.channels)
    return [torch.randn(shape, generator=generator) for _ in range(number)]


def agree(found: torch.Tensor, noise: torch.Tensor) -> None:
    """A state and the draws it should be, where both have latents: a canvas may be shorter, or padded."""
    both = min(len(found), len(noise))
    torch.testing.assert_close(found[:both], noise[:both], atol=1e-4, rtol=1e-4)


def test_the_least_certain_words_are_asked_for_again():
    page = Page(torch.full((1, 6), MASK), torch.ones(1, 6, dtype=torch.bool), rate=2)
    page.settle(torch.arange(10, 16)[None], torch.tensor([[0.9, 0.1, 0.5, 0.7, 0.3, 0.6]]), left=0.5)
    assert page.settled.tolist() == [[10, MASK, MASK, 13, MASK, 15]]
    page.settle(torch.arange(20, 26)[None], torch.tensor([[0.0, 0.95, 0.2, 0.0, 0.99, 0.0]]), left=1 / 6)
    assert page.tokens.tolist() == [[10, 21, 22, 13, 24, 15]], "a settled word is not written again"
    assert page.settled.tolist() == [[10, 21, MASK, 13, 24, 15]]
    torch.testing.assert_close(page.confidence, torch.tensor([[0.9, 0.95, 0.2, 0.7, 0.99, 0.6]]))
    page.ask_again(0.4)
    assert page.settled.tolist() == [[10, 21, MASK, 13, 24, MASK]], "the least certain of those settled"


def test_a_null_is_asked_for_to_the_end_however_sure_it_is():
    page = Page(torch.full((1, 4), MASK), torch.ones(1, 4, dtype=torch.bool), rate=4)
    page.settle(torch.tensor([[10, 11, NULL, NULL]]), torch.tensor([[0.4, 0.3, 1.0, 1.0]]), left=0.5)
    assert page.settled.tolist() == [[10, MASK, MASK, MASK]]
    page.settle(torch.tensor([[10, 11, 12, NULL]]), torch.tensor([[0.4, 0.3, 0.9, 1.0]]), left=0.0)
    assert page.settled.tolist() == [[10, 11, 12, NULL]]


def test_given_words_are_certain_and_never_counted():
    tokens = torch.tensor([[7, MASK, MASK, 8]])
    page = Page(tokens, torch.ones(1, 4, dtype=torch.bool), rate=4)
    assert page.confidence.tolist() == [[1, 0, 0, 1]]
    page.settle(torch.full((1, 4), 9), torch.tensor([[0.0, 0.2, 0.1, 0.0]]), left=0.5)
    assert page.settled.tolist() == [[7, 9, MASK, 8]]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_every_call_is_shown_the_words_settled_by_then(lm, monkeypatch, guidance_scale):
    watch = Watch(lm, monkeypatch)
    finished(lm, [Request(prompt="the cat", seed=1)], num_steps=13, guidance_scale=guidance_scale)
    shown = [condition.settled for condition in watch.conditions[:: 1 if guidance_scale == 1 else 2]]
    assert (shown[0] == MASK)[watch.conditions[0].mask].all()
    assert len(shown) == len(watch.settled) > 3
    assert all(torch.equal(seen, settled) for seen, settled in zip(shown[1:], watch.settled, strict=False))
    assert (shown[-1] != MASK).any() and (watch.settled[-1] != MASK).all()
    if guidance_scale != 1:
        null = [condition.settled for condition in watch.conditions[1::2]]
        assert all(torch.equal(one, two) for one, two in zip(shown, null, strict=True))


@pytest.mark.parametrize("solver", ["euler", "heun", "renoise"])
@pytest.mark.parametrize("flow_steps", [2, 5])
def test_every_call_is_fed_the_estimate_of_the_call_before(lm, monkeypatch, solver, flow_steps):
    watch = Watch(lm, monkeypatch)
    options = {"num_steps": 8, "solver": solver, "flow_steps": flow_steps}
    finished(lm, [Request(prompt="the cat", seed=1)], **options)
    assert watch.fed_back[0] is None
    assert len(watch.actions) == 7
    before = [action.clean for action in watch.actions]
    for fed, estimate in zip(watch.fed_back[1:], before, strict=False):
        assert fed is not None and torch.equal(fed, estimate)


def test_without_a_plan_nothing_is_fed_back_and_the_state_stays_the_noise(lm, monkeypatch):
    watch = Watch(lm, monkeypatch)
    finished(lm, [Request(prompt="the cat", seed=4)], num_steps=6, flow_steps=0, **CONSENSUS)
    assert watch.fed_back == [None] * 5
    assert all(not t.any() for t in watch.times) or not lm.model.space.estimates
    (noise,) = noises(lm, 4, 1)
    agree(watch.states[0][0], 0.5 * noise)


@pytest.mark.parametrize(
    ("options", "scale"),
    [({}, 0.5), ({"noise_scale": 0.25}, 0.25), ({"noise_scale": 0.0}, 0.0), ({"noise_scale": 1.0}, 1.0)],
)
def test_the_plan_starts_at_noise_of_its_scale(latent_lm, monkeypatch, options, scale):
    watch = Watch(latent_lm, monkeypatch)
    finished(latent_lm, [Request(prompt="the cat", seed=4)], num_steps=4, **CONSENSUS, **options)
    (noise,) = noises(latent_lm, 4, 1)
    agree(watch.states[0][0], scale * noise)


def test_diverse_texts_start_at_noise_of_scale_one(latent_lm, monkeypatch):
    watch = Watch(latent_lm, monkeypatch)
    finished(latent_lm, [Request(seed=seed) for seed in range(40)], num_steps=2)
    assert watch.states[0][:, : latent_lm.model.max_cells].std().item() == pytest.approx(1, abs=0.05)


def test_guidance_moves_the_plan_and_words_are_read_with_the_prompt(latent_lm, monkeypatch):
    watch = Watch(latent_lm, monkeypatch)
    options = {"num_steps": 8, "guidance_scale": 2.5, "flow_steps": 2}
    finished(latent_lm, [Request(prompt="the cat", seed=2)], **options)
    assert len(watch.actions) == 2 * len(watch.logits) == 6
    pairs = list(zip(watch.actions[::2], watch.actions[1::2], strict=True))
    for said, (prompted, bare) in zip(watch.logits, pairs, strict=True):
        one, two = latent_lm.model.logits(prompted.aux), latent_lm.model.logits(bare.aux)
        assert not torch.allclose(one, two)
        torch.testing.assert_close(said, one)
    ends = [bare.clean + 2.5 * (prompted.clean - bare.clean) for prompted, bare in pairs]
    torch.testing.assert_close(watch.states[4], ends[1])
    assert all(torch.equal(watch.states[i], watch.states[i + 1]) for i in (0, 2, 4))
    for call in (2, 3):
        torch.testing.assert_close(watch.fed_back[call], ends[0])


def test_guidance_knows_no_prompt_on_its_other_side(latent_lm, monkeypatch):
    watch = Watch(latent_lm, monkeypatch)
    for prompt in ("the cat", "some old river", None):
        finished(latent_lm, [Request(prompt=prompt, seed=2)], num_steps=6, guidance_scale=2.0, **CONSENSUS)
    bare = [condition.memory[0].key for condition in watch.conditions[1::4]]
    prompted = [condition.memory[0].key for condition in watch.conditions[::4]]
    assert torch.equal(bare[0], bare[1]) and torch.equal(bare[0], bare[2])
    assert prompted[0].shape != bare[0].shape or not torch.allclose(prompted[0], bare[0])
    torch.testing.assert_close(prompted[2], bare[2])


def test_a_round_starts_half_way_at_the_encoded_text_and_fresh_noise_of_scale_one(monkeypatch):
    lm = make_lm("latent")
    lm.density = TimeDensityConfig(kind="logit_normal", logit_mean=-0.5).build()
    middle = 1 / (1 + math.exp(0.5))
    watch = Watch(lm, monkeypatch)
    options = {"num_steps": 9, "rounds": 2, "flow_steps": 2, "noise_scale": 0.3}
    (done,) = finished(lm, [Request(prompt="the cat", seed=6)], **CONSENSUS, **options)
    assert len(watch.actions) == 6 and len(watch.encoded) == 2 and done.nfe == 9
    _, first, second = noises(lm, 6, 3)
    for call, encoded, noise in ((2, watch.encoded[0], first), (4, watch.encoded[1], second)):
        assert watch.times[call].item() == pytest.approx(middle, rel=1e-6)
        assert watch.times[call + 1].item() == pytest.approx(middle + middle * (1 - middle), rel=1e-6)
        agree((watch.states[call][0] - middle * encoded[0]) / (1 - middle), noise)
        fed = watch.fed_back[call]
        assert fed is not None and torch.equal(fed, encoded)


def test_a_round_asks_again_for_the_less_certain_half_of_the_words(monkeypatch):
    lm = make_lm("latent")
    pages = []
    again = Page.ask_again

    def asking(page, share):
        again(page, share)
        pages.append((share, page.confidence.clone(), page.asked.clone(), (page.tokens != NULL) & page.writable))

    monkeypatch.setattr(Page, "ask_again", asking)
    watch = Watch(lm, monkeypatch)
    finished(lm, [Request(prompt="the cat", seed=6)], num_steps=8, rounds=1, flow_steps=1)
    calls = [share for share, *_ in pages]
    index = calls.index(0.5, calls.index(0.0))
    _, confidence, asked, words = pages[index]
    chosen = confidence[asked & words]
    assert len(chosen) == int(words.sum()) // 2
    assert chosen.max() <= confidence[words & ~asked].min()
    assert torch.equal(watch.conditions[-2].settled == MASK, asked)


def test_silent_calls_settle_nothing_and_the_others_share_the_words(monkeypatch):
    lm = make_lm("latent")
    lm.splits = {8: Split(flow=5, silent=3)}
    watch = Watch(lm, monkeypatch)
    finished(lm, [Request(prompt="the cat", seed=1)], num_steps=8, style="consensus")
    assert watch.left == pytest.approx([3 / 4, 2 / 4, 1 / 4, 0.0])
    settled = [(condition.settled != MASK)[condition.mask].any() for condition in watch.conditions[:5]]
    assert settled == [False, False, False, False, True]


def test_the_share_asked_for_again_falls_by_the_call(latent_lm, monkeypatch):
    watch = Watch(latent_lm, monkeypatch)
    finished(latent_lm, [Request(prompt="the cat", seed=1)], num_steps=6, flow_steps=3)
    assert watch.left == pytest.approx([4 / 5, 3 / 5, 2 / 5, 1 / 5, 0.0])
    assert [t.item() for t in watch.times] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])


def test_the_plan_ends_at_its_last_estimate_and_stays_there(latent_lm, monkeypatch):
    watch = Watch(latent_lm, monkeypatch)
    events = list(latent_lm.generate([Request(prompt="the cat", seed=1)], GenerateOptions(num_steps=7, flow_steps=3)))
    assert all(torch.equal(watch.states[call], watch.actions[2].clean) for call in (3, 4, 5))
    assert [event.t for event in events] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    assert [event.nfe for event in events] == [2, 3, 4, 5, 6, 7]


def test_an_embeddings_settled_words_are_known_states(monkeypatch):
    lm = make_lm("embedding")
    watch = Watch(lm, monkeypatch)
    finished(lm, [Request(prompt="the cat", seed=1)], num_steps=6)
    for state, t, condition in zip(watch.states, watch.times, watch.conditions, strict=True):
        known = (condition.settled != MASK) & condition.mask
        assert torch.equal(t == 1, known)
        assert torch.equal(state[known], lm.model.space.embedding[condition.settled[known]])  # pyright: ignore
    assert known.any()


def with_lengths(lm: MantaLM, monkeypatch: pytest.MonkeyPatch, chances: list[float]) -> None:
    chance = torch.zeros(lm.model.max_cells).index_copy(0, torch.arange(len(chances)), torch.tensor(chances))
    monkeypatch.setattr(lm.model, "length_logits", lambda memory: chance.log().expand(len(memory.states), -1))


@pytest.mark.parametrize(
    ("chances", "cells"), [([0.5, 0.2, 0.2, 0.1], 3), ([0.85, 0.15], 1), ([0.1, 0.1, 0.1, 0.1, 0.1, 0.5], 6)]
)
def test_a_consensus_takes_the_upper_quantile_of_the_lengths(latent_lm, monkeypatch, chances, cells):
    with_lengths(latent_lm, monkeypatch, chances)
    (done,) = finished(latent_lm, [Request(prompt="the cat")], num_steps=1, **CONSENSUS)
    assert len(done.tokens) == cells * latent_lm.model.space.rate


def test_a_diverse_text_draws_its_length(latent_lm, monkeypatch):
    with_lengths(latent_lm, monkeypatch, [0.0, 0.6, 0.0, 0.4])
    done = finished(latent_lm, [Request(seed=seed) for seed in range(200)], num_steps=1)
    cells = [len(event.tokens) // latent_lm.model.space.rate for event in done]
    low, high = binomial_bounds(200, 0.6)
    assert set(cells) == {2, 4} and low <= cells.count(2) <= high


def test_words_are_drawn_at_their_temperature(latent_lm, monkeypatch):
    logits = torch.full((latent_lm.tokenizer.vocab_size,), -50.0)
    logits[torch.tensor([20, 21])] = torch.tensor([0.0, 1.0])
    logits[MASK] = 30.0
    monkeypatch.setattr(latent_lm.model, "logits", lambda action: logits.expand(*action.hidden.shape[:2], -1))
    with_lengths(latent_lm, monkeypatch, [0.0, 0.0, 0.0, 1.0])
    for temperature in (0.5, 2.0):
        requests = [Request(seed=seed) for seed in range(30)]
        done = finished(latent_lm, requests, num_steps=1, temperature=temperature)
        words = [token for event in done for token in event.tokens]
        low, high = binomial_bounds(len(words), 1 / (1 + math.exp(-1 / temperature)))
        assert set(words) == {20, 21} and low <= words.count(21) <= high
        sure = 1 / (1 + math.exp(-1))
        expected = [sum(sure if token == 21 else 1 - sure for token in event.tokens) / 16 for event in done]
        assert [event.confidence for event in done] == pytest.approx(expected, abs=1e-5)
    assert len({event.tokens for event in done}) > 20, "each request draws its own words"
    (greedy,) = finished(latent_lm, [Request()], num_steps=1)
    assert set(greedy.tokens) == {21}


def test_an_escape_moves_what_is_fed_back_and_needs_its_direction(monkeypatch):
    lm = make_lm("latent")
    with pytest.raises(UsageError, match="needs its direction"):
        finished(lm, [Request(prompt="the cat")], num_steps=4, escape_scale=0.5)
    lm.repetition = torch.nn.functional.normalize(torch.arange(6.0), dim=0)
    watch = Watch(lm, monkeypatch)
    (moved,) = finished(lm, [Request(prompt="the cat")], num_steps=8, escape_scale=4.0)
    before = [action.clean for action in watch.actions]
    for fed, estimate in zip(watch.fed_back[1:], before, strict=False):
        torch.testing.assert_close(fed, estimate - 4.0 * lm.repetition)
    (plain,) = finished(lm, [Request(prompt="the cat")], num_steps=8)
    assert plain.tokens != moved.tokens


splits = st.builds(
    Split, flow=st.integers(1, 9), silent=st.integers(0, 4), rounds=st.integers(0, 2), refine=st.integers(1, 3)
)


@settings(max_examples=60, deadline=None)
@given(
    budget=st.integers(1, 16),
    solver=st.sampled_from(["euler", "heun", "renoise"]),
    guidance_scale=st.sampled_from([0.0, 1.0, 2.0]),
    temperature=st.sampled_from([0.0, 1.0]),
    style=st.sampled_from(["consensus", "diverse"]),
    flow_steps=st.none() | st.integers(0, 9),
    rounds=st.none() | st.integers(0, 2),
    infill=st.sampled_from([None, "the ___{3} sat"]),
    own=st.none() | splits,
)
def test_a_budget_is_kept_and_every_word_written_whatever_the_options(
    budget, solver, guidance_scale, temperature, style, flow_steps, rounds, infill, own
):
    lm = SMALL
    lm.splits = {} if own is None else {budget: own}
    made = 0
    act, encode = type(lm.model).act, type(lm.model).encode

    def counting(function):
        def wrapper(*args, **kwargs):
            nonlocal made
            made += 1
            return function(lm.model, *args, **kwargs)

        return wrapper

    lm.model.act, lm.model.encode = counting(act), counting(encode)  # pyright: ignore[reportAttributeAccessIssue]
    options = GenerateOptions(
        num_steps=budget, solver=solver, guidance_scale=guidance_scale, temperature=temperature, style=style,
        flow_steps=flow_steps, rounds=rounds,
    )  # fmt: skip
    try:
        *_, done = lm.generate([Request(prompt="the cat", infill=infill, seed=budget)], options)
    except UsageError:
        assert made == 0, "what does not fit is refused before the first call"
        return
    finally:
        del lm.model.act, lm.model.encode
    assert done.kind == "done"
    assert made <= done.nfe <= min(budget, made + 2), "prompts are encoded in at most two calls"
    assert MASK not in done.tokens


SMALL = make_lm("latent")


def test_a_split_says_how_a_budget_is_spent():
    lm = make_lm("latent")
    lm.splits = {6: Split(flow=9, silent=9, rounds=0, refine=1)}
    agreed = GenerateOptions(num_steps=6, style="consensus")
    assert lm.split(agreed) == Split(flow=5, silent=4, refine=1), "a call is left to settle in"
    assert lm.split(replace(agreed, flow_steps=2)).flow == 2
    with pytest.raises(UsageError, match=r"leaves the flow 3"):
        lm.split(GenerateOptions(num_steps=4, flow_steps=4))
    assert lm.split(GenerateOptions(num_steps=4, flow_steps=3)).flow == 3


def test_a_fresh_page_has_seen_nothing():
    page = Page(torch.full((1, 4), MASK), torch.ones(1, 4, dtype=torch.bool), rate=2)
    assert (page.t, page.nfe, page.written, page.done, page.num_cells) == (0.0, 0, False, False, 2)
    assert page.asked.all() and not page.confidence.any()
