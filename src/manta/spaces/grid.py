"""Where the state of an image lives: its pixels, or the latents of a small convolutional autoencoder.

The autoencoder's encoder gives a Gaussian per latent with a noise floor, a controller holds the rate, and each channel
is standardised, as in the latent space of texts (`spaces.latent`). It is trained before the flow, to give the image
back, and is frozen then.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.nets.grid.autoencoder import GridDecoder, GridEncoder
from manta.nets.grid.told import as_elements, as_grid
from manta.spaces.rate import Standardised

Posterior = tuple[Float[Tensor, "b k d"], Float[Tensor, "b k d"]]
"""Mean and standard deviation of each latent, standardised."""


@dataclass(frozen=True, kw_only=True)
class PixelSpaceConfig:
    """The state is the image."""

    kind: Literal["pixels"] = "pixels"
    """Which space this is."""

    def build(self, channels: int, height: int, width: int) -> "PixelSpace":
        """The space of images of a size."""
        return PixelSpace(channels, height, width)


@dataclass(frozen=True, kw_only=True)
class LatentGridConfig:
    """The state is a grid of latents with a shorter side."""

    kind: Literal["latent"] = "latent"
    """Which space this is."""
    factor: int = 4
    """Pixels of a side that share a latent: 2, 4 or 8."""
    channels: int = 4
    """Width of a latent."""
    information: float = 1.2
    """Nats that each channel of a latent carries, held by the controller; the mean over the training images. A noise
    floor of 0.2 leaves room for 1.6."""
    noise_floor: float = 0.2
    """Least standard deviation of the encoder's Gaussian, before standardising. 0 removes the floor."""
    width: int = 24
    """Channels of the autoencoder at full resolution, a multiple of 4; twice as many at half of it."""
    depth: int = 1
    """Residual blocks of each resolution."""

    def __post_init__(self) -> None:
        if self.factor not in (2, 4, 8):
            raise ConfigError(f"space.factor should be 2, 4 or 8, received {self.factor}")
        if self.channels < 1 or self.depth < 1:
            raise ConfigError("space.channels and space.depth should be at least 1")
        if self.width < 4 or self.width % 4:
            raise ConfigError(f"space.width should be a multiple of 4, received {self.width}")
        if self.information <= 0 or self.noise_floor < 0:
            raise ConfigError("space.information should be above 0, space.noise_floor at least 0")

    def build(self, channels: int, height: int, width: int) -> "LatentGrid":
        """A freshly initialised space of images of a size."""
        return LatentGrid(self, channels, height, width)


GridSpaceChoice = PixelSpaceConfig | LatentGridConfig


class GridSpace(nn.Module, ABC):
    """From an image, row by row with values in [−1, 1], to its clean state, and back."""

    channels: int
    """Width of an element of the state."""
    height: int
    """Rows of the state."""
    width: int
    """Columns of the state."""

    @abstractmethod
    def posterior(self, image: Float[Tensor, "b n c"]) -> Posterior | None:
        """The encoder's Gaussian, standardised; None where the state is the image."""

    @abstractmethod
    def encode(self, image: Float[Tensor, "b n c"]) -> Float[Tensor, "b k d"]:
        """The clean state of an image: the mean of the encoder's Gaussian."""

    @abstractmethod
    def decode(self, state: Float[Tensor, "b k d"]) -> Float[Tensor, "b n c"]:
        """The image of a state."""


class PixelSpace(GridSpace):
    """The state is the image.

    Args:
        channels: of the image.
        height: of the image.
        width: of the image.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.channels, self.height, self.width = channels, height, width

    def posterior(self, image: Float[Tensor, "b n c"]) -> None:
        """There is none."""

    def encode(self, image: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """The image."""
        return image

    def decode(self, state: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """The state."""
        return state


class LatentGrid(GridSpace, Standardised):
    """A convolutional autoencoder whose latents are standardised; sides that the factor does not divide are filled up.

    Args:
        config: shape.
        channels: of the image.
        height: of the image.
        width: of the image.
    """

    def __init__(self, config: LatentGridConfig, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.config, self.image = config, (height, width)
        self.channels = config.channels
        self.height, self.width = -(-height // config.factor), -(-width // config.factor)
        shape = {"width": config.width, "depth": config.depth, "factor": config.factor}
        self.encoder = GridEncoder(channels, 2 * config.channels, **shape)
        self.decoder = GridDecoder(config.channels, channels, **shape)
        self.hold_statistics(config.channels)

    def gaussian(self, image: Float[Tensor, "b n c"]) -> Posterior:
        """Mean and standard deviation of the latents before standardising, ``std² = exp(s)² + floor²``."""
        grid = self.encoder(as_grid(image, *self.image, self.config.factor))
        mean, log_std = as_elements(grid, self.height, self.width).float().chunk(2, -1)
        return mean, (log_std.clamp(-6, 1).exp().square() + self.config.noise_floor**2).sqrt()

    def posterior(self, image: Float[Tensor, "b n c"]) -> Posterior:
        """The encoder's Gaussian, standardised."""
        mean, std = self.gaussian(image)
        return self.standardise(mean), std / self.std

    def encode(self, image: Float[Tensor, "b n c"]) -> Float[Tensor, "b k d"]:
        """The mean of the encoder's Gaussian, standardised."""
        return self.posterior(image)[0]

    def decode(self, state: Float[Tensor, "b k d"]) -> Float[Tensor, "b n c"]:
        """The image of a standardised state."""
        return self.restored(state * self.std + self.mean)

    def restored(self, latents: Float[Tensor, "b k d"]) -> Float[Tensor, "b n c"]:
        """The image of latents that are not standardised."""
        return as_elements(self.decoder(as_grid(latents, self.height, self.width)), *self.image).float()
