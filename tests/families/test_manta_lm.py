"""Generation: a text depends on its request alone, a budget is never exceeded, what is given stays."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.errors import RequestError, UsageError
from manta.families.canvas import parse_template
from manta.families.events import GenerateOptions, Request, finished
from manta.families.manta_lm import Page, Split, default_split
from manta.text import MASK, NULL

from .conftest import make_lm

PROMPTS = ["the cat", "rain fell over quiet hills", None, "nobody"]


def texts(lm, requests, batch_size=64, **options) -> dict[int, str]:
    events = lm.generate(requests, GenerateOptions(**options), batch_size=batch_size)
    return {e.index: e.text for e in events if e.kind == "done"}


@pytest.mark.parametrize("solver", ["euler", "heun", "renoise"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_is_the_same_alone_and_in_any_batch(lm, solver, temperature):
    requests = [Request(prompt=p, seed=10 + i) for i, p in enumerate(PROMPTS)]
    options = {"num_steps": 7, "solver": solver, "temperature": temperature}
    together = texts(lm, requests, **options)
    pairs = texts(lm, requests, batch_size=2, **options)
    alone = {i: texts(lm, [request], **options)[0] for i, request in enumerate(requests)}
    assert together == alone == pairs


def test_another_seed_writes_another_text_and_another_prompt_too(lm):
    one, two = (texts(lm, [Request(prompt="the cat", seed=s)], num_steps=6)[0] for s in (1, 2))
    other = texts(lm, [Request(prompt="some old river", seed=1)], num_steps=6)[0]
    assert one != two
    assert one != other


@pytest.mark.parametrize("solver", ["euler", "heun", "renoise"])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("budget", [3, 4, 5, 8, 13])
def test_calls_counted_are_calls_made_and_fit_the_budget(latent_lm, monkeypatch, solver, guidance_scale, budget):
    made = 0
    model = latent_lm.model

    def counting(function):
        def wrapper(*args, **kwargs):
            nonlocal made
            made += 1
            return function(*args, **kwargs)

        return wrapper

    monkeypatch.setattr(model, "act", counting(model.act))
    options = GenerateOptions(num_steps=budget, solver=solver, guidance_scale=guidance_scale)
    if budget < 6 and guidance_scale != 1:
        with pytest.raises(UsageError, match="6 or more"):
            list(latent_lm.generate([Request(prompt="the cat")], options))
        return
    *_, last = latent_lm.generate([Request(prompt="the cat")], options)
    encoded = 0 if budget < 2 * guidance_scale else guidance_scale  # with guidance the empty prompt too
    assert last.nfe == made + encoded
    spare = budget - last.nfe
    assert 0 <= spare <= 1 if guidance_scale == 2 else spare == 0, "the budget is spent, but for half a guided action"


def test_guidance_moves_the_plan_and_leaves_the_reading_of_words_to_the_prompt(latent_lm, monkeypatch):
    model, actions, read = latent_lm.model, [], []
    act, logits = model.act, model.logits
    monkeypatch.setattr(model, "act", lambda *args, **given: actions.append(act(*args, **given)) or actions[-1])
    monkeypatch.setattr(model, "logits", lambda words, *args: read.append(words) or logits(words, *args))
    request = Request(prompt="the cat", seed=1)
    options = GenerateOptions(num_steps=10, guidance_scale=3.0)
    written = list(latent_lm.generate([request], options))
    assert len(actions) == 2 * len(written) == 8, "with the prompt, then without it"
    assert [id(words) for words in read] == [id(action.aux) for action in actions[::2]]
    first, second = actions[0].clean, actions[2].clean
    actions.clear()
    list(latent_lm.generate([request], GenerateOptions(num_steps=5)))
    assert torch.equal(actions[0].clean, first)
    assert not torch.allclose(actions[1].clean, second), "the plan has moved"


def test_guidance_without_a_plan_is_refused(latent_lm):
    with pytest.raises(UsageError, match="moves the plan"):
        list(latent_lm.generate([Request(prompt="the cat")], GenerateOptions(flow_steps=0, guidance_scale=2.0)))


def test_the_empty_prompt_of_guidance_is_a_call_of_every_text(latent_lm, monkeypatch):
    calls = []
    encode = latent_lm.model.memory
    monkeypatch.setattr(latent_lm.model, "memory", lambda *args, **kw: calls.append(kw) or encode(*args, **kw))
    monkeypatch.setattr(latent_lm, "_empty", {})
    options = GenerateOptions(num_steps=6, guidance_scale=2.0)
    for encodings in (2, 1):  # the second text finds it kept, and costs the same
        calls.clear()
        *_, last = latent_lm.generate([Request(prompt="the cat")], options)
        assert len(calls) == encodings and all(kw["encode"] for kw in calls)
        assert last.nfe == 6, "two encodings and two guided actions"


@pytest.mark.parametrize("flow", [1, 4, 7])
@pytest.mark.parametrize("silent", [1, 3, 6])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_silent_calls_are_calls_and_leave_some_to_write(latent_lm, monkeypatch, solver, silent, flow):
    monkeypatch.setattr(latent_lm, "splits", {8: Split(flow=flow, silent=silent)})
    options = GenerateOptions(num_steps=8, solver=solver, style="consensus")
    events = list(latent_lm.generate([Request(prompt="the cat")], options))
    for event in events:
        assert all(token == MASK for token in event.tokens) == (event.nfe - 1 <= silent)
    assert MASK not in events[-1].tokens


def test_a_drafts_confidence_is_that_of_the_words_that_stand(latent_lm, monkeypatch):
    monkeypatch.setattr(latent_lm, "splits", {6: Split(flow=5, silent=2)})
    options = GenerateOptions(num_steps=6, style="consensus")
    events = list(latent_lm.generate([Request(infill="the cat ___ mat")], options))
    assert [event.confidence for event in events[:2]] == [1.0, 1.0], "only given words stand"
    assert all(0 < event.confidence < 1 for event in events[2:])


def test_the_outer_loop_counts_its_calls_and_changes_the_text(latent_lm):
    requests = [Request(prompt="the cat", seed=5)]
    plain = list(latent_lm.generate(requests, GenerateOptions(num_steps=12, flow_steps=2, rounds=0)))[-1]
    looped = list(latent_lm.generate(requests, GenerateOptions(num_steps=12, flow_steps=2, rounds=2)))[-1]
    assert plain.nfe == looped.nfe == 12
    assert plain.tokens != looped.tokens


@pytest.mark.parametrize("budget", [1, 2])
def test_one_and_two_calls_write_a_text(lm, budget):
    *_, last = lm.generate([Request(prompt="the cat")], GenerateOptions(num_steps=budget))
    assert (last.kind, last.nfe) == ("done", budget)


def test_a_split_that_does_not_fit_its_budget_is_refused(latent_lm):
    with pytest.raises(UsageError, match="does not fit a budget"):
        list(latent_lm.generate([Request(prompt="a")], GenerateOptions(num_steps=4, flow_steps=4)))
    with pytest.raises(UsageError, match="leaves none"):
        list(latent_lm.generate([Request(prompt="a")], GenerateOptions(num_steps=4, rounds=1)))


def test_without_flow_the_plan_stays_noise_and_with_it_the_words_see_the_plan(latent_lm):
    request = [Request(prompt="the cat", seed=2)]
    without = list(latent_lm.generate(request, GenerateOptions(num_steps=8, flow_steps=0)))
    assert {event.t for event in without} == {0.0}
    for steps in (1, 4, 7):
        events = list(latent_lm.generate(request, GenerateOptions(num_steps=8, flow_steps=steps)))
        assert [event.t for event in events] == sorted(event.t for event in events)
        assert events[-1].t == 1.0
        assert events[-1].tokens != without[-1].tokens


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=6),
)
def test_a_page_settles_words_and_keeps_what_is_given(seed, shares):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(12) < torch.tensor([12, 8, 4])[:, None]
    given_words = torch.rand(3, 12, generator=generator) < 0.2
    tokens = torch.where(given_words, 7, MASK).masked_fill(~mask, NULL)
    page = Page(tokens, mask, rate=4)
    for share in [*sorted(shares, reverse=True), 0.0]:
        choice = torch.randint(NULL, 9, (3, 12), generator=generator).clamp_min(NULL)
        choice = choice.masked_fill(choice == MASK, NULL)
        page.settle(choice, torch.rand(3, 12, generator=generator), share)
        assert torch.equal(page.tokens[mask & given_words], tokens[mask & given_words])
        assert not (page.asked & ~page.writable).any()
        words = page.writable & (page.tokens != NULL)
        assert torch.equal((page.asked & words).sum(1), (words.sum(1) * share).floor().long())
        if share > 0:
            assert page.asked[page.writable & ~words].all(), "nulls are asked for again until the end"
    assert not page.asked.any()
    assert (page.settled[mask] != MASK).all()


def test_a_models_own_split_serves_the_budgets_from_its_own_upwards(latent_lm):
    latent_lm.splits = {4: Split(flow=1), 8: Split(flow=5, silent=2)}
    try:
        agreed = GenerateOptions(style="consensus")
        chosen = {budget: latent_lm.split(replace(agreed, num_steps=budget)) for budget in (3, 4, 7, 9, 16)}
        diverse = latent_lm.split(GenerateOptions(num_steps=8))
    finally:
        latent_lm.splits = {}
    assert chosen[3] == default_split(3)
    assert chosen[4] == chosen[7] == Split(flow=1)
    assert chosen[9] == Split(flow=5, silent=2)
    assert chosen[16] == default_split(16), "a split chosen for half the budget says nothing of it"
    assert diverse == default_split(8), "the variety of diverse texts is the plan's, in every call"


@pytest.mark.parametrize("template", ["the ___{3} sat on ___ mat", "___ river", "nobody spoke ___{5}"])
def test_infill_keeps_what_is_given_and_fills_only_the_blanks(lm, template):
    request = Request(prompt="rain", infill=template, seed=3)
    *_, done = lm.generate([request], GenerateOptions(num_steps=9))
    template_given = parse_template(template, lm.tokenizer, rate=lm.model.space.rate, max_cells=lm.model.max_cells)
    tokens = torch.tensor(done.tokens)
    assert torch.equal(tokens[template_given.known], template_given.tokens[template_given.known])
    assert MASK not in done.tokens
    assert done.nfe <= 9


def test_infill_in_a_batch_equals_infill_alone(latent_lm):
    requests = [
        Request(infill="the ___ sat", seed=1),
        Request(prompt="rain", seed=2),
        Request(infill="___{2} hills", seed=3),
    ]
    together = texts(latent_lm, requests, num_steps=8)
    assert together == {i: texts(latent_lm, [request], num_steps=8)[0] for i, request in enumerate(requests)}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("no blank here", "no blank"),
        ("___{0} x", "takes 1 to"),
        ("___{999}", "takes 1 to"),
        ("the cat " * 20 + "___", "at most"),
    ],
)
def test_a_template_that_cannot_be_filled_says_why(lm, template, words):
    with pytest.raises(RequestError, match=words):
        list(finished(lm.generate([Request(infill=template)])))


def test_a_prompt_longer_than_the_models_is_refused(lm):
    with pytest.raises(RequestError, match="reads at most 12"):
        list(finished(lm.generate([Request(prompt="rain fell over quiet hills " * 5)])))


def test_drafts_come_before_the_final_text_and_confidence_is_a_probability(latent_lm):
    events = list(latent_lm.generate([Request(prompt="the cat")], GenerateOptions(num_steps=8)))
    assert [e.kind for e in events[:-1]] == ["draft"] * (len(events) - 1)
    assert events[-1].kind == "done"
    assert all(0 <= e.confidence <= 1 for e in events)
    assert [e.nfe for e in events] == sorted(e.nfe for e in events)
    assert NULL not in latent_lm.tokenizer.encode(events[-1].text)


@pytest.mark.parametrize("wrong", [{"num_steps": 0}, {"temperature": -1.0}, {"guidance_scale": -0.1}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        GenerateOptions(**wrong)


def test_a_budget_that_just_reads_and_writes_a_text_to_change_is_enough():
    lm = make_lm()
    text = "the cat [[sat on]] a mat"
    assert lm.write("the cat", infill=text, strength=0.5, num_steps=3)
    with pytest.raises(RequestError, match="budget"):
        lm.write("the cat", infill=text, strength=0.5, num_steps=2)


@pytest.mark.parametrize("budget", [4, 6])
def test_silent_calls_leave_one_to_write_a_text_that_is_read_first(latent_lm, monkeypatch, budget):
    monkeypatch.setattr(latent_lm, "splits", {budget: Split(flow=budget, silent=budget)})
    for infill, reads in (("the [[cat sat]] on a mat", 1), ("the ___{2} on a mat", 0)):
        options = GenerateOptions(num_steps=budget, style="consensus")
        events = list(latent_lm.generate([Request(infill=infill)], options))
        assert events[-1].kind == "done" and events[-1].nfe == budget and MASK not in events[-1].tokens
        assert len(events) == budget - 1 - reads
