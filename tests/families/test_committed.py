"""What an event says stands, stands: no later event of its request changes it."""

from typing import Any

import pytest
import torch

from manta.families.block import BlockCausalLM
from manta.families.block_model import BlockCausalConfig, BlockCausalModel
from manta.families.events import GenerateOptions, Request

from .conftest import make_aligned, make_ar, make_masked, random_weights

REQUESTS = [Request(prompt=prompt, seed=seed) for seed, prompt in enumerate(["a b", "the sky: blue", "x", "a b"])]


def make_block() -> BlockCausalLM:
    tokenizer = make_ar().tokenizer
    shape: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "dim": 16,
        "heads": 2,
        "depth": 1,
        "prompt_depth": 1,
        "max_text": 24,
    }
    net = BlockCausalModel(BlockCausalConfig(family="block", block_length=4, **shape))
    random_weights(net)
    return BlockCausalLM(net.eval(), tokenizer)


ROADS: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "left to right": (make_ar, {"temperature": 1.0}, True),
    "aligned": (make_aligned, {"num_steps": 4}, False),
    "deferred": (make_masked, {"num_steps": 12}, True),
    "block decoder": (make_masked, {"decoder": "block", "num_steps": 12, "temperature": 1.0}, True),
    "confidence": (make_masked, {"decoder": "confidence", "num_steps": 12}, True),
    "remask": (make_masked, {"decoder": "remask", "num_steps": 12}, False),
    "deferred, in rounds": (make_masked, {"num_steps": 12, "rounds": 2}, False),
    "block by block": (make_block, {"temperature": 1.0}, True),
}
"""From a name to who writes, how, and whether anything stands before the end."""


@pytest.mark.parametrize("road", ROADS)
def test_what_stands_is_the_beginning_of_the_text(road):
    make, options, keeps = ROADS[road]
    torch.manual_seed(0)
    lm = make()
    events = list(lm.generate(REQUESTS, GenerateOptions(**options)))
    texts = {event.index: event.text for event in events if event.kind == "done"}
    longest = {index: 0 for index in texts}
    for event in events:
        assert texts[event.index].startswith(event.committed)
        assert len(event.committed) >= longest[event.index], "what stood stands"
        longest[event.index] = len(event.committed)
        assert not event.chances or len(event.chances) == len(event.tokens)
        assert all(0 <= chance <= 1 for chance in event.chances)
    assert {event.committed for event in events if event.kind == "done"} == set(texts.values())
    early = [event for event in events if event.kind == "draft" and event.committed]
    assert bool(early) == keeps
