"""The masked family: cached and full calls agree, a text depends on its request alone, budgets hold."""

import itertools
from typing import Any

import pytest
import torch

from manta.errors import RequestError, UsageError
from manta.families.batching import padded_width
from manta.families.canvas import parse_template
from manta.families.events import GenerateOptions, Request, finished
from manta.families.masked import MaskedLM
from manta.families.masked_model import CachedDenoiser, FullDenoiser, MaskedConfig, MaskedModel
from manta.families.masked_objective import MaskedMatching, bound
from manta.families.objectives import ObjectiveConfig
from manta.families.observer import Observer
from manta.masked import DECODERS, MaskedObjectiveConfig
from manta.masked.elastic import OFF
from manta.operators import KINDS, SelfAttention
from manta.runtime import make_generator
from manta.text import MASK, NULL, Tokenizer

from ..bounds import binomial_bounds
from .conftest import WORDS, random_weights
from .test_objectives import make_batch

OF_ANY_MODEL = [kind for kind in DECODERS if kind not in ("doubt", "learned")]  # which a model has to have learned


def make_masked(**config) -> MaskedLM:
    tokenizer = Tokenizer.train(list(WORDS) * 3, 512)
    shape = {"dim": 32, "heads": 2, "prompt_depth": 1, "depth": 2, "max_prompt": 12, "max_text": 24}
    torch.manual_seed(0)
    model = MaskedModel(MaskedConfig(vocab_size=tokenizer.vocab_size, **{**shape, **config}))
    random_weights(model)
    return MaskedLM(model, tokenizer)


@pytest.fixture(scope="module")
def lm() -> MaskedLM:
    # With places told, no two positions of an empty canvas are alike, so no rounding decides between them.
    return make_masked(absolute_places=True)


def texts(lm, requests, batch_size=64, **options) -> dict[int, tuple[int, ...]]:
    events = lm.generate(requests, GenerateOptions(**options), batch_size=batch_size)
    return {e.index: e.tokens for e in events if e.kind == "done"}


