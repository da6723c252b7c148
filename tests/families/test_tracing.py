"""A trace writes what `generate` writes, and its record can be followed."""

from dataclasses import replace

import pytest
import torch

from manta.aligned import collapse
from manta.errors import RequestError
from manta.families.events import GenerateOptions, Request
from manta.families.observer import Beginning
from manta.families.prompted import Memory
from manta.families.tracing import Trace, trace_aligned, trace_autoregressive, trace_flow, trace_masked
from manta.text import MASK, NULL

from .conftest import make_aligned, make_ar, make_lm, make_masked

REQUESTS = [Request(prompt="the cat", seed=3), Request(prompt="some old river", seed=4), Request(prompt=None, seed=5)]


def tokens_of(trace) -> list[tuple[int, ...]]:
    return [tuple(row[where].tolist()) for row, where in zip(trace.tokens, trace.mask, strict=True)]


def generated(lm, options) -> list[tuple[int, ...]]:
    done = [event for event in lm.generate(REQUESTS, options) if event.kind == "done"]
    return [event.tokens for event in sorted(done, key=lambda event: event.index)]


@pytest.mark.parametrize("kind", ["latent", "embedding"])
def test_a_flow_is_traced_as_it_writes(kind):
    lm, options = make_lm(kind), GenerateOptions(num_steps=6, flow_steps=5)
    trace = trace_flow(lm, lm.begin(REQUESTS, options), 5)
    assert tokens_of(trace) == generated(lm, options)
    assert trace.states is not None and len(trace.states) == 6
    assert bool((trace.settled[0][trace.mask] == MASK).all())


def test_a_masked_model_is_traced_as_it_writes():
    lm = make_masked()
    for decoder in ("deferred", "confidence", "remask"):
        options = GenerateOptions(num_steps=6, decoder=decoder)
        start = lm.begin(REQUESTS, options)
        assert tokens_of(trace_masked(lm, start, 5, options)) == generated(lm, options), decoder


def test_an_aligned_model_is_traced_as_it_writes():
    lm = make_aligned()
    for num_steps in (1, 3):
        options = GenerateOptions(num_steps=num_steps)
        trace = trace_aligned(lm, lm.begin(REQUESTS, options), num_steps)
        said = [tuple(collapse(labels, NULL)[: lm.capacity]) for labels in tokens_of(trace)]
        assert said == generated(lm, options)
        assert len(trace.settled) == num_steps + 1 and bool((trace.settled[0][trace.mask] == MASK).all())


def test_labels_that_are_changed_between_calls_are_what_later_calls_see():
    lm = make_aligned()
    start = lm.begin(REQUESTS, GenerateOptions())

    def after(call, slots):
        if call == 1:
            slots.labels = torch.where(slots.open, slots.labels, 300)

    plain, changed = trace_aligned(lm, start, 4), trace_aligned(lm, start, 4, after=after)
    first = (plain.settled[1] != MASK) & plain.mask
    assert bool((changed.tokens[first] == 300).all())
    assert not torch.equal(plain.logits[1], changed.logits[1])


def test_an_autoregressive_model_is_traced_as_it_writes():
    lm = make_ar()
    trace = trace_autoregressive(lm, lm.begin(REQUESTS, GenerateOptions()))
    texts = [[t for t in row if t != lm.model.end] for row in tokens_of(trace)]
    assert texts == [list(row) for row in generated(lm, GenerateOptions())]


def test_given_words_are_kept_and_written_on_from():
    lm = make_ar()
    start = lm.begin(REQUESTS, GenerateOptions())
    start.tokens[:, :2] = 300
    trace = trace_autoregressive(lm, start)
    assert bool((trace.tokens[:, :2] == 300).all())


def test_beliefs_are_distributions_that_end_at_the_text():
    lm, options = make_masked(), GenerateOptions(num_steps=6)
    trace = trace_masked(lm, lm.begin(REQUESTS, options), 5, options)
    beliefs = list(trace.beliefs(lm.model.embedding.num_embeddings))
    for belief in beliefs:
        torch.testing.assert_close(belief.sum(-1), torch.ones(belief.shape[:2]))
    assert torch.equal(beliefs[-1].argmax(-1), trace.tokens)
    assert float(beliefs[1][..., MASK].max()) == 0


