"""A trace writes what `generate` writes, and its record can be followed."""

import pytest
import torch

from manta.errors import RequestError
from manta.families.events import GenerateOptions, Request
from manta.families.tracing import trace_autoregressive, trace_flow, trace_masked
from manta.text import MASK

from .conftest import make_ar, make_lm, make_masked

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
