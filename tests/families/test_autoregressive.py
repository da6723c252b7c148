"""The autoregressive family: cached decoding is the model itself, likelihood is exact, truncation keeps its promise."""

from typing import Any

import pytest
import torch

from manta.autoregressive import Chooser, NgramDrafter, count_ngrams, decode
from manta.errors import RequestError, UsageError
from manta.families.autoregressive import (
    AutoregressiveConfig,
    AutoregressiveLM,
    AutoregressiveModel,
    log_likelihood,
)
from manta.families.batching import to_batch
from manta.families.cached import CachedReader
from manta.families.events import GenerateOptions, Request, finished
from manta.families.observer import Observer
from manta.operators import CAUSAL, KINDS, AttentionConfig, OperatorContext, WindowedConfig, line
from manta.text import BOS, CONSENSUS, EOS, Tokenizer

from .conftest import WORDS, random_weights
from .test_objectives import make_batch


def make_ar(**config) -> AutoregressiveLM:
    tokenizer = Tokenizer.train(list(WORDS) * 3, 512)
    shape = {"dim": 32, "heads": 2, "prompt_depth": 1, "depth": 2, "max_prompt": 12, "max_text": 14}
    torch.manual_seed(0)
    model = AutoregressiveModel(AutoregressiveConfig(vocab_size=tokenizer.vocab_size, **{**shape, **config}))
    random_weights(model)
    return AutoregressiveLM(model, tokenizer)


@pytest.mark.parametrize("places", [False, True])
@pytest.mark.parametrize("kind", CAUSAL)
def test_cached_decoding_is_greedy_decoding_by_the_whole_model(kind, places):
    model = make_ar(absolute_places=places, operator=KINDS[kind]()).model
    prompt, lengths = torch.randint(4, 300, (3, 5)), torch.tensor([5, 2, 0])
    memory = model.memory(prompt, lengths, torch.zeros(3, dtype=torch.long))
    cached = [[], [], []]
    reader = CachedReader(model, memory, 13)
    for step in decode(
        reader, Chooser(), [()] * 3, begin=model.begin, end=model.end, max_tokens=9, multiple=reader.multiple
    ):
        for row, words in zip(cached, step.words, strict=True):
            row += words
    tokens = torch.full((3, 1), model.begin)
    with torch.no_grad():
        for _ in range(9):
            tokens = torch.cat([tokens, model(tokens, memory)[:, -1:].argmax(-1)], 1)
    for ours, slow in zip(cached, tokens[:, 1:].tolist(), strict=True):
        assert ours == (slow[: slow.index(model.end) + 1] if model.end in slow else slow)


@pytest.mark.parametrize("kind", CAUSAL)
def test_logits_of_a_cached_step_are_those_of_the_whole_model(kind):
    model = make_ar(operator=KINDS[kind](), max_text=90).model
    tokens, zeros = torch.randint(4, 300, (4, 90)), torch.zeros(4, dtype=torch.long)
    memory = model.memory(torch.zeros(4, 0, dtype=torch.long), zeros, zeros)
    context, cache = OperatorContext(line(90)), model.trunk.new_cache()
    read = model.trunk.project(memory.states, memory.mask)
    with torch.no_grad():
        whole = model.hidden(tokens, memory)
        for place in range(90):
            x, span = model.embed(tokens[:, place : place + 1], place), context.span(place, place + 1)
            step = model.trunk(x, span, memory=read, cache=cache)[:, 0]
            torch.testing.assert_close(step, whole[:, place], atol=2e-4, rtol=2e-4)


def test_an_operator_takes_its_models_heads_unless_they_are_set():
    for operator, heads in ((AttentionConfig(), 2), (WindowedConfig(), 2), (WindowedConfig(heads=4), 4)):
        model = make_ar(operator=operator).model
        assert model.config.operator == operator
        assert {block.operator.heads for block in model.trunk.blocks} == {heads}  # pyright: ignore


def test_the_likelihood_is_that_of_the_tokens_one_after_the_other():
    model, batch = make_ar().model, make_batch([5, 3], vocab=300)
    found = log_likelihood(model, batch)
    memory = model.memory(batch.prompt, batch.prompt_lengths, model.kinds(batch.tag))
    for row, length in enumerate([5, 3]):
        nats, given = 0.0, [model.begin]
        for token in [*batch.text[row, :length].tolist(), model.end]:
            with torch.no_grad():
                logits = model(torch.tensor([given]), memory.rows(torch.tensor([row])))[0, -1]
            nats += logits.float().log_softmax(-1)[token].item()
            given.append(token)
        assert found[row].item() == pytest.approx(nats, abs=1e-3)


