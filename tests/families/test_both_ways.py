"""An aligned model whose weights are also read left to right: then it is an autoregressive model of those weights."""

from dataclasses import replace

import pytest
import torch

from manta.aligned import AlignmentConfig
from manta.errors import ConfigError
from manta.families.aligned import AlignedLM, drafting
from manta.families.aligned_model import AlignedConfig, AlignedModel
from manta.families.aligned_objective import AlignmentMatching
from manta.families.autoregressive import AutoregressiveLM, AutoregressiveModel, NextToken
from manta.families.events import GenerateOptions, Request, finished
from manta.families.objectives import ObjectiveConfig
from manta.families.trained import Teaching
from manta.hub import load
from manta.hub.folder import save_model
from manta.operators import FourierConfig
from manta.runtime import make_generator
from manta.text import CONSENSUS, HUMAN, MASK

from .conftest import SMALL, make_aligned
from .test_aligned import batch_of

MATCHING = AlignmentMatching(ObjectiveConfig(blank_share=0.0), AlignmentConfig(), reveal=False)
REQUESTS = [Request(prompt="the cat", seed=3), Request(prompt="some old river", seed=4)]


@pytest.fixture(scope="module")
def lm() -> AlignedLM:
    return make_aligned(causal=True, depth=2, draft_horizon=3)


@pytest.fixture(scope="module")
def apart(lm) -> AutoregressiveLM:
    """An autoregressive model that was given copies of the weights, behind causal operators of its own."""
    model = AutoregressiveModel(lm.causal.model.config)
    model.load_state_dict({name: value.clone() for name, value in lm.causal.model.state_dict().items()})
    return AutoregressiveLM(model, lm.tokenizer)


def texts(lm, options: GenerateOptions) -> list[tuple[int, ...]]:
    return [event.tokens for event in finished(lm.generate(REQUESTS, options, batch_size=2))]


def test_its_reading_is_the_autoregressive_model_of_the_same_weights(lm, apart):
    batch = batch_of()
    losses = [NextToken()(model, batch, make_generator(0)).total for model in (lm.model.reading(), apart.model)]
    assert torch.equal(*losses)
    assert torch.equal(lm.log_likelihood(batch).value, apart.log_likelihood(batch).value)


def test_it_has_no_weights_of_its_own(lm):
    own = {id(part) for part in lm.model.parameters()}
    assert all(id(part) in own for part in lm.causal.model.parameters())
    assert not any("causal" in name for name in lm.model.state_dict())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("decoder", ["sequential", "verified"])
def test_it_writes_what_that_model_writes(lm, apart, decoder, temperature):
    ours = texts(lm, GenerateOptions(decoder=decoder, temperature=temperature))
    assert ours == texts(apart, GenerateOptions(temperature=temperature))
    assert all(ours)


def test_the_loss_is_the_sum_of_both(lm):
    batch = batch_of()
    without = AlignmentMatching(MATCHING.layout, AlignmentConfig(causal_weight=0.0), reveal=False)
    alone = without(lm.model, batch, make_generator(0)).total
    next_word = NextToken()(lm.model.reading(), batch, make_generator(0)).total
    assert MATCHING(lm.model, batch, make_generator(0)).total.item() == pytest.approx((alone + next_word).item())
    half = AlignmentMatching(MATCHING.layout, AlignmentConfig(causal_weight=0.5), reveal=False)
    assert half(lm.model, batch, make_generator(0)).total.item() == pytest.approx((alone + 0.5 * next_word).item())


def test_places_are_those_of_slots_alone(lm):
    assert lm.model.places is None and not lm.causal.model.config.absolute_places
    batch = batch_of()
    memory = lm.model.prompt_memory(batch.prompt, batch.prompt_lengths)
    labels, projected = torch.full((len(batch), 16), MASK), lm.model.trunk.project(memory.states, memory.mask)
    with torch.no_grad():
        before = lm.model(labels, torch.ones_like(labels, dtype=torch.bool), projected)
        lm.model.slots.weight[3] += 1.0
        after = lm.model(labels, torch.ones_like(labels, dtype=torch.bool), projected)
        lm.model.slots.weight[3] -= 1.0
    assert not torch.equal(before, after)


