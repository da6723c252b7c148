"""Words that go together: what families do with the counts of their training texts."""

from dataclasses import replace

import pytest
import torch

from manta.errors import ConfigError, UsageError
from manta.families import fluent
from manta.families.events import GenerateOptions, Request, finished
from manta.families.fluent import FLUENCY, NGRAMS
from manta.families.observer import Observer
from manta.families.page import Page
from manta.fluency import Fluency, NgramModel, drawn_row
from manta.hub import load, save_model
from manta.masked import FluentSampler
from manta.text import BOS, EOS, MASK, NULL, Corpus, Example, build

from .conftest import WORDS, make_aligned, make_ar, make_lm, make_masked

MAKERS = {
    "aligned": make_aligned,
    "latents": make_lm,
    "embeddings": lambda: make_lm("embedding"),
    "masked": make_masked,
}
REQUESTS = [Request(prompt=" ".join(WORDS[0].split()[k : k + 3]), seed=k) for k in range(6)]


@pytest.fixture(params=MAKERS)
def lm(request):
    found = MAKERS[request.param]()
    texts = [found.tokenizer.encode(" ".join(WORDS[0].split()[k:])) for k in range(8)]
    found._count([list(text) for text in texts])
    return found


def options(lm, **more) -> GenerateOptions:
    style = {} if lm.family == "aligned" else {"style": "consensus"}
    return GenerateOptions(**{"num_steps": 4, "fluency": FLUENCY, **style, **more})


def texts(lm, how, requests=REQUESTS, batch_size=64):
    events = finished(lm.generate(requests, how, batch_size=batch_size))
    return [(e.tokens, e.confidence, e.nfe) for e in sorted(events, key=lambda e: e.index)]


def nats(lm, tokens):
    words = [t for t in tokens if t != NULL]
    return -sum(lm.ngrams.log_chance(words[:k], word) for k, word in enumerate([*words, EOS])) / (len(words) + 1)