@pytest.mark.parametrize("places", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_full_call_is_the_model_itself(kind, places):
    lm = make_masked(absolute_places=places, operator=KINDS[kind]())
    tokens = torch.randint(4, 300, (3, 10))
    mask = torch.arange(10) < torch.tensor([10, 6, 3])[:, None]
    memory = lm.model.memory(torch.randint(4, 300, (3, 5)), torch.tensor([5, 3, 0]), torch.zeros(3, dtype=torch.long))
    cached, full = (kind(lm.model, mask, memory) for kind in (CachedDenoiser, FullDenoiser))
    with torch.no_grad():
        torch.testing.assert_close(cached(tokens, 0, 10)[mask], full(tokens, 0, 10)[mask], atol=1e-4, rtol=1e-4)
        part = cached(tokens, 4, 8)
        torch.testing.assert_close(part[mask[:, 4:8]], full(tokens, 4, 8)[mask[:, 4:8]], atol=1e-4, rtol=1e-4)


def test_places_of_an_unwritten_canvas_are_alike_unless_they_are_told():
    for places in (False, True):
        model = make_masked(absolute_places=places).model
        memory = model.memory(torch.randint(4, 300, (1, 5)), torch.tensor([5]), torch.zeros(1, dtype=torch.long))
        with torch.no_grad():
            logits = FullDenoiser(model, torch.ones(1, 16, dtype=torch.bool), memory)(torch.full((1, 16), MASK), 0, 16)
        alike = torch.allclose(logits, logits[:, :1].expand_as(logits), atol=1e-3)
        assert alike != places


def test_a_span_reads_the_other_positions_as_they_were(lm):
    tokens = torch.randint(4, 300, (1, 10))
    mask = torch.ones_like(tokens).bool()
    memory = lm.model.memory(torch.randint(4, 300, (1, 5)), torch.tensor([5]), torch.zeros(1, dtype=torch.long))
    cached = CachedDenoiser(lm.model, mask, memory)
    with torch.no_grad():
        before = cached(tokens, 0, 10)
        changed = tokens.clone()
        changed[0, 9] = 7
        torch.testing.assert_close(cached(changed, 2, 6), before[:, 2:6], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(cached(changed, 0, 10)[:, 2:6], before[:, 2:6], atol=1e-3)


@pytest.mark.parametrize("decoder", OF_ANY_MODEL)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_is_the_same_alone_and_in_any_batch(lm, decoder, temperature):
    requests = [Request(prompt=p, seed=10 + i) for i, p in enumerate(["the cat", "rain fell", None, "nobody"])]
    options = {"num_steps": 12, "decoder": decoder, "temperature": temperature}
    together = texts(lm, requests, **options)
    assert together == texts(lm, requests, batch_size=2, **options)
    assert together == {i: texts(lm, [request], **options)[0] for i, request in enumerate(requests)}


@pytest.mark.parametrize("decoder", OF_ANY_MODEL)
@pytest.mark.parametrize("budget", [1, 2, 5, 9])
def test_calls_counted_are_calls_made_and_fit_the_budget(lm, monkeypatch, decoder, budget):
    made = [0]
    call = CachedDenoiser.__call__

    def counting(self, *args):
        made[0] += 1
        return call(self, *args)

    monkeypatch.setattr(CachedDenoiser, "__call__", counting)
    *_, last = lm.generate([Request(prompt="the cat")], GenerateOptions(num_steps=budget, decoder=decoder))
    assert last.nfe == made[0] + int(budget > 1) <= budget
    assert MASK not in last.tokens


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_is_refreshed_every_call_changes_nothing(kind, cache):
    lm = make_masked(absolute_places=True, operator=KINDS[kind]())
    requests = [Request(prompt="the cat", seed=1), Request(prompt="rain", seed=2)]
    options = {"num_steps": 30, "decoder": "deferred", "window_masked": 3, "window_width": 6}
    assert texts(lm, requests, **options) == texts(lm, requests, cache=cache, refresh=0, **options)
    cached = texts(lm, requests, cache=cache, refresh=100, **options)
    assert all(MASK not in row for row in cached.values())


def test_a_free_text_is_the_same_beside_a_text_to_fill():
    lm = make_masked(absolute_places=True)
    with torch.no_grad():
        lm.model.embedding.weight[NULL] *= 4  # ends are frequent, and in a text to fill they count otherwise
    free = [Request(prompt="the cat", seed=1), Request(prompt="nobody", seed=2)]
    alone = texts(lm, free, num_steps=6)
    beside = texts(lm, [free[0], Request(infill="the ___{3} sat on ___ mat", seed=3), free[1]], num_steps=6)
    assert [beside[0], beside[2]] == [alone[0], alone[1]]


@pytest.mark.parametrize("template", ["the ___{3} sat on ___ mat", "___ river", "nobody spoke ___{5}"])
def test_infill_keeps_what_is_given_and_fills_only_the_blanks(lm, template):
    *_, done = lm.generate([Request(prompt="rain", infill=template, seed=3)], GenerateOptions(num_steps=9))
    given = parse_template(template, lm.tokenizer, rate=1, max_cells=25)
    tokens = torch.tensor(done.tokens)
    assert torch.equal(tokens[given.known], given.tokens[given.known])
    assert MASK not in done.tokens


def with_lengths(lm: MaskedLM, monkeypatch: pytest.MonkeyPatch, chances: list[float]) -> None:
    chance = torch.zeros(lm.model.max_cells).index_copy(0, torch.arange(len(chances)), torch.tensor(chances))
    monkeypatch.setattr(lm.model, "length_logits", lambda memory: chance.log().expand(len(memory.states), -1))


@pytest.mark.parametrize(
    ("chances", "length"), [([0.5, 0.2, 0.2, 0.1], 3), ([0.85, 0.15], 1), ([0.0] * 24 + [1.0], 25)]
)
def test_a_consensus_takes_the_upper_quantile_of_the_lengths(lm, monkeypatch, chances, length):
    with_lengths(lm, monkeypatch, chances)
    (*_, done) = lm.generate([Request(prompt="the cat")], GenerateOptions(num_steps=1, style="consensus"))
    assert len(done.tokens) == length


def test_a_diverse_text_draws_its_length_and_a_text_to_fill_brings_its_own(lm, monkeypatch):
    with_lengths(lm, monkeypatch, [0.0, 0.6, 0.0, 0.4])
    requests = [Request(seed=seed) for seed in range(200)] + [Request(infill="the ___{3} sat")]
    lengths = [len(row) for _, row in sorted(texts(lm, requests, num_steps=1).items())]
    low, high = binomial_bounds(200, 0.6)
    assert set(lengths[:200]) == {2, 4} and low <= lengths[:200].count(2) <= high
    given = parse_template("the ___{3} sat", lm.tokenizer, rate=1, max_cells=25)
    assert lengths[200] == len(given.tokens)


def test_settings_reach_the_decoder_and_wrong_ones_are_named(lm):
    found = lm.decoder_for(GenerateOptions(decoder="deferred", threshold=0.7, window_masked=3))
    assert (found.kind, found.threshold, found.window_masked) == ("deferred", 0.7, 3)
    assert lm.decoder_for(GenerateOptions()).kind == "deferred"
    with pytest.raises(UsageError, match="the confidence decoder has no setting threshold"):
        lm.decoder_for(GenerateOptions(decoder="confidence", threshold=0.7))
    with pytest.raises(RequestError, match="reads at most 12"):
        list(finished(lm.generate([Request(prompt="rain fell over quiet hills " * 5)])))


def test_an_operator_of_whole_rows_writes_without_a_cache_only(monkeypatch):
    monkeypatch.setattr(SelfAttention, "cacheable", False)
    lm = make_masked()
    assert texts(lm, [Request(prompt="a")])
    with pytest.raises(UsageError, match="SelfAttention computes whole rows only"):
        list(lm.generate([Request(prompt="a")], GenerateOptions(cache="dual")))


@pytest.mark.parametrize("complementary", [False, True])
def test_every_weight_receives_a_gradient(complementary):
    lm = make_masked(absolute_places=True)
    objective = MaskedMatching(ObjectiveConfig(bare_share=0.0), MaskedObjectiveConfig(complementary=complementary))
    loss = objective(lm.model, make_batch([5, 9, 13, 7]), make_generator(1))
    loss.total.backward()
    assert not [n for n, p in lm.model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_the_bound_falls_when_the_model_learns_its_texts():
    lm = make_masked()
    batch = make_batch([5, 9, 7, 11])
    objective = MaskedMatching(ObjectiveConfig(blank_share=0.0, prompt_drop=0.0), MaskedObjectiveConfig())
    optimizer = torch.optim.AdamW(lm.model.parameters(), 3e-3)
    before = bound(lm.model, batch, [make_generator(row) for row in range(len(batch))], num_samples=16).nats.mean()
    for step in range(30):
        objective(lm.model, batch, make_generator(step)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = bound(lm.model, batch, [make_generator(row) for row in range(len(batch))], num_samples=16).nats.mean()
    assert after < 0.8 * before


def test_drafts_grow_and_positions_are_counted(lm):
    events = list(lm.generate([Request(prompt="the cat")], GenerateOptions(num_steps=6)))
    assert [e.kind for e in events[:-1]] == ["draft"] * (len(events) - 1)
    assert events[-1].kind == "done"
    assert [e.t for e in events] == sorted(e.t for e in events)
    assert events[-1].t == 1.0
    assert events[-1].processed == (events[-1].nfe - 1) * padded_width(len(events[-1].tokens))
    assert NULL not in lm.tokenizer.encode(events[-1].text)


def test_the_length_costs_a_tenth_of_its_nats():
    lm = make_masked()
    batch, generator = make_batch([3, 5, 8], vocab=90), make_generator
    loss = MaskedMatching(ObjectiveConfig(), MaskedObjectiveConfig())
    totals = []
    for shift in (0.0, 3.0):
        with torch.no_grad():
            lm.model.length[2].bias[0] += shift
            found = loss(lm.model, batch, generator(0))
        totals.append((float(found.total), float(found.parts["length"])))
    (before, short), (after, long) = totals
    assert long != short and after - before == pytest.approx(0.1 * (long - short), abs=1e-4)


def test_the_loss_counts_a_tenth_of_the_length():
    torch.manual_seed(0)
    shape: dict[str, Any] = {"dim": 32, "heads": 2, "prompt_depth": 1, "depth": 1, "max_prompt": 12, "max_text": 24}
    model = MaskedModel(MaskedConfig(vocab_size=60, absolute_places=True, **shape))
    random_weights(model)
    objective, batch = MaskedMatching(ObjectiveConfig(), MaskedObjectiveConfig()), make_batch([9, 6, 12, 4], vocab=60)
    before = objective(model, batch, make_generator(0))
    with torch.no_grad():
        model.length[-1].bias += torch.randn(model.length[-1].bias.shape, generator=make_generator(1))  # pyright: ignore
    after = objective(model, batch, make_generator(0))
    moved = after.parts["length"] - before.parts["length"]
    assert abs(float(moved)) > 0.05
    torch.testing.assert_close(after.total - before.total, 0.1 * moved, rtol=1e-3, atol=1e-5)


def test_a_bound_hides_words_of_the_text_and_of_its_end_alone(monkeypatch):
    torch.manual_seed(0)
    model = make_masked().model
    batch, seen = make_batch([3, 19, 1], vocab=200), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda shown, *rest: seen.append((shown, rest[0])) or forward(shown, *rest))
    found = bound(model, batch, [make_generator(row) for row in range(3)], num_samples=24)
    assert found.nats.shape == (3,) and len(seen) > 1
    whole = [[*batch.text[row, :n].tolist(), NULL] for row, n in enumerate((3, 19, 1))]
    shown_once: list[set[int]] = [set(), set(), set()]
    for shown, mask in seen:
        for row, words in enumerate(whole):
            assert mask[row].tolist() == [place < len(words) for place in range(mask.shape[1])]
            assert (shown[row, len(words) :] == NULL).all()
            for place, word in enumerate(words):
                assert int(shown[row, place]) in (word, MASK)
                if shown[row, place] != MASK:
                    shown_once[row].add(place)
    assert [len(places) for places in shown_once[:2]] == [4, 20], "each word stands in some call"


def test_half_of_the_rows_are_told_classes_or_stand_for_several_words():
    generator = make_generator(0)
    tokens = torch.randint(4, 200, (600, 20), generator=generator)
    hidden = torch.rand(600, 20, generator=generator) < 0.7
    scales = make_masked(classes=6).model
    laid = MaskedMatching(ObjectiveConfig(), MaskedObjectiveConfig())._classed(scales, generator, tokens, hidden)
    size = scales.config.vocab_size
    classed = laid.shown >= size
    assert torch.equal(laid.target, tokens) and torch.equal(laid.hidden, hidden) and not classed[~hidden].any()
    assert torch.equal(laid.shown[~hidden], tokens[~hidden])
    assert torch.equal(laid.shown[classed], size + scales.class_of[tokens[classed]])
    assert (laid.shown[hidden & ~classed] == MASK).all()
    shares = (classed & hidden).sum(1) / hidden.sum(1).clamp_min(1)
    some = shares[shares > 0]
    assert 0.4 < len(some) / 600 < 0.55 and 0.45 < float(some.mean()) < 0.6 and float(some.std()) > 0.2
    elastic = make_masked(elastic=True).model
    mask = torch.ones_like(tokens, dtype=torch.bool)
    objective = MaskedMatching(ObjectiveConfig(), MaskedObjectiveConfig())
    grown = objective._elastic(elastic, mask, generator, tokens, mask)
    changed = (grown.target == elastic.config.vocab_size).any(1)
    assert 0.4 < float(changed.float().mean()) < 0.55
    joined = (grown.target == elastic.config.vocab_size).sum(1)
    assert float(joined[changed].float().std()) > 1, "each row by a share of its own"


class Following(Observer):
    """Keeps what every call told, and what stood before it."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def logits(self, logits: torch.Tensor, settled: torch.Tensor) -> torch.Tensor:
        self.seen.append((logits.clone(), settled.clone()))
        return logits


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_who_follows_sees_the_likeliest_word_settled_everywhere(temperature):
    lm, watching = make_masked(), Following()
    options = GenerateOptions(decoder="confidence", temperature=temperature)
    lm.follow(lm.begin([Request(prompt="the cat"), Request()], options), 5, options, watching)
    assert len(watching.seen) == 5
    settled = 0
    for (logits, before), (_, after) in itertools.pairwise(watching.seen):
        logits = logits.clone()
        logits[..., MASK] = -torch.inf
        new = (before == MASK) & (after != MASK)
        assert torch.equal(after[new], logits.argmax(-1)[new])
        settled += int(new.sum())
    assert settled > 8


def test_words_are_joined_by_any_share_up_to_nine_tenths():
    model = make_masked(elastic=True).model
    tokens = torch.full((400, 20), 5)
    mask = torch.ones_like(tokens).bool()
    laid = MaskedMatching(ObjectiveConfig(), MaskedObjectiveConfig())._elastic(
        model, mask, make_generator(0), tokens, mask
    )
    places = (laid.target != OFF).sum(1)
    assert int(places.min()) <= 6, "a share of nine tenths leaves three or so of twenty"
    few = places < 20
    spread = [int(((places >= low) & (places < low + 4))[few].sum()) for low in (4, 8, 12, 16)]
    assert min(spread) >= 0.12 * int(few.sum()), "shares are as likely to be large as small"