@pytest.mark.parametrize(
    "settings", [{"temperature": 1.0}, {"temperature": 0.7, "top_k": 5}, {"temperature": 1.0, "top_p": 0.5}]
)
def test_a_sampled_text_depends_on_its_seed_alone(settings):
    lm = make_ar()
    requests = [Request(prompt=p, seed=i) for i, p in enumerate(["the cat", "rain fell", None])]

    def texts(chosen, **more):
        events = finished(lm.generate(chosen, GenerateOptions(**settings), **more))
        return [event.tokens for event in sorted(events, key=lambda e: e.index)]

    together = texts(requests)
    assert together == texts(requests, batch_size=1) == [texts([request])[0] for request in requests]
    assert texts([Request(prompt="the cat", seed=9)]) != texts([Request(prompt="the cat", seed=10)])


def test_what_a_left_to_right_model_cannot_do_is_refused():
    lm = make_ar()
    with pytest.raises(RequestError, match="fills blanks ___; words"):
        list(finished(lm.generate([Request(infill="a [[cat]]")])))
    with pytest.raises(RequestError, match="reads at most 12"):
        list(finished(lm.generate([Request(prompt="rain fell over quiet hills " * 5)])))
    with pytest.raises(UsageError, match="top_p"):
        GenerateOptions(top_p=0.0)


def test_calls_are_the_prompts_one_a_token_and_the_ends():
    lm = make_ar()
    with torch.no_grad():
        lm.model.embedding.weight[lm.model.end] *= 4
    events = list(finished(lm.generate([Request(prompt=p, seed=i) for i, p in enumerate(("a cat", "rain", None))])))
    assert {event.index for event in events} == {0, 1, 2}
    for event in events:
        assert event.nfe == 1 + len(event.tokens) + (len(event.tokens) < lm.capacity)
        assert lm.model.end not in event.tokens
    (cut,) = finished(lm.generate([Request(prompt="a cat")], GenerateOptions(max_tokens=1)))
    assert len(cut.tokens) <= 1 and cut.nfe == 2


def test_places_are_told_up_to_the_longest_prompt_or_text_and_the_begin():
    for prompt, text in ((12, 14), (20, 14)):
        places = make_ar(absolute_places=True, max_prompt=prompt, max_text=text).model.places
        assert places is not None and places.num_embeddings == max(prompt, text) + 1
    assert make_ar().model.places is None


def test_the_next_token_is_asked_for_up_to_the_end():
    batch = make_batch([3, 1], vocab=300)
    model = make_ar().model
    given, target, asked = model.shifted(batch)
    text, end = batch.text.tolist(), model.end
    assert given.tolist() == [[model.begin, *text[0]], [model.begin, text[1][0], end, end]]
    assert target.tolist() == [[*text[0], end], [text[1][0], end, end, end]]
    assert asked.tolist() == [[True] * 4, [True, True, False, False]]


@pytest.mark.parametrize(("dtype", "times"), [(torch.float32, 1), (torch.float64, 0)])
def test_weights_are_laid_out_for_single_columns_on_a_cpu_in_float32_alone(monkeypatch, dtype, times):
    model, laid = make_ar().model.to(dtype), []
    monkeypatch.setattr("manta.families.cached.columnwise", lambda trunk: laid.append(trunk) or trunk)
    zeros = torch.zeros(1, dtype=torch.long)
    memory = model.memory(torch.zeros(1, 0, dtype=torch.long), zeros, zeros)
    CachedReader(model, memory, 8)
    assert len(laid) == times


