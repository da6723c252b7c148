"""What an image flow is taught: the space of its latents first, then velocity matching.

Class and code of an image are told, or the class is not.
"""

from dataclasses import dataclass
from typing import cast

import torch

from manta.errors import ConfigError
from manta.families.image_model import ImageModel
from manta.flow import FlowObjectiveConfig, LinearPath, TimeDensity, velocity_matching
from manta.image import ImageBatch, from_pixels
from manta.spaces import LatentGrid, RateController, gaussian_rate
from manta.types import Loss


@dataclass(frozen=True, kw_only=True)
class ImageObjectiveConfig:
    """How an image flow is taught."""

    class_dropout: float = 0.1
    """Share of images whose class is not told, so that guidance has something to guide away from, [0, 1]."""
    code_dropout: float = 0.0
    """Share of images whose adaptive condition is not told, [0, 1]."""
    weight_cap: float = 400.0
    """Most that a squared error of the clean image weighs; 1/(1 − t)² below it, which is the error of the velocity."""

    def __post_init__(self) -> None:
        if not (0 <= self.class_dropout <= 1 and 0 <= self.code_dropout <= 1):
            raise ConfigError("class_dropout and code_dropout should lie in [0, 1]")
        if self.weight_cap < 1:
            raise ConfigError(f"weight_cap should be 1 or more, received {self.weight_cap}")


class ImageMatching:
    """Velocity matching of images.

        |velocity_hat − velocity|²,  of state = (1 − t) noise + t clean,  told class (or none) and code(clean)

    In a space of latents, which is frozen, `clean` is drawn from the encoder's Gaussian. The code's encoder learns by
    the same loss, through what the policy makes of it: b bits can tell no more than they hold, so nothing else bounds
    them.

    Args:
        config: shares and weights.
        density: of the times.
    """

    def __init__(self, config: ImageObjectiveConfig, density: TimeDensity) -> None:
        self.config, self.density = config, density
        self.flow = FlowObjectiveConfig(
            weight_cap=config.weight_cap, self_cond_probability=0.0, start_share=0.0, end_share=0.0
        )

    def __call__(self, model: ImageModel, batch: ImageBatch, generator: torch.Generator) -> Loss:
        """Loss with the parts of `velocity_matching`."""
        clean, posterior = from_pixels(batch.pixels), None
        if isinstance(model.space, LatentGrid):
            with torch.no_grad():
                posterior = mean, std = model.space.posterior(clean)
            clean = mean + std * torch.randn(mean.shape, generator=generator).to(mean.device)
        draws = torch.rand(2, len(batch), generator=generator, device=generator.device).to(clean.device)
        label = batch.label.masked_fill(draws[0] < self.config.class_dropout, -1)
        code = model.code(clean)
        if code is not None:
            code = code * (draws[1] >= self.config.code_dropout)[:, None]
        return velocity_matching(
            model.act,
            clean,
            path=LinearPath(),
            time_density=self.density,
            generator=generator,
            config=self.flow,
            cond=model.told(label, code),
            posterior=posterior,
        )


class Reconstruction:
    """The space of latents: an image is given back from a draw of its latents, at a rate that is held.

        |image_hat − image|² + β · rate/values

    with the squared error a value of [−1, 1], the rate in nats an image, and β of the controller.

    Args:
        controller: holds the rate; part of the checkpoint.
    """

    def __init__(self, controller: RateController) -> None:
        self.controller = controller

    def __call__(self, model: ImageModel, batch: ImageBatch, generator: torch.Generator) -> Loss:
        """Loss with parts reconstruction (squared error), rate (nats an image) and beta."""
        space = cast(LatentGrid, model.space)
        image = from_pixels(batch.pixels)
        mean, std = space.gaussian(image)
        sample = mean + std * torch.randn(mean.shape, generator=generator).to(mean.device)
        rate = gaussian_rate(mean, std).sum(1).mean()
        if torch.is_grad_enabled():
            space.track(sample.detach().flatten(0, 1))
            self.controller.observe(rate.item())
        error = (space.restored(sample) - image).square().mean()
        total = error + self.controller.weight * rate / image[0].numel()
        parts = {"reconstruction": error.detach(), "rate": rate.detach(), "beta": self.controller.weight}
        return Loss(total, parts, len(batch))
