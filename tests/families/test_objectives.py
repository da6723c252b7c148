"""What Manta-LM is taught: canvases keep their texts, losses fall on hidden positions, gradients flow right."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.errors import ConfigError
from manta.families.autoregressive import NextToken
from manta.families.masked_objective import MaskedMatching
from manta.families.objectives import (
    EmbeddingMatching,
    ObjectiveConfig,
    OwnStates,
    PolicyMatching,
    hide,
    known_cells,
    lay_out,
    length_cost,
)
from manta.families.prompted import NO_PROMPT
from manta.masked import MaskedObjectiveConfig
from manta.runtime import make_generator
from manta.spaces import EmbeddingSpace, RateController
from manta.text import MASK, NULL, Batch

from .conftest import make_ar, make_lm, make_masked


def make_batch(lengths: list[int], prompt: int = 5, vocab: int = 200) -> Batch:
    generator = torch.Generator().manual_seed(0)
    width = max(lengths)
    text = torch.randint(4, vocab, (len(lengths), width), generator=generator)
    text = text.masked_fill(torch.arange(width) >= torch.tensor(lengths)[:, None], NULL)
    rows = len(lengths)
    return Batch(
        prompt=torch.randint(4, vocab, (rows, prompt), generator=generator),
        text=text,
        tag=torch.arange(rows) % 2,
        index=torch.arange(rows),
        prompt_lengths=torch.full((rows,), prompt),
        text_lengths=torch.tensor(lengths),
    )


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    rate=st.sampled_from([1, 2, 4, 8]),
    blank=st.sampled_from([0.0, 0.5, 1.0]),
    extra=st.sampled_from([0.0, 1.0]),
    room=st.integers(0, 4),
    seed=st.integers(0, 100),
)
def test_a_canvas_holds_its_text_and_closes_with_null(lengths, rate, blank, extra, room, seed):
    batch = make_batch(lengths)
    config = ObjectiveConfig(blank_share=blank, extra_cell=extra)
    most = max(lengths) // rate + 1 + room
    canvas = lay_out(batch, rate, config, make_generator(seed), max_cells=most)
    assert int(canvas.cells.max()) <= most
    for row, length in enumerate(lengths):
        tokens = canvas.tokens[row]
        assert tokens[tokens != NULL].tolist() == batch.text[row, :length].tolist()
        assert int(canvas.mask[row].sum()) == int(canvas.cells[row]) * rate
        assert tokens[int(canvas.mask[row].sum()) - 1] == NULL, "a text closes with a null token"
        assert not canvas.hole[row][~canvas.mask[row]].any()
    if blank == 0:
        assert not canvas.hole.any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_what_is_hidden_lies_on_the_canvas_and_a_blank_is_hidden_whole(seed):
    canvas = lay_out(make_batch([3, 9, 14, 20]), 4, ObjectiveConfig(blank_share=0.5), make_generator(seed), max_cells=9)
    hidden = hide(canvas, ObjectiveConfig(), make_generator(seed + 1))
    assert not hidden[~canvas.mask].any()
    assert hidden.any(1).all()
    blank = canvas.hole.any(1)
    assert torch.equal(hidden[blank], canvas.hole[blank])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_latents_are_known_only_where_every_word_is_settled(seed):
    canvas = lay_out(make_batch([3, 9, 14, 20]), 4, ObjectiveConfig(), make_generator(seed), max_cells=9)
    hidden = hide(canvas, ObjectiveConfig(all_hidden=0.2), make_generator(seed + 1))
    known = known_cells(hidden, canvas.mask, 4, 1.0, make_generator(seed))
    assert known is not None
    words = known.repeat_interleave(4, 1)
    assert not words[hidden | ~canvas.mask].any()
    assert (canvas.mask[:, ::4] & ~known).any(1).all(), "something is unknown in every row"


def latent_objective(lm, config: ObjectiveConfig) -> PolicyMatching:
    return PolicyMatching(config, lm.density, RateController(5.0))


def trained_parts(lm, objective, part):
    lm.model.requires_grad_(False)
    part.requires_grad_(True)
    loss = objective(lm.model, make_batch([5, 9, 13, 7]), make_generator(1))
    loss.total.backward()
    return loss


@pytest.mark.parametrize("kind", ["latent", "embedding"])
def test_every_weight_receives_a_gradient(kind):
    lm = make_lm(kind)
    config = ObjectiveConfig(known_share=0.5, bare_share=0.0)
    objective = latent_objective(lm, config) if kind == "latent" else EmbeddingMatching(config, lm.density)
    trained_parts(lm, objective, lm.model)
    assert not [n for n, p in lm.model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_the_clean_target_gives_the_encoder_no_gradient():
    """A target that moved towards the estimate would collapse the space. A blind estimate shows the target's share."""
    gradients = []
    for weight in (0.0, 5.0):
        lm = make_lm("latent")
        assert lm.model.field.merge is not None
        torch.nn.init.zeros_(lm.model.field.merge.weight)
        encoder = torch.nn.ModuleList([lm.model.space])
        trained_parts(lm, latent_objective(lm, ObjectiveConfig(velocity_weight=weight, bare_share=0.0)), encoder)
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert any(g.abs().max() > 0 for g in gradients[0]), "the words teach the encoder"
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_own_states_are_reached_by_the_policy_and_leave_something_to_tell(monkeypatch):
    lm = make_lm("latent")
    acts = []
    act = lm.model.act

    def spy(state, t, *, cond, self_cond=None):
        acts.append((state, t, cond.settled, torch.is_grad_enabled()))
        return act(state, t, cond=cond, self_cond=self_cond)

    monkeypatch.setattr(lm.model, "act", spy)
    config = ObjectiveConfig(own_share=1.0)
    objective = OwnStates(config, latent_objective(lm, config))
    for seed in range(12):
        acts.clear()
        batch = make_batch([5, 9, 13, 20, 7, 11])
        objective(lm.model, batch, make_generator(seed)).total.backward()
        *played, (_, t, settled, trained) = acts
        assert trained
        assert 1 <= len(played) <= OwnStates.actions
        assert not any(grad for *_, grad in played)
        first = played[0][1]
        assert (first[batch.tag == 0] >= 0.35).all(), "a text the prompt does not determine starts late"
        assert (t >= first).all()
        assert (t < 1).all()
        assert (settled == MASK).any(1).all()
        hidden = (settled == MASK).sum(1)
        assert (hidden <= (played[0][2] == MASK).sum(1)).all(), "words settle from action to action"