@pytest.mark.parametrize("make", [make_masked, make_ar])
def test_tables_do_not_learn_the_edges_of_windows(make, tmp_path):
    """Prose that is cut into windows begins and ends once; its table says so."""
    lm = make()
    prose = " ".join(WORDS[0] for _ in range(6))
    build([Example(prose)], lm.tokenizer, tmp_path / "corpus", max_prompt=0, max_text=16)
    corpus = Corpus.open(tmp_path / "corpus")
    assert len(corpus) > 3
    lm.learn_from(corpus)
    size = lm.model.config.vocab_size
    if lm.family == "ar":
        contexts, words = (lm.table.table[f"{name}.1"].tolist() for name in ("contexts", "words"))
        ended = [context for context, after in zip(contexts, words, strict=True) if EOS in after]
        assert contexts and BOS not in contexts and set(ended) <= {corpus.text(len(corpus) - 1)[-1]}
    else:
        pairs = lm.ngrams.table["grams.2"].tolist()
        assert pairs and not [pair for pair in pairs if pair // size == BOS or pair % size == EOS]


def test_the_counts_make_texts_likelier_to_themselves(lm):
    told, plain = texts(lm, options(lm)), texts(lm, options(lm, fluency=0.0))
    assert sum(nats(lm, t[0]) for t in told) < sum(nats(lm, t[0]) for t in plain)
    assert [t[2] for t in told] == [t[2] for t in plain], "no network call more"


def test_a_text_is_the_same_in_any_batch(lm):
    alone = texts(lm, options(lm), batch_size=1)
    assert texts(lm, options(lm), batch_size=5) == alone
    assert texts(lm, options(lm), REQUESTS[::-1])[::-1] == alone


def test_unasked_many_texts_are_weighed_where_the_most_agreed_on_is_sought(lm, monkeypatch):
    unasked = options(lm, fluency=None)
    assert lm.fluency(unasked) is None, "few texts know too little"
    monkeypatch.setattr(fluent, "ENOUGH", 0)
    if lm.family == "masked":
        assert lm.fluency(unasked) is None
        return
    assert texts(lm, unasked) == texts(lm, options(lm))
    assert lm.fluency(options(lm, fluency=None, temperature=1.0)) is None
    if lm.family == "manta":
        assert lm.fluency(options(lm, fluency=None, style="diverse", num_steps=5)) is None
        assert lm.fluency(options(lm, fluency=None, style="diverse")).weight == FLUENCY, "few calls"
        assert lm.fluency(options(lm, style="diverse", num_steps=9)).weight == FLUENCY


def test_without_counts_nothing_is_weighed(lm):
    plain = texts(lm, options(lm, fluency=0.0))
    lm.ngrams = None
    assert texts(lm, options(lm, fluency=None)) == plain
    with pytest.raises(UsageError, match="no counts"):
        texts(lm, options(lm, fluency=0.3))


def test_what_nothing_would_come_of_is_refused(lm):
    with pytest.raises(UsageError, match="at most 100"):
        options(lm, fluency=1e9)
    if lm.family == "aligned":
        with pytest.raises(UsageError, match="drawn"):
            texts(lm, options(lm, fluency=0.3, temperature=1.0))


def test_drawn_texts_go_together_too_each_with_its_own_seed(lm):
    if lm.family == "aligned":
        return
    how = {"temperature": 1.0} if lm.family == "masked" else {"style": "diverse"}
    drawn, plain = texts(lm, options(lm, **how)), texts(lm, options(lm, fluency=0.0, **how))
    assert sum(nats(lm, t[0]) for t in drawn) < sum(nats(lm, t[0]) for t in plain)
    assert texts(lm, options(lm, **how), batch_size=1) == drawn
    assert texts(lm, options(lm, **how), REQUESTS[::-1], batch_size=5)[::-1] == drawn
    again = texts(lm, options(lm, **how), [Request(prompt=REQUESTS[0].prompt, seed=k) for k in range(6)])
    assert len({tuple(t[0]) for t in again}) > 1


def test_consensus_texts_at_a_temperature_are_drawn_and_weighed_only_if_asked(monkeypatch):
    lm = make_lm()
    lm._count([list(lm.tokenizer.encode(WORDS[0]))])
    monkeypatch.setattr(fluent, "ENOUGH", 0)
    how = options(lm, temperature=1.0)
    seeds = [Request(prompt=REQUESTS[0].prompt, seed=k) for k in range(6)]
    assert len({tuple(t[0]) for t in texts(lm, how, seeds)}) > 1
    for style in ("consensus", "diverse"):
        unasked = options(lm, fluency=None, temperature=1.0, style=style)
        assert texts(lm, unasked) == texts(lm, replace(unasked, fluency=0.0))


def test_masked_draws_use_the_numbers_of_the_largest_canvas_and_the_temperature(monkeypatch):
    lm, seen = make_masked(), []
    lm._count([list(lm.tokenizer.encode(WORDS[0]))])

    def draw(told, tokens, *given, temperature, uniform, **how):
        seen.append((temperature, {len(each) for each in uniform}))
        return drawn_row(told, tokens, *given, temperature=temperature, uniform=uniform, **how)

    monkeypatch.setattr("manta.masked.fluent.drawn_row", draw)
    texts(lm, options(lm, temperature=0.7))
    assert seen and {temperature for temperature, _ in seen} == {0.7}
    assert len({tuple(sizes) for _, sizes in seen}) == 1 and min(seen[0][1]) > lm.model.max_cells


def test_words_of_a_low_temperature_are_the_likeliest_row():
    lm = make_lm()
    lm._count([list(lm.tokenizer.encode(WORDS[0]))])
    page = Page(torch.full((2, 8), MASK), torch.ones(2, 8).bool(), 4)
    logits = torch.randn(2, 8, lm.model.config.vocab_size, generator=torch.Generator().manual_seed(0)) * 4
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    drawn = lm._choose(logits, page, generators, options(lm, temperature=1e-300))[0]
    assert torch.equal(drawn, lm._choose(logits, page, generators, options(lm))[0])


def test_a_folder_keeps_the_counts(lm, tmp_path):
    save_model(tmp_path / "m", lm, recipe={}, card="a card", dtype=torch.float32)
    again = load(tmp_path / "m")
    assert all(torch.equal(value, again.ngrams.table[name]) for name, value in lm.ngrams.table.items())
    assert texts(again, options(lm)) == texts(lm, options(lm))


def test_counts_of_another_vocabulary_are_refused(lm):
    parts = {NGRAMS + name: value for name, value in lm.ngrams.table.items()}
    parts[NGRAMS + "chances.1"] = parts[NGRAMS + "chances.1"][:-1]
    with pytest.raises(ConfigError, match="n-grams"):
        type(lm).stored(lm.model, lm.tokenizer, lm.extras(), parts)


def test_given_words_stay(lm):
    words = WORDS[0].split()
    infill = Request(prompt="the cat", infill=" ".join([*words[:3], "___{4}", *words[6:8]]), seed=1)
    if lm.family == "masked":  # an end wipes what follows it in a blank
        (event,) = lm.generate([infill], options(lm))
        assert event.kind == "failed" and "leave it out" in str(event.error)
        return
    (event,) = finished(lm.generate([infill], options(lm)))
    assert event.text.startswith(" ".join(words[:3])) and event.text.endswith(" ".join(words[6:8]))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"cache": "dual"}, "cache"),
        ({"pattern": "[a-z ]+"}, "pattern"),
        ({"schema": '{"type": "boolean"}'}, "pattern"),
    ],
)
def test_a_masked_canvas_that_is_not_seen_whole_is_not_searched(more, why):
    lm = make_masked()
    lm._count([[7, 8]])
    with pytest.raises(UsageError, match=why):
        lm.check(GenerateOptions(style="consensus", fluency=0.5, **more))