class Noting(Observer):
    """Keeps the logits of every call."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def logits(self, logits: torch.Tensor, settled: torch.Tensor) -> torch.Tensor:
        self.seen.append(logits[:, -1].clone())
        return logits


def test_who_follows_a_text_sees_the_same_alone_and_beside_others_to_the_last_bit():
    lm = make_ar(max_text=9)
    requests = [Request(prompt=prompt) for prompt in ("the cat", "rain fell over", None)]
    together = Noting()
    words = lm.follow(lm.begin(requests, GenerateOptions()), together)
    for row, request in enumerate(requests):
        own = Noting()
        alone = lm.follow(lm.begin([request], GenerateOptions()), own)[0]
        length = alone.shape[0]
        assert torch.equal(words[row, :length], alone) and (words[row, length:] == lm.model.end).all()
        for one, many in zip(own.seen, together.seen, strict=False):
            assert torch.equal(one[0], many[row])


def test_a_smaller_vocabulary_has_a_table_of_its_own():
    lm = make_ar()
    rows = [[5, 6, 7, 8], [5, 6, 9]]
    assert lm.with_vocabulary(lm.tokenizer, lambda net: net, rows).table is None, "none before, none then"
    lm._count([[20, 21, 22]])
    before = lm.table
    found = lm.with_vocabulary(lm.tokenizer, lambda net: net, rows)
    size = lm.model.config.vocab_size
    expected = NgramDrafter(count_ngrams(rows, vocab_size=size, begin=BOS, end=EOS), size, BOS)
    assert found.table is not None and lm.table is before
    assert all(torch.equal(value, found.table.table[name]) for name, value in expected.table.items())
    assert found.parts().keys() == expected.table.keys() != {}


def test_who_drafts_nothing_reads_no_prompts():
    lm = make_ar(draft_horizon=2, max_text=6)
    drafter, begun = lm.drafter, []
    assert drafter is not None
    begin = drafter.begin
    drafter.begin = lambda memory: begun.append(1) or begin(memory)
    sequential = lm.write("the cat", decoder="sequential")
    assert not begun
    assert lm.write("the cat", decoder="verified") == sequential and len(begun) == 1


@pytest.mark.parametrize(("rows", "drafts"), [(1, 7), (2, 7), (4, 7), (5, 5), (16, 1), (17, 0), (40, 0)])
def test_as_many_words_are_drafted_as_save_time(rows, drafts):
    lm = make_ar(draft_horizon=1)
    assert lm._num_drafts(GenerateOptions(), rows) == drafts
    assert lm._num_drafts(GenerateOptions(decoder="verified"), rows) == 7
    assert lm._num_drafts(GenerateOptions(decoder="verified", num_drafts=3), rows) == 3
    assert (
        lm._num_drafts(GenerateOptions(decoder="sequential"), rows) == make_ar()._num_drafts(GenerateOptions(), 1) == 0
    )


@pytest.mark.parametrize("drafting", [False, True])
def test_texts_drawn_in_different_ways_share_their_calls_and_are_those_of_each_alone(drafting, monkeypatch):
    lm = make_ar()
    if drafting:
        lm._count([lm.tokenizer.encode(WORDS[0])] * 3)
    ways: list[dict[str, Any]] = [
        {},
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.4},
        {"temperature": 0.7},
    ]
    requests = [
        Request(prompt=" ".join(WORDS[0].split()[k : k + 2]), seed=k, options=GenerateOptions(**how))
        for k, how in enumerate(ways)
    ]
    alone = [event for request in requests for event in finished(lm.generate([request]))]
    assert len({event.text for event in alone}) == len(ways)
    sizes: list[int] = []
    steps = lm._steps
    monkeypatch.setattr(lm, "_steps", lambda rows, *rest: sizes.append(len(rows)) or steps(rows, *rest))
    together = sorted(finished(lm.generate(requests)), key=lambda event: event.index)
    assert sizes == [len(ways)], "one batch"
    for one, other in zip(alone, together, strict=True):
        assert (one.tokens, one.text, one.chances) == (other.tokens, other.text, other.chances)


def test_a_model_that_knows_no_styles_gives_texts_their_likelihood_whatever_their_tags():
    lm = make_ar()
    batch = to_batch([[5, 6]], [[7, 8, 9]])
    human = lm.log_likelihood(batch).value
    batch.tag.fill_(CONSENSUS)
    assert torch.equal(lm.log_likelihood(batch).value, human)


@pytest.mark.parametrize("kind", ["attention", "dijiang"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_may_be_longer_than_what_is_read_at_once(kind, temperature):
    """The same drafted or not, alone or beside others, and each word is what half a window or more before it tells."""
    lm = make_ar(operator=KINDS[kind]())
    requests = [Request(prompt=prompt, seed=seed) for seed, prompt in enumerate(("the cat", "some old river", ""))]

    def written(most: int, size: int = 8, **more: Any) -> list[tuple[int, ...]]:
        options = GenerateOptions(temperature=temperature, max_tokens=most, **more)
        events = finished(lm.generate(requests, options, batch_size=size))
        return [event.tokens for event in sorted(events, key=lambda event: event.index)]

    with lm.endless():
        texts = written(40)
        assert [len(text) for text in texts] == [40] * 3
        assert texts == written(40, size=1) == written(40, decoder="sequential")
        assert [text[:14] for text in texts] == written(14), "a window as ever"
    for text, request in zip(texts, requests, strict=True):
        for begin in () if temperature else (0, 7, 14, 21):
            batch = to_batch([lm.tokenizer.encode(request.prompt or "")], [text[begin : begin + 14]])
            given, _, _ = lm.model.shifted(batch)
            memory = lm.model.memory(batch.prompt, batch.prompt_lengths, lm.model.kinds(batch.tag))
            told = lm.model(given, memory)[0, 7:14].argmax(-1).tolist()
            assert tuple(told) == text[begin + 7 : begin + 14]
