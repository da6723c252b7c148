"""An image flow's nets in one module: the policy over a grid, and the encoder of an adaptive condition."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.flow.adaptive import sign_code
from manta.flow.path import expand_time
from manta.flow.time_density import TimeDensityConfig
from manta.nets.grid import DicConfig, GridNetChoice, Told
from manta.nets.grid.told import as_grid
from manta.spaces import GridSpace, GridSpaceChoice, PixelSpaceConfig
from manta.types import Estimate

MAX_BITS = 16


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Shape of an image flow."""

    family: Literal["image"] = "image"
    """Which family this is."""
    height: int = 0
    """Pixels; 0: the data's."""
    width: int = 0
    """Pixels; 0: the data's."""
    channels: int = 0
    """3 for colours, 1 for grey; 0: the data's."""
    classes: int = 0
    """Classes of the data."""
    space: GridSpaceChoice = field(default_factory=PixelSpaceConfig)
    """Where the state lives: `pixels`, or `latent`, in which larger images have fewer elements."""
    net: GridNetChoice = field(default_factory=DicConfig)
    """The policy's net."""
    prediction: Literal["velocity", "clean"] = "velocity"
    """What the net says; the clean state follows from a velocity and the state."""
    bits: int = 0
    """Bits of an adaptive condition, 0 to 16: a code of the clean image that the policy is told in training, and that
    is drawn by its frequency when images are made; 0: none."""
    time: TimeDensityConfig = field(default_factory=lambda: TimeDensityConfig(kind="logit_normal", logit_mean=-0.5))
    """Density of training times, which leans towards noise, where it is decided what an image shows."""

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.channels, self.classes) < 0:
            raise ConfigError("height, width, channels and classes should be 0 or more")
        if not 0 <= self.bits <= MAX_BITS:
            raise ConfigError(f"bits should lie between 0 and {MAX_BITS}, received {self.bits}")


class CodeEncoder(nn.Module):
    """A few bits of a clean state: `sign(tanh E(clean))`, with the gradient of the tanh.

    Its cost is 1% of the policy's parameters at most.

    Args:
        channels: of the state.
        bits: how many.
        most: parameters at most.

    Source: Liu et al., "Learning Quantized Adaptive Conditions for Diffusion Models", arXiv 2409.17487, of which the
        abstract could be had: layers and quantiser are our reconstruction.
    """

    def __init__(self, channels: int, bits: int, most: int) -> None:
        super().__init__()
        width = max(w for w in range(2, 65) if w == 2 or self._size(channels, w, bits) <= most)
        self.convs = nn.ModuleList(
            nn.Conv2d(inner, width, 3, stride=2, padding=1) for inner in (channels, width, width)
        )
        self.out = nn.Linear(width, bits)

    @staticmethod
    def _size(channels: int, width: int, bits: int) -> int:
        return 9 * width * (channels + 2 * width) + 3 * width + (width + 1) * bits

    def forward(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """The code of each image, ±1."""
        for conv in self.convs:
            grid = F.silu(conv(grid))
        return sign_code(self.out(grid.mean((2, 3))))


class ImageModel(nn.Module):
    """The nets of an image flow.

    Args:
        config: shape, with the data's sizes and a net in which everything is set.
    """

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.config = config
        space = config.space.build(config.channels, config.height, config.width)
        self.net = config.net.build(space.channels, space.height, space.width, classes=config.classes, bits=config.bits)
        size = sum(p.numel() for p in self.net.parameters())
        self.encoder = CodeEncoder(space.channels, config.bits, size // 100) if config.bits else None
        self.space: GridSpace = space

    def act(
        self, state: Float[Tensor, "b n c"], t: Float[Tensor, "b"], *, cond: Told, self_cond: Any = None
    ) -> Estimate:
        """The policy, a vector field: one network call; its own last estimate is not looked at."""
        said = self.net(state, t, cond).float()
        if self.config.prediction == "clean":
            return Estimate(said)
        return Estimate(state + (1 - expand_time(t, state)) * said)

    def code(self, clean: Float[Tensor, "b n c"]) -> Float[Tensor, "b k"] | None:
        """The adaptive condition of clean states; None of a model without one."""
        if self.encoder is None:
            return None
        return self.encoder(as_grid(clean, self.space.height, self.space.width))

    def told(self, label: Int64[Tensor, "b"], code: Float[Tensor, "b k"] | None = None) -> Told:
        """What the policy is told.

        Args:
            label: class of each image; −1, and the number of classes itself, for none.
            code: adaptive condition; None for none.
        """
        classes = self.config.classes
        label = torch.where(label < 0, classes, label)
        if self.config.bits and code is None:
            code = torch.zeros(len(label), self.config.bits, device=label.device)
        return Told(label if classes else None, code)


def without_class(told: Told, classes: int) -> Told:
    """The same without the class, for guidance."""
    return told if told.label is None else replace(told, label=torch.full_like(told.label, classes))