def test_a_trace_tells_what_stood_and_what_was_said_after_each_call():
    """Two places and three tokens beside the mask token, which is never a word."""
    nothing = torch.zeros(1, 2, 300)
    first, second = nothing.clone(), nothing.clone()
    first[0, 0, 7] = first[0, 1, 8] = second[0, 0, 9] = second[0, 1, 9] = 50.0
    first[..., MASK] = 99.0
    settled = torch.tensor([[[MASK, MASK]], [[MASK, 8]], [[7, 8]]])
    start = Beginning(Memory(torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool)), settled[0], settled[0] > -1, ())
    trace = Trace(start, start.mask, settled, (first, second))
    assert trace.tokens.tolist() == [[7, 8]]
    assert trace.drafts().tolist() == [[[MASK, MASK]], [[7, 8]], [[7, 8]]]
    beliefs = [belief[0].argmax(-1).tolist() for belief in trace.beliefs(300)]
    assert beliefs == [[MASK, MASK], [7, 8], [7, 8]]
    unspoken = replace(trace, logits=())
    assert unspoken.drafts().tolist() == settled.tolist()
    assert [belief[0].argmax(-1).tolist() for belief in unspoken.beliefs(300)] == settled[:, 0].tolist()


def test_an_autoregressive_trace_shows_a_word_more_after_each_call():
    lm = make_ar()
    trace = trace_autoregressive(lm, lm.begin(REQUESTS, GenerateOptions()))
    assert len(trace.settled) == trace.tokens.shape[1] + 1
    for k, settled in enumerate(trace.settled):
        assert torch.equal(settled[:, :k], trace.tokens[:, :k]) and bool((settled[:, k:] == MASK).all())
    for row, where in zip(trace.tokens.tolist(), trace.mask.tolist(), strict=True):
        length = row.index(lm.model.end) + 1 if lm.model.end in row else len(row)
        assert where == [place < length for place in range(len(row))], "the end is one of the text's places"


def test_a_flows_trace_has_its_times_and_states():
    lm = make_lm()
    start = lm.begin(REQUESTS, GenerateOptions(num_steps=5))
    trace = trace_flow(lm, start, 4)
    assert trace.grid is not None and trace.states is not None and start.state is not None
    torch.testing.assert_close(trace.grid, lm.density.grid(4).double())
    assert torch.equal(trace.states[0], start.state)
    assert len(trace.cleans) == len(trace.logits) == 4 and len(trace.settled) == 5
    torch.testing.assert_close(trace.states[4], trace.cleans[3])


def test_a_masked_models_canvas_may_be_changed_after_a_call():
    lm, options, calls = make_masked(), GenerateOptions(num_steps=4, decoder="confidence"), []
    start = lm.begin(REQUESTS, options)

    def after(k, canvas):
        calls.append(k)
        if k == 2:
            canvas.tokens[~canvas.masked & start.mask] = 300

    trace = trace_masked(lm, start, 3, options, after=after)
    assert calls == [1, 2, 3]
    stood = (trace.settled[1] != MASK) & start.mask
    assert bool(stood.any()) and bool((trace.tokens[stood] == 300).all())


def test_hooks_change_what_is_written():
    lm, options = make_lm(), GenerateOptions(num_steps=6)
    start = lm.begin(REQUESTS, options)

    def guide(logits, settled):
        return logits.index_fill(-1, torch.tensor([300]), 1e4)

    assert bool((trace_flow(lm, start, 5, guide=guide).tokens[start.mask] == 300).all())
    plain = trace_flow(lm, start, 5)
    pushed = trace_flow(lm, start, 5, before=lambda k, page, state: state + 3.0 * (k == 2))
    assert plain.states is not None and pushed.states is not None
    assert torch.equal(plain.states[:2], pushed.states[:2])
    assert not torch.allclose(plain.states[2:], pushed.states[2:])


def test_a_text_to_fill_is_refused():
    with pytest.raises(RequestError, match="infill"):
        make_lm().begin([Request(infill="the ___ sat")], GenerateOptions())


def test_an_autoregressive_text_ends_with_its_first_end(monkeypatch):
    lm = make_ar()
    start, end = lm.begin(REQUESTS, GenerateOptions()), lm.model.end
    written = torch.tensor([[5, 6, end, end], [end, end, end, end], [5, 6, 7, 8]])
    monkeypatch.setattr(lm, "follow", lambda beginning, observer: written)
    trace = trace_autoregressive(lm, start)
    assert trace.mask.tolist() == [[True, True, True, False], [True, False, False, False], [True] * 4]
