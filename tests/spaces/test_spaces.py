"""The spaces: rate and its control, the noise floor, running statistics, the exact part of the embedding logits."""

import math

import pytest
import torch
from torch import Tensor

from manta.errors import ConfigError
from manta.spaces import EmbeddingSpaceConfig, LatentSpace, LatentSpaceConfig, RateController, gaussian_rate

DIM, VOCAB = 16, 40


def random_space(**config) -> LatentSpace:
    torch.manual_seed(0)
    space = LatentSpaceConfig(channels=3, **config).build(VOCAB, DIM, 2)
    with torch.no_grad():
        for parameter in space.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return space


def inputs(space: LatentSpace, rows: int = 3, cells: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = cells * space.rate
    return (
        torch.randint(4, VOCAB, (rows, n)),
        torch.ones(rows, n, dtype=torch.bool),
        torch.randn(rows, 4, DIM),
        torch.randn(VOCAB, DIM),
    )


def test_rate_is_the_divergence_from_a_unit_gaussian():
    mean, std = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64) + 0.1
    ours = torch.distributions.Normal(mean, std)
    unit = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(std))
    expected = torch.distributions.kl_divergence(ours, unit).sum(-1)
    torch.testing.assert_close(gaussian_rate(mean, std), expected)
    assert gaussian_rate(torch.zeros(2, 3), torch.ones(2, 3)).abs().max() == 0


def test_the_controller_holds_the_rate_it_is_set_to():
    """A channel whose distortion falls as exp(−2·rate/d): the controller must find the slope that gives the rate."""
    controller, dims = RateController(20.0), 10
    rate = 60.0
    for _ in range(4000):
        slope = 2 / dims * math.exp(-2 * rate / dims) * 100
        rate += 2.0 * (slope - controller.weight)
        rate = max(rate, 0.0)
        controller.observe(rate)
    assert controller.rate == pytest.approx(20.0, rel=0.05)


def test_the_controllers_state_continues_exactly():
    one, two = RateController(20.0), RateController(20.0)
    for rate in (50.0, 30.0, 10.0):
        one.observe(rate)
    two.load_state_dict(one.state_dict())
    one.observe(25.0)
    two.observe(25.0)
    assert one.state_dict() == two.state_dict()


@pytest.mark.parametrize("floor", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("rate", [1, 2, 4, 8])
def test_no_latent_is_surer_than_the_noise_floor(floor, rate):
    space = random_space(noise_floor=floor, rate=rate)
    with torch.no_grad():
        space.merge.bias[space.channels :] = -50  # ask for certainty
    tokens, mask, memory, table = inputs(space)
    mean, std = space.posterior(tokens, mask, space.encoder.project(memory), table)
    assert mean.shape == std.shape == (3, 2, 3)
    assert float(std.min()) >= floor
    assert float(std.max()) < floor + 0.05


def test_standardised_latents_have_zero_mean_and_unit_variance():
    space = random_space()
    for _ in range(400):
        space.track(3 + 2 * torch.randn(1000, 3))
    standard = space.standardise(3 + 2 * torch.randn(40_000, 1, 3)).flatten(0, 1)
    torch.testing.assert_close(standard.mean(0), torch.zeros(3), atol=0.03, rtol=0)
    torch.testing.assert_close(standard.std(0), torch.ones(3), atol=0.03, rtol=0)


def test_the_encoder_ignores_what_lies_outside_the_canvas():
    space = random_space()
    tokens, mask, memory, table = inputs(space, cells=3)
    mask[:, 8:] = False
    projected, changed = space.encoder.project(memory), tokens.clone()
    changed[:, 8:] = 5
    one, two = (space.posterior(text, mask, projected, table)[0][:, :2] for text in (tokens, changed))
    torch.testing.assert_close(one, two)


def test_the_embeddings_skip_is_the_log_likelihood_of_the_state():
    """With equal norms, log N(state; t·e, (1−t)²) over tokens differs from the skip by a constant."""
    space = EmbeddingSpaceConfig(channels=8, skip_cap=1e9).build(VOCAB, DIM, 2)
    state, t = torch.randn(2, 3, 8), torch.tensor([[0.2, 0.5, 0.8], [0.1, 0.4, 0.6]])
    logits = space.log_likelihood(state, t)
    distance = (state[:, :, None] - t[..., None, None] * space.embedding).square().sum(-1)
    exact = -distance / (2 * (1 - t).square()[..., None])
    torch.testing.assert_close(logits.log_softmax(-1), exact.log_softmax(-1), atol=1e-3, rtol=1e-3)


def test_embeddings_have_equal_norms_and_unit_variance_on_average():
    space = EmbeddingSpaceConfig(channels=8).build(VOCAB, DIM, 2)
    torch.testing.assert_close(space.embedding.norm(dim=-1), torch.full((VOCAB,), 8**0.5))
    assert torch.equal(space.clean(torch.tensor([[3, 5]]))[0, 1], space.embedding[5])


@pytest.mark.parametrize(
    "wrong", [{"rate": 3}, {"channels": 0}, {"noise_floor": -1.0}, {"token_drop": 1.0}, {"information": 0.0}]
)
def test_a_space_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError):
        LatentSpaceConfig(**wrong)
