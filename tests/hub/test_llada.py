"""`manta.hub.llada.generate` does what LLaDA's generate.py does, and says what is wrong with a call."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from manta.errors import UsageError
from manta.hub import llada, load_foreign
from manta.hub.foreign.decoder import DecoderNet

from .published import write

MASK = 53


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llada")
    write(folder, "llada")
    return load_foreign(folder, "cpu", dtype=torch.float32)


@pytest.fixture
def prompt() -> torch.Tensor:
    return torch.randint(0, 50, (2, 5), generator=torch.Generator().manual_seed(1))


def generate(model, prompt, mask=None, **options):
    return llada.generate(model, prompt, mask, mask_id=MASK, **options)


class Counted:
    """A model that counts its calls, in the shape of transformers' models."""

    def __init__(self, model) -> None:
        self.model, self.device, self.calls = model, model.device, []

    def __call__(self, tokens, attention_mask=None):
        self.calls.append(tokens)
        return SimpleNamespace(logits=self.model(tokens, attention_mask))


def literal(model, prompt, attention_mask, *, steps, length, block, temperature, scale, order):
    """The description of LLaDA's sampler, row by row and word by word, drawing in its order from torch's generator."""
    b, p = prompt.shape
    x = torch.cat([prompt, torch.full((b, length), MASK)], 1)
    if attention_mask is not None:
        attention_mask = torch.cat([attention_mask, torch.ones(b, length, dtype=attention_mask.dtype)], 1)
    steps_a_block = steps // (length // block)
    for first in range(p, p + length, block):
        for step in range(steps_a_block):
            logits = model(x, attention_mask)
            if scale > 0:
                bare = x.clone()
                bare[:, :p] = MASK
                without = model(bare, attention_mask)
                logits = without + (scale + 1) * (logits - without)
            logits[..., MASK] = -torch.inf
            scores = logits
            if temperature > 0:
                noise = torch.rand(logits.shape, dtype=torch.float64)
                scores = logits.double().exp() / (-noise.log()) ** temperature
            chance = torch.rand((b, p + length)) if order == "random" else logits.softmax(-1)
            for row in range(b):
                count = block // steps_a_block + (step < block % steps_a_block)
                candidates = []
                for place in range(first, first + block):
                    if x[row, place] == MASK:
                        word = int(scores[row, place].argmax())
                        sure = chance[row, place] if order == "random" else chance[row, place, word]
                        candidates.append((float(sure), place, word))
                for _, place, word in sorted(candidates, reverse=True)[:count]:
                    x[row, place] = word
    return x


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("order", ["low_confidence", "random"])
@pytest.mark.parametrize(
    ("steps", "length", "block", "temperature", "scale"),
    [(8, 8, 8, 0.0, 0.0), (6, 8, 4, 0.0, 0.0), (3, 8, 8, 0.0, 1.5), (4, 8, 4, 0.7, 0.0), (5, 12, 12, 1.0, 0.5)],
)
def test_it_equals_a_literal_reading(model, prompt, padded, order, steps, length, block, temperature, scale):
    mask = None
    if padded:
        mask = torch.ones_like(prompt)
        mask[1, :2] = 0
    torch.manual_seed(5)
    expected = literal(
        model, prompt, mask, steps=steps, length=length, block=block, temperature=temperature, scale=scale, order=order
    )
    torch.manual_seed(5)
    found = generate(
        model,
        prompt,
        mask,
        steps=steps,
        gen_length=length,
        block_length=block,
        temperature=temperature,
        cfg_scale=scale,
        remasking=order,
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("steps", [2, 6, 12])
def test_it_writes_everything_in_so_many_calls(model, prompt, steps, scale):
    counted = Counted(model)
    found = generate(counted, prompt, steps=steps, gen_length=12, block_length=6, cfg_scale=scale)
    assert found.shape == (2, 17) and found.dtype == torch.int64
    assert torch.equal(found[:, :5], prompt)
    assert not (found == MASK).any()
    assert len(counted.calls) == steps
    assert all(len(tokens) == (4 if scale else 2) for tokens in counted.calls)


def test_a_step_commits_its_even_share_the_larger_ones_first(model, prompt):
    counted = Counted(model)
    found = generate(counted, prompt, steps=6, gen_length=16, block_length=8)
    seen = [*counted.calls, found]
    left = [int((tokens[0] == MASK).sum()) for tokens in seen]
    assert [before - after for before, after in pairwise(left)] == [3, 3, 2, 3, 3, 2]
    assert not (seen[3][:, 5:13] == MASK).any() and (seen[3][:, 13:] == MASK).all()
    for before, after in pairwise(seen):
        written = before != MASK
        assert torch.equal(before[written], after[written])


def test_the_likeliest_words_need_no_chance(model, prompt):
    texts = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        texts.append(generate(model, prompt, steps=4, gen_length=8, block_length=8))
    assert torch.equal(*texts)


def test_a_generator_makes_draws_repeatable(model, prompt):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return generate(model, prompt, steps=4, gen_length=8, block_length=8, temperature=1.0, generator=generator)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_words_are_drawn_from_the_softmax(prompt):
    """One position, one step: the words of many rows have the model's frequencies, though its logits are large."""
    chance = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    rows = torch.zeros(40_000, 1, dtype=torch.long)
    torch.manual_seed(0)
    found = llada.generate(
        lambda tokens: (200 + chance.log()).expand(*tokens.shape, 5), rows, None, 1, 1, 1, temperature=1.0, mask_id=4
    )
    counts = torch.bincount(found[:, 1], minlength=5) / len(rows)
    torch.testing.assert_close(counts, chance, atol=0.01, rtol=0)


def test_padding_at_the_left_changes_nothing(model, prompt):
    padded = torch.cat([torch.full((2, 3), 51), prompt], 1)
    mask = (torch.arange(8) >= 3).long().expand(2, -1)
    options: dict[str, Any] = {"steps": 4, "gen_length": 8, "block_length": 4}
    for scale in (0.0, 1.0):
        alone = generate(model, prompt, cfg_scale=scale, **options)
        assert torch.equal(generate(model, padded, mask, cfg_scale=scale, **options)[:, 3:], alone)


def test_a_bare_net_or_callable_serves_too(model, prompt):
    options: dict[str, Any] = {"steps": 4, "gen_length": 8, "block_length": 8}
    expected = generate(model, prompt, **options)
    assert isinstance(model.net, DecoderNet)
    assert torch.equal(generate(model.net, prompt, **options), expected)
    assert torch.equal(generate(model.net, prompt, torch.ones_like(prompt), **options), expected)
    assert torch.equal(generate(lambda tokens: model(tokens), prompt, **options), expected)


def test_what_a_model_returns_is_left_alone(prompt):
    kept = torch.zeros(2, 9, 60)
    llada.generate(lambda tokens: kept, prompt, None, 4, 4, 4, mask_id=MASK)
    assert (kept == 0).all()


def ends(tokens, favourite):
    """Logits of LLaDA's vocabulary that favour one token everywhere and another a little less."""
    logits = torch.zeros(*tokens.shape, 126464)
    logits[..., favourite], logits[..., 7] = 5.0, 4.0
    return logits


def test_the_end_of_text_can_be_ruled_out(prompt):
    def end(tokens):
        return ends(tokens, llada.END_OF_TEXT)

    options: dict[str, Any] = {"steps": 2, "gen_length": 2, "block_length": 2}
    assert (llada.generate(end, prompt, **options)[:, 5:] == llada.END_OF_TEXT).all()
    assert (llada.generate(end, prompt, logits_eos_inf=True, **options)[:, 5:] == 7).all()


@pytest.mark.parametrize("token", [llada.END_OF_TEXT, llada.END_OF_TURN])
@pytest.mark.parametrize("temperature", [0.0, 1e-3])
def test_an_end_can_be_committed_last(prompt, token, temperature):
    """The first position is surest, and it is an end."""
    calls = []

    def model(tokens):
        calls.append(tokens)
        logits = torch.zeros(*tokens.shape, 126464)
        logits[:, :, 7] = 12.0
        logits[:, 5, token] = 60.0
        return logits

    options: dict[str, Any] = {"steps": 2, "gen_length": 2, "block_length": 2, "temperature": temperature}
    assert (llada.generate(model, prompt, **options)[:, 5] == token).all()
    assert (calls[1][:, 5] == token).all()
    calls.clear()
    found = llada.generate(model, prompt, confidence_eos_eot_inf=True, **options)
    assert (calls[1][:, 5] == 126336).all() and (calls[1][:, 6] == 7).all()
    assert (found[:, 5] == token).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gen_length": 10, "block_length": 4}, "gen_length"),
        ({"gen_length": 0}, "gen_length"),
        ({"block_length": 0}, "block_length"),
        ({"gen_length": 8, "block_length": 4, "steps": 3}, "steps"),
        ({"gen_length": 8, "block_length": 8, "steps": 0}, "steps"),
        ({"gen_length": 8, "block_length": 8, "steps": 9}, "steps"),
        ({"temperature": -1.0}, "temperature"),
        ({"cfg_scale": -1.0}, "cfg_scale"),
        ({"remasking": "entropy"}, "remasking"),
        ({"gen_length": 4, "block_length": 4, "steps": 4, "logits_eos_inf": True}, "126081"),
    ],
)
def test_a_wrong_call_is_said_so(model, prompt, options, words):
    with pytest.raises(UsageError, match=words):
        generate(model, prompt, **options)


def test_a_prompt_with_masks_is_refused(model, prompt):
    prompt[0, 2] = MASK
    with pytest.raises(UsageError, match="mask token"):
        generate(model, prompt, steps=4, gen_length=8, block_length=8)


def test_another_mask_token_than_the_models_is_refused(model, prompt):
    with pytest.raises(UsageError, match="mask token is 53"):
        llada.generate(model, prompt, steps=4, gen_length=8, block_length=8)
