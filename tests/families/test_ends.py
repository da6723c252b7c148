"""A masked model settles the ends of a text after its words."""

import torch

from manta.families.events import GenerateOptions, Request
from manta.text import MASK, NULL

from .conftest import make_masked


def test_an_end_that_is_surer_than_the_words_before_it_waits_for_them(monkeypatch):
    """The second word is an end, and sure, until the first stands; then it is a word."""
    lm = make_masked()

    def forward(tokens, mask, memory):
        logits = torch.zeros(*tokens.shape, lm.tokenizer.vocab_size)
        logits[:, 0, 20] = 4.0
        logits[:, 1:, NULL] = 20.0
        first = tokens[:, 0] != MASK
        logits[first, 1, NULL], logits[first, 1, 21] = 0.0, 6.0
        return logits

    monkeypatch.setattr(lm.model, "forward", forward)
    monkeypatch.setattr("manta.families.masked.CachedDenoiser", lambda model, mask, memory: Stub(forward))
    monkeypatch.setattr(lm.model, "length_logits", lambda memory: torch.eye(lm.model.max_cells)[3:4] * 99)
    *_, done = lm.generate([Request()], GenerateOptions(num_steps=9, decoder="confidence"))
    assert done.tokens == (20, 21, NULL, NULL)


class Stub:
    """A denoiser of a span."""

    def __init__(self, forward) -> None:
        self.forward = forward

    def __call__(self, tokens, start, stop):
        return self.forward(tokens, None, None)[:, start:stop]
