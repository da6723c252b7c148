"""The policy's inputs: which words a place reads."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from manta.errors import ConfigError
from manta.families.model import CodeReader, MantaConfig, MantaModel
from manta.recipes.weights import inherit
from manta.text import BOS, MASK
from manta.types import Estimate

from .conftest import make_ar, make_lm


def entering(model: MantaModel, settled: torch.Tensor) -> torch.Tensor:
    """What the first block is given for a state of zeros."""
    seen = []
    handle = model.field.trunk.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    b, n = settled.shape
    state = torch.zeros(b, n // model.space.rate, model.space.channels)
    none = torch.zeros(b, dtype=torch.long)
    memory = model.memory(torch.zeros(b, 0, dtype=torch.long), none, none)
    cond = model.condition(memory, torch.ones(b, n, dtype=torch.bool), settled)
    with torch.no_grad():
        model.act(state, torch.zeros(b), cond=cond)
        handle.remove()
        return seen[0] - model.field.spread.bias.view(1, model.space.rate, -1).repeat(1, n // model.space.rate, 1)


def test_a_shifted_place_reads_the_word_before_it_and_its_own_through_a_map():
    model = make_lm("latent").model
    settled = torch.tensor([[7, MASK, 9, 10, 11, MASK, 12, 13]])
    before = torch.tensor([[BOS, 7, MASK, 9, 10, 11, MASK, 12]])
    own = model.field.own
    assert own is not None
    expected = model.embed(before) + own(model.embed(settled))
    torch.testing.assert_close(entering(model, settled), expected.detach(), atol=1e-6, rtol=1e-5)


def test_an_unshifted_place_reads_its_own_word():
    torch.manual_seed(0)
    shifted = make_lm("latent").model.config
    model = MantaModel(replace(shifted, shifted=False)).eval()
    settled = torch.tensor([[7, MASK, 9, 10]])
    torch.testing.assert_close(entering(model, settled), model.embed(settled).detach(), atol=1e-6, rtol=1e-5)


def test_a_fresh_policy_with_a_teachers_weights_is_given_what_the_teacher_is_given():
    """The words enter at the places where the autoregressive model has them; its blocks are taken over by name."""
    teacher = make_ar().model
    shape: dict[str, Any] = {"vocab_size": teacher.config.vocab_size, "prompt_depth": 1, "depth": 1}
    model = MantaModel(MantaConfig(dim=32, heads=2, **shape)).eval()
    model.embedding.load_state_dict(teacher.embedding.state_dict())
    inherit(teacher.trunk, model.field.trunk)
    text = torch.tensor([[7, 8, 9, 10]])
    given = torch.cat([torch.tensor([[BOS]]), text[:, :-1]], 1)
    torch.testing.assert_close(entering(model, text), teacher.embed(given).detach(), atol=1e-6, rtol=1e-5)
    ours, theirs = model.field.trunk.state_dict(), teacher.trunk.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("wrong", [{"prompt_depth": 0}, {"max_text": 0}, {"max_prompt": -1}, {"depth": 0}])
def test_shapes_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="at least"):
        MantaConfig(**{"dim": 32, "heads": 2, **wrong})
    assert MantaConfig(dim=32, heads=2, prompt_depth=1, max_text=1, max_prompt=0, depth=1).max_text == 1


@pytest.mark.parametrize(("prompt", "text", "places"), [(12, 24, 28), (40, 24, 40)])
def test_places_are_told_up_to_the_longest_prompt_or_canvas(prompt, text, places):
    shape = replace(make_lm("latent").model.config, max_prompt=prompt, max_text=text, absolute_places=True)
    model = MantaModel(shape)
    assert model.max_cells == 7, "room for a closing null"
    assert model.places is not None and model.places.num_embeddings == places


def test_words_that_are_settled_on_the_canvas_make_their_states_known(monkeypatch):
    model, told = make_lm("embedding").model, []
    monkeypatch.setattr(model, "act", lambda state, t, **given: told.append((state, t)) or Estimate(state))
    settled, mask = torch.tensor([[7, MASK, 9, 9]]), torch.tensor([[True, True, True, False]])
    memory = model.memory(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1).long(), torch.zeros(1).long())
    cond = model.condition(memory, mask, settled)
    model.act_beside(torch.zeros(1, 4, model.space.channels), torch.full((1,), 0.25), cond=cond)
    ((state, t),) = told
    assert t.tolist() == [[1.0, 0.25, 1.0, 0.25]]
    assert state[0, 0].any() and state[0, 2].any() and not state[0, 1].any() and not state[0, 3].any()
    assert (model.condition(memory, mask).settled == MASK).all(), "without words none is settled"


@pytest.mark.parametrize(("channels", "bits", "most"), [(3, 4, 500), (6, 2, 900), (1, 8, 300)])
def test_the_reader_of_codes_is_as_wide_as_its_parameters_allow(channels, bits, most):
    def size(width: int) -> int:
        return sum(p.numel() for p in (nn.Conv1d(channels, width, 3), nn.Linear(width, bits)) for p in p.parameters())

    made = CodeReader(channels, bits, most)
    width = made.out.in_features
    assert sum(p.numel() for p in made.parameters()) == size(width) <= most < size(width + 1)
    assert CodeReader(channels, bits, 0).out.in_features == 4
    assert CodeReader(channels, bits, 10**9).out.in_features == 128


def test_a_code_is_read_from_neighbours_and_their_mean():
    torch.manual_seed(0)
    reader, clean = CodeReader(3, 2, 200), torch.randn(2, 5, 3)
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    conv = reader.near
    for row, length in ((0, 5), (1, 3)):
        total = torch.zeros(conv.out_channels)
        for place in range(length):
            near = conv.bias.clone() if conv.bias is not None else torch.zeros(conv.out_channels)
            for offset in (-1, 0, 1):
                if 0 <= place + offset < length:
                    near = near + conv.weight[:, :, offset + 1] @ clean[row, place + offset]
            total = total + torch.nn.functional.silu(near)
        logits = reader.out(total / length)
        assert reader(clean, mask)[row].tolist() == torch.where(logits < 0, -1.0, 1.0).tolist()
