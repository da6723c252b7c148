"""What all families share: which shapes they refuse, places, expected embeddings, the length of a text."""

import pytest
import torch

from manta.errors import ConfigError
from manta.families.masked_model import FullDenoiser, MaskedConfig
from manta.families.prompted import resolved

from .conftest import make_ar, make_lm, make_masked

SHAPES = [(8, None, None), (8, 4, 1), (None, None, None), (None, 3, None), (64, 8, 2)]


@pytest.mark.parametrize(("dim", "heads", "depth"), SHAPES)
def test_what_is_not_set_is_filled_and_what_is_set_stays(dim, heads, depth):
    if dim is None and heads == 3:
        with pytest.raises(ConfigError, match="dim should be a multiple of 2·heads = 6, received 128"):
            resolved(MaskedConfig(dim=dim, heads=heads, depth=depth))
        return
    shape = resolved(MaskedConfig(dim=dim, heads=heads, depth=depth))
    assert (shape.dim, shape.heads, shape.depth) == (dim or 128, heads or 4, depth or 4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((-1, 2, 1), "dim should be at least 8, received -1"),
        ((0, None, None), "dim should be at least 8, received 0; left out, or none, it is derived"),
        ((8, 0, 1), "heads should be at least 1, received 0"),
        ((8, 2, 0), "depth should be at least 1, received 0"),
        ((7, None, None), "at least 8, received 7"),
        ((12, 4, 1), "a multiple of 2·heads = 8, received 12"),
        ((9, 3, 1), "a multiple of 2·heads = 6, received 9"),
    ],
)
def test_shapes_that_no_net_can_have_are_refused(shape, message):
    dim, heads, depth = shape
    with pytest.raises(ConfigError, match=message):
        MaskedConfig(dim=dim, heads=heads, depth=depth)


@pytest.mark.parametrize("places", [False, True])
def test_weights_of_one_token_are_that_token(places):
    model = make_ar(absolute_places=places).model
    tokens = torch.tensor([[5, 9, 300], [7, 7, 8]])
    weights = torch.nn.functional.one_hot(tokens, model.embedding.num_embeddings).float()
    torch.testing.assert_close(model.embed_weights(weights), model.embed(tokens))
    half = 0.5 * weights + 0.5 * weights.flip(1)
    expected = 0.5 * model.embed(tokens) + 0.5 * model.embed(tokens.flip(1))
    torch.testing.assert_close(model.embed_weights(half), expected)


def test_places_are_added_from_the_start_on_and_padding_has_none():
    model = make_masked().model
    assert model.places is not None and model.places.num_embeddings == 25
    tokens = torch.full((1, 6), 9)
    plain = model.embedding(tokens)
    torch.testing.assert_close(model.embed(tokens, 3) - plain, model.places.weight[None, 3:9])
    late = model.embed(tokens, 22) - plain
    torch.testing.assert_close(late[:, :3], model.places.weight[None, 22:25])
    assert not late[:, 3:].any()
    assert make_lm().model.places is None


def test_the_length_is_read_from_the_mean_of_the_memory_in_its_mask():
    model = make_lm().model
    memory = model.memory(torch.tensor([[5, 6, 7, 8]]), torch.tensor([2]), torch.zeros(1, dtype=torch.long))
    assert model.length is not None
    with torch.no_grad():
        mean = memory.states[0][memory.mask[0]].mean(0)
        torch.testing.assert_close(model.length_logits(memory)[0], model.length(mean))
    assert 0 < int(memory.mask.sum()) < memory.mask.numel()


def test_every_family_reads_its_prompt():
    tokens, mask, zero = torch.tensor([[7, 8, 9, 10]]), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1).long()

    def told(prompt: list[int]) -> list[torch.Tensor]:
        given, length = torch.tensor([prompt]), torch.tensor([len(prompt)])
        with torch.no_grad():
            masked, ar, manta = make_masked().model, make_ar().model, make_lm().model
            memory = manta.memory(given, length, zero)
            state = torch.ones(1, 1, manta.space.channels)
            action = manta.act(state, torch.zeros(1), cond=manta.condition(memory, mask, tokens))
            return [
                FullDenoiser(masked, mask, masked.memory(given, length, zero))(tokens, 0, 4),
                ar(tokens, ar.memory(given, length, zero)),
                action.clean,
                manta.logits(action.aux),
                manta.length_logits(memory),
            ]

    for one, two, again in zip(told([5, 6]), told([5, 11]), told([5, 6]), strict=True):
        assert not torch.allclose(one, two, atol=1e-3) and torch.equal(one, again)
