"""Thinking masked models: what is carried from call to call, what is doubted, and that plain ones are as they were."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from manta.errors import ConfigError, UsageError
from manta.families.events import GenerateOptions, Request, finished
from manta.families.masked import MaskedLM
from manta.families.masked_model import FullDenoiser, MaskedConfig, MaskedModel
from manta.families.masked_objective import MaskedMatching
from manta.families.objectives import ObjectiveConfig
from manta.families.options import read_options
from manta.families.thinking import ThinkingConfig, Thought, Told
from manta.hub import load
from manta.hub.folder import save_model
from manta.masked import MaskedObjectiveConfig
from manta.runtime import make_generator
from manta.text import MASK

from .conftest import SMALL, make_masked, random_weights
from .test_objectives import make_batch

ALL = ThinkingConfig(carry=True, slots=3, doubts=True)


def canvas_of(model: MaskedModel, seed: int = 0):
    """Tokens with hidden ones, mask and memory of three rows of different lengths."""
    generator = make_generator(seed)
    tokens = torch.randint(4, 300, (3, 10), generator=generator)
    tokens = tokens.masked_fill(torch.rand(3, 10, generator=generator) < 0.5, MASK)
    mask = torch.arange(10) < torch.tensor([10, 6, 3])[:, None]
    memory = model.memory(torch.randint(4, 300, (3, 5)), torch.tensor([5, 3, 0]), torch.zeros(3, dtype=torch.long))
    return tokens, mask, memory


def fresh(thinking: ThinkingConfig) -> MaskedModel:
    torch.manual_seed(0)
    return MaskedModel(MaskedConfig(vocab_size=300, absolute_places=True, thinking=thinking, **SMALL))


def test_thinking_begins_as_no_thinking():
    plain, carries = fresh(ThinkingConfig()), fresh(ThinkingConfig(carry=True, doubts=True))
    assert not list(plain.thinking.parameters())
    tokens, mask, memory = canvas_of(plain)
    projected = plain.trunk.project(memory.states, memory.mask)
    told = carries.think(tokens, mask, projected)
    again = carries.think(tokens, mask, projected, told.thought())
    assert torch.equal(plain(tokens, mask, projected), told.logits)
    assert torch.equal(told.logits, again.logits)


def test_what_is_carried_reaches_hidden_words_alone_and_rows_apart():
    lm = make_masked(thinking=ALL)
    tokens, mask, memory = canvas_of(lm.model)
    projected = lm.model.trunk.project(memory.states, memory.mask)
    thinking, x = lm.model.thinking, lm.model.embed(tokens)
    chances = torch.rand(3, 10, 300, generator=make_generator(1)).softmax(-1)
    chances = F.pad(chances, (0, lm.model.config.vocab_size - 300))
    thought = Thought(chances, torch.randn(3, 3, 32, generator=make_generator(2)))
    slots, text = thinking.leave(thinking.enter(x, tokens, thought), tokens.shape[1])
    blank_slots, blank = thinking.leave(thinking.enter(x, tokens, None), tokens.shape[1])
    assert torch.equal(blank, x) and not torch.allclose(slots, blank_slots)
    hidden = tokens == MASK
    assert torch.equal(text[~hidden], x[~hidden])
    expected = x + thinking.carried(chances @ lm.model.embedding.weight)  # pyright: ignore[reportOptionalCall]
    torch.testing.assert_close(text[hidden], expected[hidden])
    with torch.no_grad():
        told = lm.model.think(tokens, mask, projected, thought)
        changed = Thought(chances.clone(), thought.slots.clone())
        changed.chances[0] = changed.chances[0].flip(-1)
        changed.slots[0] += 1
        other = lm.model.think(tokens, mask, projected, changed)
    assert not torch.allclose(told.logits[0], other.logits[0], atol=1e-3)
    torch.testing.assert_close(told.logits[1:], other.logits[1:])
    for row, length in ((1, 6), (2, 3)):  # padding is nothing to slots and words
        one = slice(row, row + 1)
        cut = lm.model.trunk.project(memory.states[one], memory.mask[one])
        with torch.no_grad():
            alone = lm.model.think(
                tokens[one, :length], mask[one, :length], cut, Thought(chances[one, :length], thought.slots[one])
            )
        torch.testing.assert_close(alone.logits[0], told.logits[row, :length], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone.slots[0], told.slots[row], atol=1e-4, rtol=1e-4)


def test_each_call_thinks_on_from_the_one_before():
    lm = make_masked(thinking=ALL)
    tokens, mask, memory = canvas_of(lm.model)
    net = FullDenoiser(lm.model, mask, memory)
    with torch.no_grad():
        first = net(tokens, 0, 10)
        second, part = net(tokens, 0, 10), net(tokens, 2, 5)
        assert net.thought is not None
        told = lm.model.think(tokens, mask, net.memory)
        again = lm.model.think(tokens, mask, net.memory, told.thought())
        third = lm.model.think(tokens, mask, net.memory, again.thought())
    assert torch.equal(first, told.logits) and torch.equal(second, again.logits)
    assert torch.equal(part, third.logits[:, 2:5])
    assert torch.equal(net.right(), third.right.sigmoid())  # pyright: ignore[reportOptionalMemberAccess]
    assert (net.thought.chances[..., MASK] == 0).all()
    assert not torch.allclose(first, second, atol=1e-3)


def requests() -> list[Request]:
    asked = [Request(prompt=p, seed=i) for i, p in enumerate(["the cat", "rain fell over quiet hills", None])]
    return [*asked, Request(prompt="the cat", infill="the cat ___{4} river", seed=7)]


@pytest.mark.parametrize("decoder", ["doubt", "deferred", "confidence", "remask"])
@pytest.mark.parametrize("think", [0, 2])
def test_a_text_is_the_same_alone_and_in_any_batch(decoder, think):
    lm = make_masked(thinking=ALL)
    options = GenerateOptions(decoder=decoder, num_steps=12, think=think, style="consensus")
    together = {e.index: e for e in finished(lm.generate(requests(), options))}
    for index, request in enumerate(requests()):
        (alone,) = finished(lm.generate([request], options))
        assert (alone.tokens, alone.nfe) == (together[index].tokens, together[index].nfe)
        assert MASK not in alone.tokens and alone.nfe <= 12
        if request.infill:
            assert alone.text.startswith("the cat") and alone.text.endswith("river")


def test_thinking_takes_calls_of_the_budget_and_changes_what_is_written():
    lm = make_masked(thinking=ThinkingConfig(carry=True, slots=2))
    found = {}
    for think in (0, 3):
        options = GenerateOptions(decoder="confidence", num_steps=8, think=think, style="consensus")
        (found[think],) = finished(lm.generate([Request(prompt="the cat")], options))
        assert found[think].nfe == 8
    assert found[0].tokens != found[3].tokens


def test_options_that_a_model_cannot_follow_are_refused():
    plain, carries = make_masked(), make_masked(thinking=ThinkingConfig(carry=True))
    for lm, wrong, message in (
        (plain, {"think": 2}, "carry thoughts"),
        (plain, {"decoder": "doubt"}, "no head for it"),
        (carries, {"decoder": "doubt"}, "no head for it"),
        (carries, {"decoder": "block", "cache": "dual"}, "leave `cache` out"),
        (carries, {"think": 6}, "`num_steps` to 9 or more"),
    ):
        with pytest.raises(UsageError, match=message):
            lm.check(read_options(wrong))
    with pytest.raises(ConfigError, match=r"thinking\.slots"):
        ThinkingConfig(slots=1000)


def test_a_folder_keeps_how_a_model_thinks(tmp_path):
    lm = make_masked(thinking=ALL)
    save_model(tmp_path / "model", lm, recipe={}, card="", dtype=torch.float32)
    again = load(tmp_path / "model", device="cpu")
    assert isinstance(again, MaskedLM) and again.model.config.thinking == ALL
    options = GenerateOptions(num_steps=9, decoder="doubt")
    one, two = ([e.tokens for e in finished(each.generate(requests(), options))] for each in (lm, again))
    assert one == two


def test_slots_learn_by_the_call_before_and_soft_words_do_not_reach_back():
    model = fresh(ALL)
    random_weights(model)
    objective = MaskedMatching(ObjectiveConfig(), MaskedObjectiveConfig())
    batch = make_batch([9, 6, 12, 4], vocab=300)
    for seed in range(8):
        model.zero_grad()
        loss = objective(model, batch, make_generator(seed))
        loss.total.backward()
        handed = model.thinking.handed
        assert handed is not None and loss.parts["doubt"] > 0
        if handed.weight.grad is not None and handed.weight.grad.abs().sum() > 0:
            break
    else:
        raise AssertionError("no earlier call in eight steps")
    assert all(p.grad is not None for p in model.thinking.parameters())


@pytest.mark.slow
def test_a_model_learns_which_of_its_words_are_wrong():
    """Texts say every word twice: where one of two differs, one of them is wrong, and all others are right."""
    torch.manual_seed(0)
    thinking = ThinkingConfig(doubts=True)
    model = MaskedModel(
        MaskedConfig(vocab_size=12, absolute_places=True, thinking=thinking, **{**SMALL, "max_text": 8, "depth": 2})
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    objective = MaskedMatching(ObjectiveConfig(blank_share=0.0, extra_cell=0.0), MaskedObjectiveConfig())
    generator = make_generator(0)
    for _ in range(400):
        optimizer.zero_grad()
        objective(model, twice(48, generator), generator).total.backward()
        optimizer.step()
    batch, rows = twice(200, generator), torch.arange(200)
    tokens, wrong = F.pad(batch.text, (0, 1)), torch.randint(8, (200,), generator=generator)
    tokens[rows, wrong] = 4 + (tokens[rows, wrong] - 4 + 1 + torch.randint(7, (200,), generator=generator)) % 8
    memory = model.memory(batch.prompt, batch.prompt_lengths, batch.tag)
    with torch.no_grad():
        told = model.think(tokens, torch.ones_like(tokens).bool(), model.trunk.project(memory.states, memory.mask))
    assert told.right is not None
    pairs = told.right[:, :8].sigmoid().view(200, 4, 2).mean(-1)
    assert (pairs.argmin(1) == wrong // 2).float().mean() > 0.85  # 0.25 by chance
    assert pairs[rows, wrong // 2].mean() < 0.6


def twice(count: int, generator: torch.Generator):
    """Texts of four words of eight, each said twice, without a prompt."""
    words = torch.randint(4, 12, (count, 4), generator=generator).repeat_interleave(2, 1)
    return replace(make_batch([8] * count), text=words, prompt=words[:, :5], prompt_lengths=torch.zeros(count).long())


def test_slots_are_up_to_256_and_carry_from_the_first_on():
    assert ThinkingConfig(slots=256).carries and ThinkingConfig(slots=1).carries and ThinkingConfig(carry=True).carries
    assert not ThinkingConfig(doubts=True).carries
    for slots in (-1, 257):
        with pytest.raises(ConfigError, match=r"thinking\.slots"):
            ThinkingConfig(slots=slots)


def test_slots_begin_small_and_hand_nothing_on_before_they_have_learned():
    model = fresh(ThinkingConfig(slots=64))
    thinking = model.thinking
    assert thinking.slots is not None and thinking.carried is None and thinking.doubt is None
    assert 0.08 < float(thinking.slots.std()) < 0.12 and abs(float(thinking.slots.mean())) < 0.01
    tokens, mask, memory = canvas_of(model)
    projected = model.trunk.project(memory.states, memory.mask)
    told = model.think(tokens, mask, projected)
    again = model.think(tokens, mask, projected, told.thought())
    assert torch.equal(told.logits, again.logits) and told.right is None
    assert told.thought().slots is told.slots and not told.thought().chances.requires_grad
    assert (told.thought().chances[..., MASK] == 0).all()
    torch.testing.assert_close(told.thought().chances.sum(-1), torch.ones(3, 10))


@pytest.mark.parametrize(("slots", "width"), [(3, 10), (3, 13), (3, 14), (16, 16), (0, 10)])
def test_the_state_is_slots_text_and_what_fills_the_width_up(slots, width):
    model = fresh(ThinkingConfig(slots=slots))
    x = torch.randn(2, width, 32)
    entered = model.thinking.enter(x, torch.full((2, width), 5), None)
    whole = -(-(slots + width) // 16) * 16 if slots else width
    assert entered.shape[1] == whole and not entered[:, slots + width :].any()
    assert torch.equal(entered[:, slots : slots + width], x)
    mask = torch.arange(width) < torch.tensor([[width], [width - 4]])
    real = model.thinking.real(mask)
    assert real.shape == (2, whole) and real[:, :slots].all() and not real[:, slots + width :].any()
    assert torch.equal(real[:, slots : slots + width], mask)
    told, text = model.thinking.leave(entered, width)
    assert told.shape[1] == slots and torch.equal(text, x)


def test_growing_is_the_last_class_where_there_is_one():
    logits, grow = torch.randn(2, 3, 5), torch.randn(2, 3)
    plain, elastic = Told(logits, logits[:, :0], None, None), Told(logits, logits[:, :0], None, grow)
    assert plain.classes() is logits
    assert torch.equal(elastic.classes()[..., :5], logits) and torch.equal(elastic.classes()[..., 5], grow)


def test_a_thought_of_nothing_hands_nothing_on():
    """What is handed on is linear in the thought, so that a call without one is a call with an empty one."""
    model = fresh(ThinkingConfig(carry=True, slots=3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=make_generator(4)))
    tokens, x = torch.full((2, 10), MASK), torch.randn(2, 10, 32)
    empty = Thought(torch.zeros(2, 10, 300), torch.zeros(2, 3, 32))
    assert torch.equal(model.thinking.enter(x, tokens, empty), model.thinking.enter(x, tokens, None))


def test_a_slot_is_its_own_vector_and_what_the_thought_hands_it():
    model = fresh(ThinkingConfig(slots=3))
    with torch.no_grad():
        for parameter in model.thinking.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=make_generator(4)))
    own, handed = model.thinking.slots, model.thinking.handed
    assert own is not None and handed is not None
    thought = Thought(torch.zeros(2, 10, 300), torch.randn(2, 3, 32))
    entered = model.thinking.enter(torch.randn(2, 10, 32), torch.full((2, 10), MASK), thought)
    torch.testing.assert_close(entered[:, :3], own + thought.slots @ handed.weight.T)