def test_levels_share_a_prompt_and_differ_in_time_and_hiding(monkeypatch):
    lm = make_lm("latent")
    seen = []
    act = lm.model.act

    def spy(state, t, *, cond, self_cond=None):
        seen.append((len(cond.memory[0].key), len(state), cond.settled, t))
        return act(state, t, cond=cond, self_cond=self_cond)

    monkeypatch.setattr(lm.model, "act", spy)
    config = ObjectiveConfig(levels=3, all_hidden=0.0, blank_share=0.0)
    config = replace(config, flow=replace(config.flow, self_cond_probability=0.0))
    latent_objective(lm, config)(lm.model, make_batch([8, 12]), make_generator(0))
    memories, states, settled, t = seen[-1]
    assert (memories, states) == (2, 6)
    assert len({tuple(row.tolist()) for row in settled}) == 6
    assert len(set(t.reshape(len(t), -1)[:, 0].tolist())) > 1


def test_the_embedding_space_is_taught_by_cross_entropy_only():
    lm = make_lm("embedding")
    loss = trained_parts(lm, EmbeddingMatching(ObjectiveConfig(), lm.density), lm.model)
    assert set(loss.parts) == {"cross_entropy", "length"}
    assert isinstance(lm.model.space, EmbeddingSpace)
    assert lm.model.space.vectors.grad is not None
    assert lm.model.space.vectors.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["latent", "embedding"])
