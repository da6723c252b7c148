"""Latents of images: shapes, the floor, standardising, and what training makes of them."""

from typing import Any

import numpy as np
import pytest
import torch

from manta.errors import ConfigError
from manta.families.image_flow import reconstruction, shaped
from manta.families.image_model import ImageConfig, ImageModel
from manta.families.image_objective import ImageMatching, ImageObjectiveConfig
from manta.flow import TimeDensityConfig
from manta.image import ImageBatch, ImageCodec
from manta.nets.grid import DicConfig
from manta.runtime import make_generator
from manta.spaces import LatentGrid, LatentGridConfig, PixelSpaceConfig


def model(height=13, width=10, channels=3, **space) -> Any:
    torch.manual_seed(0)
    config = ImageConfig(
        net=DicConfig(width=16, depths=(1, 1, 1, 1, 1)), space=LatentGridConfig(width=8, channels=3, **space)
    )
    return ImageModel(shaped(config, ImageCodec(height=height, width=width, channels=channels)))


def batch(count=8, height=13, width=10, seed=0):
    """Images of one colour each, which a latent can hold."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 1, 1, 3), np.uint8)
    pixels = torch.from_numpy(np.broadcast_to(colours, (count, height, width, 3)).copy())
    return ImageBatch(pixels=pixels, label=torch.full((count,), -1), index=torch.arange(count))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_sides_are_shortened_by_the_factor_and_come_back_whole(factor):
    space = model(factor=factor).space
    image = torch.randn(2, 13 * 10, 3)
    state = space.encode(image)
    rows, columns = -(-13 // factor), -(-10 // factor)
    assert (space.height, space.width) == (rows, columns) and state.shape == (2, rows * columns, 3)
    assert space.decode(state).shape == image.shape


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_no_latent_is_surer_than_the_floor(floor):
    space = model(noise_floor=floor).space
    with torch.no_grad():
        space.encoder[-1].bias[3:] = -50.0  # as sure as the encoder can be
        _, std = space.gaussian(torch.randn(2, 130, 3))
    assert std.min() >= floor and std.max() < floor + 0.01


def test_latents_are_standardised_and_decoded_by_the_same_numbers():
    space = model().space
    samples = torch.tensor([3.0, -1.0, 0.5]) + torch.tensor([2.0, 0.1, 5.0]) * torch.randn(50_000, 3)
    for part in samples.split(100):
        space.track(part)
    assert torch.allclose(space.standardise(samples).mean(0), torch.zeros(3), atol=0.15)
    assert torch.allclose(space.standardise(samples).std(0), torch.ones(3), atol=0.1)
    image = torch.randn(2, 130, 3)
    mean, _ = space.gaussian(image)
    assert torch.allclose(space.decode(space.encode(image)), space.restored(mean), atol=1e-5)


def test_one_latent_alone_says_nothing_of_deviations():
    space = model().space
    space.track(torch.ones(1, 3))
    assert torch.equal(space.std, torch.ones(3)) and torch.equal(space.mean, torch.zeros(3))


def taught(information):
    """A space after some steps: mean error of the first and the last ten, the last rate, the controller."""
    net, measured = model(information=information), {}
    objective = reconstruction(net, measured)
    optimizer, generator, errors, rate = torch.optim.AdamW(net.space.parameters(), 3e-3), make_generator(0), [], 0.0
    for step in range(300):
        loss = objective(net, batch(seed=step), generator)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        errors.append(float(loss.parts["reconstruction"]))
        rate = float(loss.parts["rate"])
    with torch.no_grad():
        before = objective.controller.log_weight
        objective(net, batch(), generator)
    assert objective.controller.log_weight == before, "measuring moves nothing"
    assert measured["controller"].target == information * net.space.height * net.space.width * net.space.channels
    return np.mean(errors[:10]), np.mean(errors[-10:]), rate / measured["controller"].target


def test_a_space_gives_images_back_the_better_the_more_it_may_say():
    little, much = taught(0.1), taught(1.0)
    assert much[1] < 0.5 * much[0] and much[1] < 0.8 * little[1]
    assert 0.5 < much[2] < 2 and 0.1 * little[2] < 0.5 * much[2]


def test_the_flow_leaves_the_space_as_it_is_and_is_taught_draws_of_it():
    net = model()
    objective = ImageMatching(ImageObjectiveConfig(), TimeDensityConfig(kind="uniform").build())
    with torch.no_grad():
        for parameter in net.net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    first = objective(net, batch(), make_generator(0))
    first.total.backward()
    assert all(parameter.grad is None for parameter in net.space.parameters())
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.net.parameters())
    again = objective(net, batch(), make_generator(0))
    assert torch.equal(first.total, again.total)
    assert not torch.equal(first.total, objective(net, batch(), make_generator(1)).total)


@pytest.mark.parametrize(
    "wrong", [{"factor": 3}, {"channels": 0}, {"width": 10}, {"depth": 0}, {"information": 0.0}, {"noise_floor": -1.0}]
)
def test_shapes_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError):
        LatentGridConfig(**wrong)


def test_pixels_are_their_own_state():
    space = PixelSpaceConfig().build(3, 4, 5)
    image = torch.randn(2, 20, 3)
    assert space.encode(image) is image and space.decode(image) is image and space.posterior(image) is None
    assert not list(space.parameters()) and isinstance(model().space, LatentGrid)