def test_the_drafter_learns_last_and_alone(lm):
    *_, drafter = AlignedLM.stages(lm.model, Teaching(), {})
    assert (drafter.name, drafter.part) == ("drafter", "drafter")
    lm.model.zero_grad()
    drafter.objective(lm.model, batch_of(), make_generator(0)).total.backward()
    given = {name for name, part in lm.model.named_parameters() if part.grad is not None and part.grad.abs().sum() > 0}
    lm.model.zero_grad()
    assert "drafter.take.weight" in given and "trunk.blocks.0.mlp.out.weight" not in given


def test_a_folder_holds_its_weights_once_and_writes_the_same(lm, tmp_path):
    save_model(tmp_path / "model", lm, recipe={}, card="a card", dtype=torch.float32)
    back = load(tmp_path / "model", device="cpu")
    assert isinstance(back, AlignedLM) and back.causal is not None
    assert back.causal.model.embedding is back.model.embedding
    for options in (GenerateOptions(decoder="verified"), GenerateOptions(num_steps=2)):
        assert texts(back, options) == texts(lm, options)
    plain = make_aligned(depth=2)
    save_model(tmp_path / "plain", plain, recipe={}, card="a card", dtype=torch.float32)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("model", "plain")]
    with_heads = sum(part.numel() for part in lm.model.drafter.parameters())
    assert sizes[0] - sizes[1] == pytest.approx(4 * with_heads, abs=4000)


def test_another_net_is_read_both_ways(lm):
    other = make_aligned(causal=True, depth=2, draft_horizon=3).model
    with torch.no_grad():
        other.embedding.weight.mul_(0.5)
    found, batch = lm.with_net(other), batch_of()
    assert torch.equal(found.log_likelihood(batch).value, AlignedLM(other, lm.tokenizer).log_likelihood(batch).value)
    assert not torch.equal(found.log_likelihood(batch).value, lm.log_likelihood(batch).value)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ConfigError, match="draft_horizon"):
        AlignedConfig(draft_horizon=4)
    with pytest.raises(ConfigError, match="compares pairs"):
        AlignedModel(AlignedConfig(vocab_size=50, causal=True, operator=FourierConfig(), **SMALL))


def mixed(num: int = 6):
    """A batch in which every other text is an answer."""
    batch = batch_of(num)
    return replace(batch, tag=torch.arange(num) % 2)


@pytest.mark.parametrize("reveal", [False, True])
def test_human_texts_are_for_the_left_to_right_reading_alone(lm, reveal):
    apart = AlignmentMatching(MATCHING.layout, AlignmentConfig(slots_learn="answers"), reveal=reveal)
    both, answers = mixed(), mixed().rows(torch.tensor([1, 3, 5]))
    assert bool((answers.tag == CONSENSUS).all())
    found, alone = (apart(lm.model, batch, make_generator(2)) for batch in (both, answers))
    for part in ("nats", "given", "length"):
        torch.testing.assert_close(found.parts[part], alone.parts[part])
    assert found.parts["causal"] == NextToken()(lm.model.reading(), both, make_generator(0)).total
    assert found.parts["causal"] != alone.parts["causal"]
    changed = replace(both, text=both.text.clone())
    changed.text[0, 0] = 300 + int(both.text[0, 0] == 300)
    other = apart(lm.model, changed, make_generator(2))
    assert other.parts["nats"] == found.parts["nats"] and other.parts["causal"] != found.parts["causal"]


