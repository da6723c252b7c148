"""What an image flow is taught: velocity matching, with the class and the code of the image, or without the class."""

from dataclasses import dataclass

import torch

from manta.errors import ConfigError
from manta.families.image_model import ImageModel
from manta.flow import FlowObjectiveConfig, LinearPath, TimeDensity, velocity_matching
from manta.image import ImageBatch, from_pixels
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

    The code's encoder learns by the same loss, through what the policy makes of it: b bits can tell no more than they
    hold, so nothing else bounds them.

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
        clean = from_pixels(batch.pixels)
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
        )
