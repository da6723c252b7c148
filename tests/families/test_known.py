"""Likelihoods of texts whose first words are given: only what comes behind them counts."""

from typing import Any

import pytest
import torch
from torch import Tensor

from manta.families.aligned import AlignedLM
from manta.families.batching import to_batch
from manta.families.block import BlockCausalLM, BlockMatching
from manta.families.block_model import BlockCausalConfig, BlockCausalModel
from manta.families.masked_objective import bound
from manta.masked import MaskedObjectiveConfig
from manta.runtime import make_generator
from manta.text import BOS, EOS, HUMAN, MASK, NULL

from .conftest import SMALL, make_aligned, make_ar, make_masked, random_weights

PROMPTS, TEXTS = [[5, 6, 7], [], [9]], [[11, 12, 13, 14], [15, 16], [17, 18, 19]]
KNOWN = torch.tensor([2, 0, 3])


def seeds() -> list[torch.Generator]:
    return [make_generator(row) for row in range(3)]


def behind(told: Tensor, text: list[int], known: int) -> float:
    """Log-probability of the words from `known` on and of the end, from logits of every place."""
    words = [*text, EOS]
    return sum(float(told.log_softmax(-1)[place, word]) for place, word in enumerate(words) if place >= known)


@torch.no_grad()
def test_left_to_right_the_words_behind_those_that_are_given_count_and_the_value_is_exact():
    lm = make_ar()
    model, expected = lm.model, []
    for prompt, text, known in zip(PROMPTS, TEXTS, KNOWN.tolist(), strict=True):
        alone = to_batch([prompt], [text])
        memory = model.memory(alone.prompt, alone.prompt_lengths, alone.tag)
        expected.append(behind(model(torch.tensor([[BOS, *text]]), memory)[0], text, known))
    found = lm.log_likelihood(to_batch(PROMPTS, TEXTS), known=KNOWN)
    assert found.kind == "exact" and found.standard_error is None
    torch.testing.assert_close(found.value, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    aligned = make_aligned()
    reading = AlignedLM(aligned.model, aligned.tokenizer, lm)
    assert torch.equal(reading.log_likelihood(to_batch(PROMPTS, TEXTS), known=KNOWN).value, found.value)


@torch.no_grad()
def test_what_is_given_is_never_hidden_and_the_end_alone_is_told_exactly(monkeypatch):
    lm, seen = make_masked(), []
    batch = to_batch(PROMPTS, TEXTS)
    whole = torch.tensor([len(text) for text in TEXTS])
    forward = lm.model.forward
    monkeypatch.setattr(lm.model, "forward", lambda shown, *rest: seen.append(shown) or forward(shown, *rest))
    found = bound(lm.model, batch, seeds(), num_samples=8, known=KNOWN)
    for shown in seen:
        for row, (text, known) in enumerate(zip(TEXTS, KNOWN.tolist(), strict=True)):
            assert shown[row, :known].tolist() == text[:known]
    hidden = torch.stack(seen) == MASK
    assert [int(hidden[:, row].any(0).sum()) for row in range(3)] == [3, 3, 1], "words behind, and the end"
    assert found.standard_error[2] == 0 and (found.standard_error[:2] > 0).all()
    expected = []
    for prompt, text in zip(PROMPTS, TEXTS, strict=True):
        shown = torch.full((1, 16), NULL)
        shown[0, : len(text) + 1] = torch.tensor([*text, MASK])
        alone = to_batch([prompt], [text])
        memory = lm.model.memory(alone.prompt, alone.prompt_lengths, alone.tag)
        projected = lm.model.trunk.project(memory.states, memory.mask)
        told = forward(shown, torch.arange(16)[None] <= len(text), projected)[0, len(text)]
        expected.append(float(told.log_softmax(-1)[NULL]))
    ends = lm.log_likelihood(batch, seeds(), 8, known=whole)
    assert ends.kind == "bound"
    torch.testing.assert_close(ends.value, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def block_model(length: int) -> BlockCausalModel:
    torch.manual_seed(0)
    vocab = make_masked().tokenizer.vocab_size
    net = BlockCausalModel(BlockCausalConfig(vocab_size=vocab, block_length=length, **SMALL))
    random_weights(net)
    return net


def told_with_blocks_hidden(net: BlockCausalModel, batch: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the words, each behind the clean blocks before its own, of which every word is hidden."""
    clean, mask = net.in_blocks(batch)
    memory = net.memory(batch.prompt, batch.prompt_lengths, torch.full_like(batch.tag, HUMAN))
    shown = torch.full_like(clean, MASK)
    told = net(clean, shown, mask, net.trunk.project(memory.states, memory.mask)).log_softmax(-1)
    return told.gather(2, clean[..., None])[..., 0], mask


@torch.no_grad()
def test_block_by_block_the_words_behind_those_that_are_given_count():
    lm = BlockCausalLM(block_model(1), make_masked().tokenizer)
    batch = to_batch(PROMPTS, TEXTS)
    told, mask = told_with_blocks_hidden(lm.model, batch)
    place = torch.arange(told.shape[1])
    for known in (None, KNOWN):
        asked = mask if known is None else mask & (place >= known[:, None])
        found = lm.log_likelihood(batch, seeds(), 4, known)
        assert found.kind == "bound"
        torch.testing.assert_close(found.value, (told * asked).sum(1), rtol=1e-4, atol=1e-4)


def test_blocks_of_one_word_are_all_hidden_at_once_whatever_the_settings():
    net, batch = block_model(1), to_batch(PROMPTS, TEXTS)
    told, mask = told_with_blocks_hidden(net, batch)
    expected = -(told.detach() * mask).sum() / mask.sum()
    for config in (MaskedObjectiveConfig(complementary=True), MaskedObjectiveConfig(least_share=0.001)):
        loss = BlockMatching(config)(net, batch, make_generator(0))
        assert loss.count == int(mask.sum()) == 4 + 2 + 3 + 3 and loss.parts["supervised"] == 1
        assert loss.total.item() == pytest.approx(expected.item(), rel=1e-4)