def test_models_whose_places_mean_more_than_words_are_not_searched():
    for shape, why in (({"elastic": True}, "move"), ({"classes": 6}, "classes")):
        lm = make_masked(**shape)
        lm._count([[7, 8]])
        with pytest.raises(UsageError, match=why):
            lm.check(GenerateOptions(style="consensus", fluency=0.5))


def test_left_to_right_an_aligned_model_weighs_nothing():
    lm = make_aligned()
    lm._count([[7, 8]])
    lm.causal = object()  # type: ignore[assignment]
    with pytest.raises(UsageError, match="left to right"):
        lm.check(GenerateOptions(decoder="sequential", fluency=0.5))


def test_fewer_tokens_are_counted_anew():
    lm = make_masked()
    lm._count([[7, 8, 9]] * 3)
    found = lm.with_vocabulary(lm.tokenizer, lambda net: net, [[9, 8, 7]] * 3)
    assert found.ngrams is not None and lm.ngrams is not None
    assert found.ngrams.log_chance([9], 8) > -1 > found.ngrams.log_chance([7], 8)
    assert lm.ngrams.log_chance([7], 8) > -1, "the model itself keeps its own"
    assert NgramModel.count([[9, 8, 7]] * 3, vocab_size=lm.model.config.vocab_size, begin=BOS, end=EOS).nats == (
        found.ngrams.nats
    )


def test_watching_takes_the_likeliest_words():
    lm = make_lm()
    beginning = lm.begin(REQUESTS[:2], GenerateOptions(style="consensus"))
    plain = lm.follow(beginning, 3, Observer()).tokens
    lm._count([list(lm.tokenizer.encode(WORDS[0]))] * 5_000)
    assert torch.equal(lm.follow(beginning, 3, Observer()).tokens, plain)


def test_a_settled_word_is_what_the_others_go_with():
    """Of a Manta-LM: what stands is not chosen anew, whatever is likelier in its place by now."""
    lm = make_lm()
    size = lm.model.config.vocab_size
    lm.ngrams = NgramModel.count([[10, 11], [12, 13]] * 8, vocab_size=size, begin=BOS, end=EOS)
    page = Page(torch.tensor([[MASK, MASK, NULL, NULL]]), torch.tensor([[True, True, False, False]]), 4)
    page.tokens[0, 0], page.asked[0, 0] = 10, False
    logits = torch.full((1, 4, size), -20.0)
    logits[0, 0, 12] = 0.0
    logits[0, 1, [11, 13]] = torch.tensor([0.45, 0.55]).log()
    choice, chance = lm._choose(logits, page, (), GenerateOptions(style="consensus", fluency=0.5))
    assert choice[0, :2].tolist() == [10, 11]
    assert chance[0, 1].item() == pytest.approx(0.45, abs=1e-3)


def test_a_masked_sampler_is_as_sure_as_the_net_is_of_its_words():
    ngrams = NgramModel.count([[10, 11], [12, 13]] * 8, vocab_size=20, begin=BOS, end=EOS)
    logits = torch.full((1, 2, 20), -20.0)
    logits[0, 0, 10] = 0.0
    logits[0, 1, [11, 13]] = torch.tensor([0.45, 0.55]).log()
    mask, tokens = torch.ones(1, 2, dtype=torch.bool), torch.full((1, 2), MASK)
    words, sure = FluentSampler(Fluency(ngrams, 0.5), mask, MASK, NULL)(logits, 0, tokens)
    assert words.tolist() == [[10, 11]] and sure[0].tolist() == pytest.approx([1.0, 0.45], abs=1e-3)
    _, margin = FluentSampler(Fluency(ngrams, 0.5), mask, MASK, NULL, confidence="margin")(logits, 0, tokens)
    assert margin[0, 1].item() == pytest.approx(0.1, abs=1e-3)