def test_without_answers_slots_learn_nothing(lm):
    apart = AlignmentMatching(MATCHING.layout, AlignmentConfig(slots_learn="answers"), reveal=False)
    batch = replace(batch_of(), tag=torch.zeros(6, dtype=torch.long))
    lm.model.zero_grad()
    loss = apart(lm.model, batch, make_generator(0))
    assert loss.total == loss.parts["causal"]
    loss.total.backward()
    assert lm.model.rest.weight.grad is not None and not bool(lm.model.rest.weight.grad.any())
    lm.model.zero_grad()


def test_a_drafter_learns_answers_where_there_are_some(lm):
    both, answers = mixed(), mixed().rows(torch.tensor([1, 3, 5]))
    told = [drafting(lm.model, batch, make_generator(0)).total.item() for batch in (both, answers)]
    assert told[0] == told[1]
    human = replace(both, tag=torch.zeros(6, dtype=torch.long))
    assert drafting(lm.model, human, make_generator(0)).total.item() != told[0]
    styled = make_aligned(causal=True, styles=True, draft_horizon=3)
    told = [drafting(styled.model, rows, make_generator(0)) for rows in (both, answers)]
    more, fewer = told[0].count, told[1].count
    assert more is not None and fewer is not None
    assert more > fewer, "a model that draws as people write is taught their texts, too"


def test_drawn_texts_are_asked_for_as_people_write_and_greedy_ones_as_answers():
    lm = make_aligned(causal=True, styles=True, depth=2, draft_horizon=3)
    assert lm.causal is not None and lm.causal.model.styles
    told = []
    memory = lm.model.memory_encoder.forward

    def watched(prompt, mask, kind, *given, **named):
        told.append(kind.tolist())
        return memory(prompt, mask, kind, *given, **named)

    lm.model.memory_encoder.forward = watched
    mixed = [Request(prompt="the cat", seed=3), Request(prompt="the cat", seed=3)]
    hows = [GenerateOptions(decoder="verified", temperature=t) for t in (0.0, 1.0)]
    requests = [replace(request, options=how) for request, how in zip(mixed, hows, strict=True)]
    both = [event.tokens for event in finished(lm.generate(requests, GenerateOptions(), batch_size=2))]
    assert sorted(kind for call in told for kind in call) == [HUMAN, CONSENSUS]
    told.clear()
    alone = [next(finished(lm.generate([r], how))).tokens for r, how in zip(mixed, hows, strict=True)]
    assert told == [[CONSENSUS], [HUMAN]] and sorted(both) == sorted(alone)
    told.clear()
    list(lm.generate(mixed[:1], GenerateOptions(num_steps=1)))
    assert told == [[CONSENSUS]], "slots answer"


def test_styles_are_learned_by_the_tags_of_texts():
    lm, batch = make_aligned(causal=True, styles=True), batch_of()
    losses = {}
    for tag in (HUMAN, CONSENSUS):
        batch.tag.fill_(tag)
        losses[tag] = float(NextToken()(lm.model.reading(), batch, make_generator(0)).total)
    assert losses[HUMAN] != losses[CONSENSUS]
    plain = make_aligned(causal=True)
    for tag in (HUMAN, CONSENSUS):
        batch.tag.fill_(tag)
        losses[tag] = float(NextToken()(plain.model.reading(), batch, make_generator(0)).total)
    assert losses[HUMAN] == losses[CONSENSUS]
    with pytest.raises(ConfigError, match="styles are for a model that reads left to right"):
        AlignedConfig(styles=True)


def test_slots_that_learn_people_s_texts_are_asked_for_as_answers(monkeypatch):
    lm, batch = make_aligned(causal=True, styles=True), batch_of()
    batch.tag.fill_(HUMAN)
    told = []
    memory = lm.model.memory
    monkeypatch.setattr(
        lm.model, "memory", lambda p, n, kind, **more: (told.append(kind), memory(p, n, kind, **more))[1]
    )
    AlignmentMatching(MATCHING.layout, AlignmentConfig(slots_learn="all"), reveal=False)(
        lm.model, batch, make_generator(0)
    )
    assert [set(kind.tolist()) for kind in told] == [{HUMAN}, {CONSENSUS}]