def test_an_objective_is_a_function_of_its_generator(kind):
    losses = []
    for seed in (3, 3, 4):
        lm = make_lm(kind)
        config = ObjectiveConfig()
        objective = latent_objective(lm, config) if kind == "latent" else EmbeddingMatching(config, lm.density)
        losses.append(objective(lm.model, make_batch([5, 9]), make_generator(seed)).total)
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("share", ["prompt_drop", "blank_share", "extra_cell", "all_hidden", "own_share"])
def test_shares_out_of_range_are_refused(share):
    plain = ObjectiveConfig()
    for wrong in (-0.01, 1.01):
        with pytest.raises(ConfigError, match=rf"objective.{share} should lie in \[0, 1\]"):
            replace(plain, **{share: wrong})
    for end in (0.0, 1.0):
        assert getattr(replace(plain, **{share: end}), share) == end


@pytest.mark.parametrize("wrong", [{"levels": 0}, {"max_blank": -1}, {"velocity_weight": -0.1}, {"bare_share": 2.0}])
def test_counts_and_weights_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="objective"):
        ObjectiveConfig(**wrong)
    assert ObjectiveConfig(levels=1, max_blank=0, velocity_weight=0.0).levels == 1


def objective_of(name: str) -> tuple[Any, Any]:
    """A model, and what it is taught."""
    config = ObjectiveConfig(own_share=1.0, bare_share=0.5)
    lm = {"embedding": lambda: make_lm("embedding"), "masked": make_masked, "ar": make_ar}.get(name, make_lm)()
    made = {
        "policy": lambda: latent_objective(lm, config),
        "own": lambda: OwnStates(config, latent_objective(lm, config)),
        "embedding": lambda: EmbeddingMatching(config, lm.density),
        "masked": lambda: MaskedMatching(config, MaskedObjectiveConfig()),
        "ar": NextToken,
    }
    return lm.model, made[name]()


@pytest.mark.parametrize("name", ["policy", "own", "embedding", "masked", "ar"])
def test_an_objective_draws_from_its_generator_alone(name, no_global_draws):
    model, objective = objective_of(name)
    with no_global_draws():
        objective(model, make_batch([5, 9, 20]), make_generator(3))


def test_the_policy_sees_the_words_left_and_is_asked_for_the_hidden_ones_only(monkeypatch):
    lm = make_lm("latent")
    seen = {}
    logits = lm.model.logits

    def spy(action, where=None):
        seen["where"] = where
        return logits(action, where)

    act = lm.model.act

    def spy_act(state, t, *, cond, self_cond=None):
        seen["settled"] = cond.settled
        return act(state, t, cond=cond, self_cond=self_cond)

    monkeypatch.setattr(lm.model, "logits", spy)
    monkeypatch.setattr(lm.model, "act", spy_act)
    config = ObjectiveConfig(all_hidden=0.0, blank_share=0.0)
    config = replace(config, flow=replace(config.flow, self_cond_probability=0.0))
    latent_objective(lm, config)(lm.model, make_batch([8, 8, 8]), make_generator(0))
    masked = seen["settled"] == MASK
    assert torch.equal(masked, seen["where"])
    assert masked.any()
    assert not masked.all()


def test_blanks_do_not_teach_the_length():
    batch = make_batch([3, 9, 14, 20])
    plain, widened = (
        lay_out(batch, 4, ObjectiveConfig(blank_share=share, extra_cell=0.0), make_generator(3), max_cells=9)
        for share in (0.0, 1.0)
    )
    model = make_lm("latent").model
    memory = model.memory(batch.prompt, batch.prompt_lengths, batch.tag)
    rows = F.cross_entropy(model.length_logits(memory), plain.cells - 1)
    torch.testing.assert_close(length_cost(model, memory, plain), rows)
    assert length_cost(model, memory, widened) == 0


def test_rows_without_a_prompt_are_of_one_kind():
    batch, model = make_batch([3, 9]), make_lm("latent").model
    none = torch.zeros(2, dtype=torch.long)
    found = [model.memory(batch.prompt, none, torch.full((2,), kind)).states for kind in (0, 1, NO_PROMPT)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
